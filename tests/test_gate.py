import itertools
import math
import re
import timeit

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from collective_mm import gate, make_mesh, matmul_reduce_scatter
from collective_mm.chips import CHIPS
from collective_mm.pass_times import SCHEDULES
from profiling import topology

GATHER, SCATTER = "all_gather_matmul", "matmul_reduce_scatter"
OPS = (GATHER, SCATTER)
MODELLED = [c.name for c in CHIPS.values() if c.permute_bandwidth]


def choose(op=GATHER, **changes):
  options = {
    "rows": 65536,
    "inner": 6144,
    "outer": 5376,
    "size": 8,
    "by_rows": True,
    "dtype": jnp.bfloat16,
    "wire_dtype": None,
    "chunks": 1,
    "device_kind": "v4",
  }
  return gate.choose(op, **options | changes)


def seconds(decision):
  """Modelled (forward, backward) of each schedule, and of the chosen pair."""
  times = {c.schedule: (c.forward_s, c.backward_s) for c in decision.candidates}
  chosen = tuple(times[s][i] for i, s in enumerate(decision.schedule))
  return times, chosen


@settings(max_examples=300, deadline=None)
@given(
  op=st.sampled_from(OPS),
  chip=st.sampled_from(MODELLED),
  rows=st.integers(1, 1 << 20),
  inner=st.integers(1, 1 << 16),
  outer=st.integers(1, 1 << 16),
  size=st.integers(2, 64),
  by_rows=st.booleans(),
  dtype=st.sampled_from(["float32", "bfloat16", "int8"]),
  wire_dtype=st.sampled_from([None, "float32"]),
  chunks=st.integers(1, 4),
  hops=st.integers(1, 3),
  all_reduces=st.booleans(),
  async_options=st.booleans(),
)
def test_never_slower_than_unoverlapped_in_its_own_model(op, chip, **options):
  decision = gate.choose(op, device_kind=chip, **options)
  times, chosen = seconds(decision)
  assert tuple(times) == SCHEDULES
  assert all(0 < s < math.inf for pair in times.values() for s in pair)
  for i, schedule in enumerate(decision.schedule):
    plain = times["unoverlapped"][i]
    assert chosen[i] <= plain
    # Where it says unoverlapped, nothing is clearly faster.
    if schedule == "unoverlapped":
      assert min(pair[i] for pair in times.values()) > 0.98 * plain
    else:
      best = min(pair[i] for pair in times.values())
      # Two directions, or what the compiler hides, may cost a little more.
      assert chosen[i] <= (1 if schedule == "one_way" else 1.04) * best or (
        schedule == "async" and (op, i) == (SCATTER, 1)
      )
  assert decision.chunks == options["chunks"]
  assert decision.chip == chip


def test_a_ring_wins_where_products_are_long_and_loses_where_they_are_not():
  large = choose(device_kind="v5e", rows=16384)
  assert set(large.schedule) <= {"one_way", "two_way", "async"}
  # A product of 16 rows takes as long as one of 64.
  small = choose(device_kind="v5e", rows=256)
  assert small.schedule == ("unoverlapped", "unoverlapped")


def test_an_op_that_is_bound_by_links_gets_both_directions():
  decision = choose(
    SCATTER, rows=8192, inner=1280, outer=8192, device_kind="v5e"
  )
  assert decision.schedule == ("two_way", "two_way")
  times, _ = seconds(decision)
  assert times["one_way"][0] > 1.5 * times["two_way"][0]


def test_a_gather_that_nothing_hides_is_not_called_async():
  times, _ = seconds(choose())
  assert times["async"][0] == times["unoverlapped"][0]
  times, _ = seconds(choose(SCATTER))
  assert times["async"][1] == times["unoverlapped"][1]


def test_what_the_options_are_worth():
  for op, chip in itertools.product(OPS, ("v4", "v5p", "v6e")):
    bare, chosen = (
      seconds(choose(op, device_kind=chip, async_options=on))[1]
      for on in (False, True)
    )
    assert chosen[1] <= bare[1]
  assert choose(async_options=True).schedule[1] == "async"
  # For v5e the compiler does the same without them.
  assert (
    choose(device_kind="v5e").candidates
    == choose(device_kind="v5e", async_options=True).candidates
  )


