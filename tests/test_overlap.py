import types

import jax
import jax.numpy as jnp
import pytest
from hlo_text import ARRAY, LOOP_ENTRY, RING, done, loop, module, product, start

from collective_mm import all_gather_matmul, make_mesh
from collective_mm.overlap import overlap_report

STEP = "\n".join(
  [
    start("s", "a"),
    product("p", "a", "a", cycles=20_000),
    done("d", "s"),
    product("y", "p", "d", cycles=10_000),
  ]
)
RING_LOOP = module(LOOP_ENTRY, loop(STEP, trips=48))
REDUCE = f"%g = {ARRAY} all-reduce(%x), replica_groups={{}}"
SEND_S = 2.29e-6 + 2**20 / 45e9  # of one MiB on a v5e


def test_trips_multiply():
  report = overlap_report(RING_LOOP, chip="v5e")
  (c,) = report.collectives
  assert (c.start, c.done, c.computation) == ("s", "d", "body")
  assert (c.runs, c.products, c.devices) == (48, 1, 4)
  assert c.transfer_s == pytest.approx(SEND_S)
  assert c.hidden == pytest.approx(20_000 / 1.5e9 / SEND_S)
  assert report.hidden == pytest.approx(c.hidden)
  assert (c.axes, c.hops) == (None, None)


def test_the_weight_of_a_transfer_is_its_time():
  text = RING_LOOP.replace(
    "ROOT %out",
    f"%g = {ARRAY} all-reduce(%x), replica_groups={{}}\n  ROOT %out",
  )
  report = overlap_report(text, chip="v5e")
  reduce_s = 2 * (2.29e-6 + 2**20 * 3 / 4 / (2 * 45e9))
  blocking, hidden = report.collectives[0], report.collectives[1]
  if blocking.kind != "all-reduce":
    blocking, hidden = hidden, blocking
  assert blocking.transfer_s == pytest.approx(reduce_s)
  whole_s = reduce_s + 48 * SEND_S
  assert report.hidden == pytest.approx(48 * SEND_S * hidden.hidden / whole_s)


def test_without_a_chip_a_product_between_hides():
  report = overlap_report(RING_LOOP)
  assert (report.chip, report.hidden) == (None, 1.0)
  in_series = [
    start("s", "a"),
    done("d", "s"),
    product("y", "d", "d", cycles=20_000),
  ]
  text = module(LOOP_ENTRY, loop("\n".join(in_series), trips=48))
  report = overlap_report(text)
  assert report.hidden == 0.0
  (c,) = report.collectives
  assert c.transfer_s == 0
  assert "no product between its start and its done" in c.faults


def test_small_collectives_are_no_faults():
  small = "f32[1024]{0:T(1024)}"
  text = module(
    f"%l = {small} custom-call(%x)\n"
    f"ROOT %y = {small} all-reduce(%l), replica_groups={{}}"
  )
  report = overlap_report(text)
  assert report.faults == ()
  assert report.collectives[0].blocks


GPU = f"""
%wrapped (p: f32[1024,256]) -> f32[256,256] {{
  %p = {ARRAY} parameter(0)
  ROOT %rs = f32[256,256]{{1,0}} reduce-scatter(%p), replica_groups={{}}
}}
"""
GEMM = f'{ARRAY} custom-call(%x, %x), custom_call_target="__cublas$gemm"'


def test_the_text_of_a_gpu():
  state = f"(({ARRAY}), f32[256,256]{{1,0}})"
  text = module(
    "\n".join(
      [
        f"%b = {state} reduce-scatter-start(%x), calls=%wrapped",
        f"%g = ({ARRAY}, f32[4096,256]{{1,0}}) all-gather-start(%x), "
        "replica_groups=mesh['data'=1,'model'=4] {'model'}",
        "%h = f32[4096,256]{1,0} all-gather-done(%g)",
        f"%y = {GEMM}",
        "ROOT %e = f32[256,256]{1,0} reduce-scatter-done(%b)",
      ]
    ),
    GPU,
  )
  report = overlap_report(text)
  found = {c.kind: (c.products, c.hidden, c.done) for c in report.collectives}
  assert found == {
    "reduce-scatter": (1, 1.0, "e"),
    "all-gather": (0, 0.0, "h"),
  }
  assert report.hidden == pytest.approx(0.2)  # by bytes, one MiB of five


GPU_ASYNC = f"""
%sent (p: f32[1024,256]) -> f32[1024,256] {{
  %p = {ARRAY} parameter(0)
  ROOT %cp = {ARRAY} collective-permute(%p), {RING}
}}

%gemm (a: f32[1024,256], b: f32[256,256]) -> f32[1024,256] {{
  %a = {ARRAY} parameter(0)
  %b = f32[256,256]{{1,0}} parameter(1)
  ROOT %dot = {ARRAY} dot(%a, %b), lhs_contracting_dims={{1}}, \
rhs_contracting_dims={{0}}
}}
"""
SYNC = '{"collective_backend_config":{"is_sync":true}}'


