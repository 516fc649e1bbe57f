import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from collective_mm import gate, make_mesh
from collective_mm.chips import CHIPS
from collective_mm.pass_times import PassTimes, sums_everywhere
from profiling import topology

GATHER, SCATTER = "all_gather_matmul", "matmul_reduce_scatter"
OPS = (GATHER, SCATTER)
# A v5e whose figures are round: no latency, 100 TFLOP/s, links of 50 GB/s.
ROUND = dataclasses.replace(
  CHIPS["v5e"],
  bf16_flops=1e14 / 0.96,
  hbm_bandwidth=1e12,
  vmem_bytes=1 << 40,
  permute_bandwidth=5e10,
  permute_latency_s=0.0,
)
PRODUCT_S = 2e-6  # of each product beside its FLOPs


def times(**changes):
  """`x[8192, 1024] @ w[1024, F]` on four devices; a link moves S = 41.9 us."""
  options = {
    "chip": ROUND,
    "rows": 8192,
    "inner": 1024,
    "outer": 1024,
    "size": 4,
    "by_rows": True,
    "itemsize": 2,
    "wire_itemsize": 2,
  }
  return PassTimes(**options | changes)


def product(rows, inner, outer):
  return PRODUCT_S + 2 * rows * inner * outer / 1e14


def copy(nbytes):
  return 2.5 * 2 * nbytes / 1e12


def sent(nbytes):
  return nbytes / 5e10


CHUNK = 2048 * 1024 * 2  # bytes


@pytest.mark.parametrize("outer", [512, 8192])
def test_a_gather_ring_takes_the_longer_of_products_and_sends(outer):
  step = 2 * product(1024, 1024, outer)
  send = sent(CHUNK / 2)
  assert (step > send) == (outer == 8192)
  expected = copy(CHUNK) + 3 * max(step, send) + step
  got = times(outer=outer).seconds(GATHER, "two_way", backward=False)
  assert got == pytest.approx(expected)
  # One way: no half is cut off, and one link has it all.
  step = product(2048, 1024, outer)
  expected = 3 * max(step, sent(CHUNK)) + step
  got = times(outer=outer).seconds(GATHER, "one_way", backward=False)
  assert got == pytest.approx(expected)


def test_an_unoverlapped_gather_uses_the_links_of_its_block():
  # 2x2 chips: a link in either dim.
  expected = sent(4 * CHUNK * 3 / 4 / 2) + product(8192, 1024, 1024)
  got = times().seconds(GATHER, "unoverlapped", backward=False)
  assert got == pytest.approx(expected)


@pytest.mark.parametrize("inner", [1024, 16384])
def test_a_sum_waits_for_the_one_before(inner):
  one, send = 1.02 * product(1024, inner, 1024), sent(CHUNK / 2)
  if inner == 1024:  # bound by links: a lane's send and product in turn
    expected = 3 * (send + one) + 2 * one + one
  else:  # the other lane's product hides it, but for the last
    assert one > send
    expected = 4 * 2 * one + send
  weights = inner * 1024 * 2 / 1e12
  streams = dataclasses.replace(ROUND, vmem_bytes=0)
  got = times(inner=inner, chip=streams).seconds(SCATTER, "two_way", False)
  assert got == pytest.approx(weights + expected)


def test_one_way_sums_hide_nothing():
  one = product(2048, 1024, 1024)
  expected = 3 * (sent(CHUNK) + one) + one + 1024 * 1024 * 2 / 1e12
  got = times().seconds(SCATTER, "one_way", False)
  assert got == pytest.approx(expected)
  # In four lanes a send is beside the products of the three others.
  assert times(chunks=4).seconds(SCATTER, "one_way", False) < 0.9 * got


def test_a_kept_gather_is_copied_for_the_second_product():
  inner = outer = 4096
  step = 2 * product(1024, outer, inner)
  assert step > sent(2 * CHUNK)
  expected = copy(4 * CHUNK) + 4 * (step + copy(4 * CHUNK))
  expected += product(inner, 8192, outer)
  case = times(inner=inner, outer=outer)
  assert case.seconds(SCATTER, "two_way", True) == pytest.approx(expected)


def test_two_rings_share_their_links():
  one, send = product(1024, 1024, 1024), sent(CHUNK / 2)
  step = 2 * send + one
  assert step > 2 * one + copy(CHUNK)
  expected = 3 * step + 2 * one + copy(CHUNK) + copy(CHUNK)
  expected += 1024 * 1024 * 2 / 1e12 + product(1024, 8192, 1024)
  got = times().seconds(GATHER, "two_way", True)
  assert got == pytest.approx(expected)


def test_an_asynchronous_gather_slows_the_ring_beside_it():
  case = times()
  ring = case.ring(GATHER, "async", True).total_s
  alone = times().ring(SCATTER, "two_way", False).total_s
  gather = sent(4 * CHUNK * 3 / 4 / 2)
  assert alone < ring < alone + gather


def test_features_add_up_in_memory_where_they_do_not_fit():
  fits = times(by_rows=False)
  rows = times().seconds(GATHER, "two_way", False)
  assert fits.seconds(GATHER, "two_way", False) == pytest.approx(rows, rel=0.1)
  small = dataclasses.replace(ROUND, vmem_bytes=1 << 20)
  spills = times(by_rows=False, chip=small, outer=8192)
  fits = times(by_rows=False, outer=8192)
  extra = 4 * 0.6 * 2 * 4 * 8192 * 8192 / 1e12
  assert spills.seconds(GATHER, "two_way", False) == pytest.approx(
    fits.seconds(GATHER, "two_way", False) + extra, rel=0.02
  )