def test_longer_ways_slow_rings_and_no_gather():
  near, far = (seconds(choose(hops=hops))[0] for hops in (1, 4))
  assert near["unoverlapped"] == far["unoverlapped"]
  assert all(far["two_way"][i] > near["two_way"][i] for i in (0, 1))


def test_reductions_by_all_reduce_make_rings_pay_earlier():
  plain, twice = (
    seconds(choose(SCATTER, all_reduces=on))[0] for on in (False, True)
  )
  assert twice["unoverlapped"][0] > plain["unoverlapped"][0]
  for schedule in ("one_way", "two_way", "async"):
    assert twice[schedule] == plain[schedule]


@pytest.mark.tpu_compiler
def test_an_op_that_fills_its_slice_takes_a_ring_earlier():
  """The out projection of Llama-3 8B, traced for v5p; not compiled."""
  pytest.importorskip("libtpu")

  def sends(name):
    devices = topology.devices(name)
    mesh = make_mesh(data=len(devices) // 8, model=8, devices=devices)
    op = jax.shard_map(
      lambda x, w: matmul_reduce_scatter(
        x, w, axis_name="model", scatter_dim=0
      ),
      mesh=mesh,
      in_specs=(jax.P("data", "model"), jax.P("model")),
      out_specs=jax.P(("data", "model")),
    )
    shapes = (16384 * mesh.shape["data"], 4096), (4096, 4096)
    args = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    return str(jax.make_jaxpr(op)(*args)).count("ppermute")

  assert sends("v5p:2x2x2") == 14
  assert sends("v5p:2x2x4") == 0


def test_wider_sums_take_longer():
  narrow, wide = (
    seconds(choose(SCATTER, rows=4096, wire_dtype=wire))[0]
    for wire in (None, jnp.float32)
  )
  for schedule in SCHEDULES:
    assert wide[schedule][0] > narrow[schedule][0]
    assert wide[schedule][1] == narrow[schedule][1]


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 80GB HBM3", "TPU v2"])
def test_no_time_is_claimed_without_a_link_model(kind):
  for size in (2, 3, 8):
    decision = choose(size=size, device_kind=kind)
    assert decision.schedule == ("two_way", "two_way")
    assert decision.candidates == ()
    assert decision.reason.startswith(f"no link model for {kind!r}: ")


@pytest.mark.parametrize("kind", ["v4", "cpu"])
def test_one_device_has_no_ring(kind):
  decision = choose(size=1, device_kind=kind)
  assert decision.schedule == ("unoverlapped", "unoverlapped")
  assert decision.reason == "an axis of one device sends nothing"


def test_a_ring_of_two_has_one_direction_and_two_lanes_of_sums():
  gather = seconds(choose(size=2, rows=16384))[0]
  assert gather["two_way"][0] == gather["one_way"][0]
  scatter = seconds(choose(SCATTER, size=2, rows=16384))[0]
  assert scatter["two_way"][0] < scatter["one_way"][0]


def test_a_decision_is_made_once_and_fast():
  assert choose() is choose()
  rows = itertools.count(1000)
  took = timeit.repeat(lambda: choose(rows=next(rows)), number=1, repeat=50)
  assert min(took) < 1e-3


def test_a_decision_reads_as_a_table():
  decision = choose(device_kind="TPU v4", async_options=True)
  assert decision.chip == "v4"
  heading, columns, *rows, reason = str(decision).splitlines()
  assert heading == f"{GATHER} on v4: ('two_way', 'async')"
  assert columns.split() == ["modelled", "ms", "forward", "backward"]
  assert [row.split()[0] for row in rows] == list(SCHEDULES)
  times, _ = seconds(decision)
  cells = {row.split()[0]: row.split()[1:] for row in rows}
  for schedule, (forward, backward) in times.items():
    stars = ("*" * (schedule == "two_way"), "*" * (schedule == "async"))
    assert cells[schedule] == [
      f"{1e3 * forward:.3f}{stars[0]}",
      f"{1e3 * backward:.3f}{stars[1]}",
    ]
  assert re.fullmatch(
    r"two_way forward: [\d.]+ ms against [\d.]+ ms unoverlapped, as each "
    r"[\d.]+ ms of products hides a [\d.]+ ms send; async backward: [\d.]+ ms "
    r"against [\d.]+ ms unoverlapped, as each [\d.]+ ms of products hides a "
    r"[\d.]+ ms send and an asynchronous gather brings x",
    reason,
  )
  fallen_back = choose(rows=256).reason
  assert re.search(
    r"unoverlapped backward: [\d.]+ ms, where \w+ would take", fallen_back
  )


def test_explain_counts_what_the_op_would():
  by_rows = gate.explain(
    GATHER,
    x=(2, 4096, 6144),
    w=((6144, 5000), (6144, 376)),
    axis_size=8,
    gather_dim=0,
    chip="v4",
  )
  here = {"gathers_fused": gate.fuses_gathers("v4")}
  assert by_rows == choose(**here)
  features = gate.explain(
    GATHER,
    x=(65536, 768),
    w=(6144, 5376),
    axis_size=8,
    gather_dim=-1,
    chip="v4",
  )
  assert features == choose(by_rows=False, **here)
  scatter = gate.explain(
    SCATTER,
    x=((65536, 5000), (65536, 376)),
    w=((5000, 6144), (376, 6144)),
    axis_size=8,
    scatter_dim=0,
    wire_dtype=jnp.float32,
    chunks=2,
    chip="TPU v4",
  )
  options = here | {
    "inner": 5376,
    "outer": 6144,
    "wire_dtype": jnp.float32,
    "chunks": 2,
  }
  assert scatter.candidates == choose(SCATTER, **options).candidates


def test_explain_takes_the_chip_that_is_here():
  mesh = make_mesh(data=2, model=4)
  shapes = {"x": (8, 16), "w": (16, 4), "gather_dim": 0}
  here = gate.explain(GATHER, axis_size=4, **shapes)
  assert here == gate.explain(GATHER, mesh=mesh, **shapes)
  assert here.chip == "cpu"
  both = gate.explain(
    GATHER, mesh=mesh, axis_name=("data", "model"), chip="v4", **shapes
  )
  assert both == gate.explain(
    GATHER, axis_size=8, chip="v4", all_reduces=True, **shapes
  )


@pytest.mark.tpu_compiler
def test_explain_takes_links_from_a_mesh():
  pytest.importorskip("libtpu")
  shapes = {"x": (65536, 5376), "w": (5376, 6144), "scatter_dim": 0}
  devices = topology.devices("v4:2x2x2")
  whole = gate.explain(
    SCATTER, mesh=make_mesh(data=1, model=8, devices=devices), **shapes
  )
  assert whole == choose(SCATTER, inner=5376, outer=6144, all_reduces=True)
  half = gate.explain(
    SCATTER, mesh=make_mesh(data=2, model=4, devices=devices), **shapes
  )
  assert half == gate.explain(SCATTER, axis_size=4, chip="v4", **shapes)
  # Neighbours along an axis that was laid without a thought are far apart.
  grid = sorted(devices, key=lambda d: d.id * 5 % 8)
  scattered = jax.make_mesh((1, 8), ("data", "model"), devices=grid)
  times, _ = seconds(gate.explain(SCATTER, mesh=scattered, **shapes))
  assert times["two_way"][0] > seconds(whole)[0]["two_way"][0]


BAD = [
  ({"op": "matmul"}, "op must be all_gather_matmul or .* got 'matmul'"),
  (
    {"scatter_dim": 0},
    "all_gather_matmul needs gather_dim alone, got gath.*0",
  ),
  ({"gather_dim": None}, "needs gather_dim alone, got gather_dim=None"),
  ({"axis_size": None}, "one of axis_size and mesh must be given, got .*None"),
  ({"axis_size": 0}, "at least 1, got axis_size=0, chunks=1"),
  ({"chunks": 0}, "at least 1, got axis_size=8, chunks=0"),
  ({"gather_dim": 2}, "gather_dim must be a dim of x, from -2 to 1, got 2"),
  ({"w": (6, 4)}, r"1 x 8 = 8 rows for gather_dim=0 .* got w=\(6, 4\)"),
  ({"gather_dim": -1}, r"8 x 8 = 64 rows .*gather_dim=-1 and 8 devices"),
  ({"w": (8, 4, 2)}, r"w must be a matrix .*got w=\(8, 4, 2\), x=\(4, 8\)"),
  ({"w": ()}, r"w must be a shape of positive sizes, .* got \(\)"),
  ({"x": (0, 8)}, r"x must be a shape of positive sizes, .* got \(0, 8\)"),
  ({"x": ((4, 8), (4, 8))}, "x must be one shape, got 2 for 1 of w"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_explain_refuses(changes, message):
  call = {
    "op": GATHER,
    "x": (4, 8),
    "w": (8, 4),
    "axis_size": 8,
    "gather_dim": 0,
  } | changes
  with pytest.raises(ValueError, match=message):
    gate.explain(call.pop("op"), **call)


def test_explain_wants_an_x_for_each_w_of_a_sum():
  with pytest.raises(ValueError, match="x must be one shape for each w, got 1"):
    gate.explain(
      SCATTER, x=(8, 4), w=((4, 8), (4, 8)), axis_size=2, scatter_dim=0
    )


def test_gathers_are_fused_where_the_compiler_supports_it():
  assert gate.fuses_gathers("v4", libtpu="0.0.42.1")
  assert not gate.fuses_gathers("v4", libtpu="0.0.50.1")
  assert gate.fuses_gathers("TPU v5 lite", libtpu="0.0.50.1")
  # Where they are not, "async" would wait for them.
  fused, blocking = (
    seconds(choose(gathers_fused=on))[0]["async"][1] for on in (True, False)
  )
  assert blocking > fused


def test_options_are_for_tpus():
  assert gate.compiler_options("cpu") == {}
  assert gate.compiler_options("NVIDIA H100 80GB HBM3") == {}
  for chip in ("v4", "TPU v4", "TPU v5 lite", "TPU of tomorrow"):
    options = gate.compiler_options(chip)
    assert len(options) == 5 + gate.fuses_gathers(chip)
    assert set(options.values()) == {"true"}
    more = gate.compiler_options(chip, prefetch=True)
    assert options.keys() < more.keys()
    latency = "xla_lhs_output_fusion_latency_multiplier"
    early = gate.compiler_options(chip, prefetch=True, whole_dims=True)
    multipliers = more.pop(latency), early.pop(latency)
    assert multipliers == (("0.2", "1") if "lite" in chip else ("0.5", "0.5"))
    assert more == early
    assert set(more.values()) == {"true", "128", "ENABLED", "0.5"}


@pytest.mark.parametrize("chip", ["v5p", "TPU v6 lite"])
def test_sparse_cores_gather_for_a_stack_where_they_can(chip):
  fused = "xla_tpu_enable_async_collective_fusion_fuse_all_gather"
  offload = "xla_tpu_enable_sparse_core_collective_offload_all_gather"
  options = gate.compiler_options(chip)
  assert offload not in options
  # A newer libtpu takes the steps of a ring to be longer than they are.
  steps = "xla_lhs_output_fusion_latency_multiplier"
  assert (steps in options) == (not gate.fuses_gathers(chip))
  more = gate.compiler_options(chip, prefetch=True)
  assert (more[fused], more[offload]) == ("false", "true")
  assert gate.offloads_gathers(chip)
  assert not gate.offloads_gathers("v4")


def test_memory_figures_are_those_of_jax():
  for name, version in (
    ("v2", pltpu.ChipVersion.TPU_V2),
    ("v3", pltpu.ChipVersion.TPU_V3),
    ("v4", pltpu.ChipVersion.TPU_V4),
    ("v5e", pltpu.ChipVersion.TPU_V5E),
    ("v5p", pltpu.ChipVersion.TPU_V5P),
    ("v6e", pltpu.ChipVersion.TPU_V6E),
    ("tpu7x", pltpu.ChipVersion.TPU_7X),
  ):
    cores = version.num_physical_tensor_cores_per_chip
    info = pltpu.get_tpu_info_for_chip(
      version, cores if version.supports_megacore else 1
    )
    assert CHIPS[name].hbm_bandwidth == cores * info.mem_bw_bytes_per_second
    assert CHIPS[name].vmem_bytes == cores * info.vmem_capacity_bytes