def test_the_generic_async_form_of_a_gpu():
  text = module(
    "\n".join(
      [
        f"%s = (({ARRAY}), {ARRAY}, u32[]) async-start(%x), calls=%sent",
        "%w = f32[256,256]{1,0} slice(%x), slice={[0:256], [0:256]}",
        f"%y = {ARRAY} fusion(%x, %w), kind=kCustom, calls=%gemm, "
        'backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}',
        f"%d = {ARRAY} async-done(%s)",
        f"%r = {ARRAY} all-reduce-start(%y), replica_groups=[1,4]<=[4], "
        f"backend_config={SYNC}",
        f"%z = {GEMM}",
        f"ROOT %e = {ARRAY} all-reduce-done(%r)",
      ]
    ),
    GPU_ASYNC,
    header="is_scheduled=true, num_partitions=4",
  )
  report = overlap_report(text)
  found = {c.kind: (c.products, c.done, c.faults) for c in report.collectives}
  assert found == {
    "collective-permute": (1, "d", ("f32 on the wire",)),
    # A start that the compiler made synchronous, whatever follows it.
    "all-reduce": (0, None, ("blocks", "f32 on the wire")),
  }
  with pytest.raises(AssertionError, match="all-reduce of 4 devices"):
    report.assert_overlapped()


def test_on_a_cpu_everything_blocks():
  mesh = make_mesh(data=2, model=4)
  mapped = jax.shard_map(
    lambda x, w: all_gather_matmul(x, w, axis_name="model", gather_dim=0),
    mesh=mesh,
    in_specs=(jax.P(("data", "model")), jax.P(None, "model")),
    out_specs=jax.P("data", "model"),
  )
  x, w = jnp.ones((64, 32)), jnp.ones((32, 64))
  report = overlap_report(jax.jit(mapped).lower(x, w).compile(), mesh=mesh)
  assert report.collectives
  assert all(c.blocks for c in report.collectives)
  assert {c.axes for c in report.collectives} == {("model",)}
  assert (report.chip, report.hidden) == (None, 0.0)


COPIED = "\n".join(
  [
    f"%k = {ARRAY} copy(%a)",
    start("s", "k"),
    product("p", "a", "a", cycles=20_000),
    done("d", "s"),
    f"%y = {ARRAY} copy(%d)",
  ]
)


def test_copies_of_what_a_ring_carries():
  report = overlap_report(module(LOOP_ENTRY, loop(COPIED, trips=6)))
  copies = [
    (c.name, c.computation, c.runs, c.nbytes) for c in report.carry_copies
  ]
  assert copies == [("k", "body", 6, 1 << 20), ("y", "body", 6, 1 << 20)]
  assert "k: copies 1.05 MB of a ring's carry 6 times in body" in report.faults
  assert "y: copies 1.05 MB of a ring's carry" in str(report)
  assert overlap_report(RING_LOOP).carry_copies == ()


def test_the_table():
  mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
  text = str(overlap_report(RING_LOOP, mesh=mesh, chip="v5e"))
  header, row, total = text.splitlines()
  columns = [
    "kind",
    "axes",
    "runs",
    "MB",
    "dtype",
    "products",
    "hidden",
    "what",
  ]
  assert header.split() == columns
  assert row.split() == [
    *("collective-permute", "model", "48", "1.05", "f32", "1+", "52.1", "%"),
    *("f32", "on", "the", "wire;"),
  ]
  assert total == "1 collectives, 52.1 % hidden (modelled on a v5e)"


def test_the_worst_come_first():
  text = RING_LOOP.replace("ROOT %out", 48 * f"{REDUCE}\n  " + "ROOT %out")
  with pytest.raises(AssertionError) as e:
    overlap_report(text, chip="v5e").assert_overlapped()
  first, *rest = str(e.value).splitlines()
  assert "is hidden, less than 95.0 %" in first
  assert len(rest) == 2
  assert rest[0].startswith("  g: 0.0 % hidden, all-reduce of 4 devices")


def test_a_function_without_collectives():
  report = overlap_report(jax.jit(jnp.sin).lower(1.0).compile())
  assert (report.collectives, report.hidden) == ((), 1.0)
  report.assert_overlapped(min_hidden=1)


def test_what_cannot_be_reported():
  with pytest.raises(ValueError, match="must have a text, got none"):
    overlap_report(types.SimpleNamespace(as_text=lambda: None))
  with pytest.raises(ValueError, match="must be scheduled HLO"):
    overlap_report(RING_LOOP.replace("is_scheduled=true, ", ""))
  with pytest.raises(ValueError, match="have the module's 4 devices, got 8"):
    overlap_report(RING_LOOP, mesh=make_mesh(data=2, model=4))
  with pytest.raises(ValueError, match=r"must be one of v4, .*, got 'v3'"):
    overlap_report(RING_LOOP, chip="v3")
  with pytest.raises(ValueError, match="must be from 0 to 1, got 95"):
    overlap_report(RING_LOOP).assert_overlapped(95)


def test_a_permute_that_goes_one_way_round():
  # A chain, whose last device sends nothing on.
  text = RING_LOOP.replace(RING, "source_target_pairs={{0,1},{1,2},{2,3}}")
  assert overlap_report(text).collectives[0].devices == 4