def test_what_compiled_gathers_hide():
  v4 = dataclasses.replace(ROUND, name="v4")
  bare, options = (times(chip=v4, async_options=on) for on in (False, True))
  assert not bare.hides_gathers and options.hides_gathers
  waits = bare.seconds(GATHER, "unoverlapped", True)
  hides = options.seconds(GATHER, "unoverlapped", True)
  gather = sent(4 * CHUNK * 3 / 4 / 2)
  dx = 2e-6 + 2 * 8192 * 1024 * 1024 / (1e14 / 0.96 * 0.95)
  assert waits - hides == pytest.approx(min(gather, dx))


def test_lanes_are_those_that_rings_deal():
  assert times().lanes("two_way") == (2, 2)
  assert times(chunks=3).lanes("two_way") == (2, 6)
  assert times(chunks=3).lanes("one_way") == (1, 3)
  assert times(size=2, chunks=3).lanes("two_way") == (1, 3)
  assert times(rows=4).lanes("two_way") == (1, 1)
  assert times(rows=1, by_rows=False).lanes("two_way") == (1, 1)


LINKS = [
  # chip, ring: links of 45 GB/s that a member has inside its block. In a slice
  # rings of make_mesh and how many links one of their devices has in its block.
  ("v4", 2, 1),
  ("v4", 4, 2),
  ("v4", 8, 3),
  ("v4", 16, 2),
  ("v4", 32, 3),
  ("v4", 64, 6),
  ("v5e", 4, 2),
  ("v5e", 8, 2),
  ("v5e", 16, 2),
]


@pytest.mark.parametrize("chip, size, links", LINKS)
def test_links_of_a_block(chip, size, links):
  nbytes = 1 << 34
  case = times(chip=CHIPS[chip], size=size)
  expected = nbytes * (size - 1) / size / (links * 4.5e10)
  assert case.collective(nbytes) == pytest.approx(expected, rel=1e-3)


def compile_backward(name, size, options):
  """The text of a gather that can hide beside a product, then a reduction."""
  pytest.importorskip("libtpu")
  devices = topology.devices(name)
  mesh = make_mesh(data=len(devices) // size, model=size, devices=devices)

  def backward(x, dy, w):
    dx = lax.psum_scatter(dy @ w, "model", tiled=True)
    return dx, lax.all_gather(x, "model", tiled=True).T @ dy

  columns, rows = jax.P(None, "model"), jax.P("model")
  mapped = jax.shard_map(
    backward,
    mesh=mesh,
    in_specs=(rows, columns, rows),
    out_specs=(rows, columns),
    check_vma=False,
  )
  shapes = ((2048, 2048), (2048, 2048 * size), (2048 * size, 2048))
  args = (
    jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=jax.NamedSharding(mesh, p))
    for s, p in zip(shapes, (rows, columns, rows), strict=True)
  )
  lowered = jax.jit(mapped).lower(*args)
  return lowered.compile(compiler_options=options).as_text()


LONG = pytest.mark.long
COMPILED = [
  # slice, ring, whether its reductions become all-reduces
  ("v4:2x2x2", 8, True),
  ("v5e:2x4", 8, False),
  pytest.param("v4:2x2x2", 4, False, marks=LONG),
  pytest.param("v5e:4x4", 8, False, marks=LONG),
  pytest.param("v5e:4x4", 16, True, marks=LONG),
  pytest.param("v5p:2x2x2", 8, True, marks=LONG),
  pytest.param("v5p:2x2x1", 4, False, marks=LONG),
  pytest.param("v6e:2x4", 8, False, marks=LONG),
  pytest.param("v6e:4x4", 16, True, marks=LONG),
]


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("name, size, all_reduces", COMPILED)
def test_the_habits_are_those_of_the_compiler(name, size, all_reduces):
  chip = name.split(":")[0]
  devices = len(topology.devices(name))
  assert sums_everywhere(chip, size, devices) == all_reduces
  bare = compile_backward(name, size, {})
  optioned = compile_backward(name, size, gate.compiler_options(chip))
  hides = times(chip=CHIPS[chip], size=size).hides_gathers
  assert ("async-collective-start" in bare) == hides
  fused = gate.fuses_gathers(chip)
  assert ("async-collective-start" in optioned) == (fused or hides)
  for text in (bare, optioned):
    # A fused all-reduce-scatter is a reduce-scatter.
    fused = "all-reduce-scatter" in text or " reduce-scatter(" in text
    assert fused == (not all_reduces)


@pytest.mark.parametrize(
  ("chip", "size", "devices", "expected"),
  [
    ("v4", 8, 8, True),
    ("v4", 8, 16, False),  # a slice of which the ring is half
    ("v4", 4, 4, False),
    ("TPU v5p", 64, 64, True),
    ("v5e", 8, 8, False),
    ("v5e", 16, 16, True),
    ("v6e", 32, 32, False),  # 4x8
    ("cpu", 8, 8, False),
  ],
)
def test_where_the_compiler_sums_everywhere(chip, size, devices, expected):
  assert sums_everywhere(chip, size, devices) is expected
