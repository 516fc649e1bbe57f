"""Faults planted into functions that the TPU compiler then compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from collective_mm import (
  all_gather_matmul,
  matmul_reduce_scatter,
  overlap_report,
)
from profiling import topology

pytestmark = pytest.mark.tpu_compiler

# Chips of a v5e:2x4 by coordinates: two squares, and two lines of four.
SQUARES = [(0, 0), (0, 1), (1, 1), (1, 0), (0, 2), (0, 3), (1, 3), (1, 2)]
LINES = [(x, y) for x in range(2) for y in range(4)]
ROWS, WIDTH, FEATURES = 8192, 1024, 8192
TOKENS, COLUMNS = jax.P(("data", "model")), jax.P(None, "model")


def mesh_of(name, places):
  pytest.importorskip("libtpu")
  chips = {tuple(d.coords[: len(places[0])]): d for d in topology.devices(name)}
  grid = np.array([chips[place] for place in places]).reshape(2, 4)
  return jax.sharding.Mesh(grid, ("data", "model"))


def compile_for(mesh, body, *, shapes=None, specs=(TOKENS, COLUMNS), out=None):
  """`body` of two bf16 arrays inside `jax.shard_map`, compiled for `mesh`."""
  shapes = shapes or ((ROWS, WIDTH), (WIDTH, FEATURES))
  args = [
    jax.ShapeDtypeStruct(
      shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec)
    )
    for shape, spec in zip(shapes, specs, strict=True)
  ]
  mapped = jax.shard_map(
    body,
    mesh=mesh,
    in_specs=specs,
    out_specs=jax.P("data", "model") if out is None else out,
    check_vma=False,
  )
  return jax.jit(mapped).lower(*args).compile()


def ring(x, w):
  return all_gather_matmul(x, w, axis_name="model", gather_dim=0)


@pytest.mark.parametrize(
  "name, places",
  [
    ("v5e:2x4", SQUARES),
    ("v4:2x2x2", [(*place, z) for z in (0, 1) for place in SQUARES[:4]]),
  ],
)
def test_a_ring_is_permutes_with_products_between(name, places):
  report = overlap_report(compile_for(mesh_of(name, places), ring))
  assert report.chip == name.partition(":")[0]
  assert len(report.collectives) == 6  # three steps, both ways
  for c in report.collectives:
    assert (c.kind, c.axes, c.devices) == ("collective-permute", ("model",), 4)
    assert (c.nbytes, c.dtype) == (ROWS // 16 * WIDTH * 2, "bf16")
    assert (c.hops, c.runs, c.blocks) == (1, 1, False)
    assert c.products >= 1
    assert "collective_mm" in c.source
    assert c.op_name.endswith("ppermute")
  assert report.faults == ()
  report.assert_overlapped(min_hidden=0.9)


def test_the_fault_of_a_blocking_gather():
  def gather_first(x, w):
    return lax.all_gather(x, "model", axis=0, tiled=True) @ w

  report = overlap_report(
    compile_for(mesh_of("v5e:2x4", SQUARES), gather_first)
  )
  (c,) = report.collectives
  assert (c.kind, c.axes, c.devices) == ("all-gather", ("model",), 4)
  assert c.nbytes == ROWS // 2 * WIDTH * 2
  assert (c.blocks, c.hidden, c.faults) == (True, 0, ("blocks",))
  with pytest.raises(AssertionError, match=r"0\.0 % of the comm[\s\S]*blocks"):
    report.assert_overlapped()


def test_the_fault_of_a_float32_wire():
  def scatter(x, w):
    return matmul_reduce_scatter(
      x, w, axis_name="model", scatter_dim=0, wire_dtype=jnp.float32
    )

  compiled = compile_for(
    mesh_of("v5e:2x4", SQUARES),
    scatter,
    shapes=((ROWS, WIDTH), (WIDTH, WIDTH)),
    specs=(jax.P("data", "model"), jax.P("model", None)),
    out=TOKENS,
  )
  report = overlap_report(compiled)
  permutes = [c for c in report.collectives if c.kind == "collective-permute"]
  assert {c.dtype for c in permutes} == {"f32"}
  assert all("f32 on the wire" in c.faults for c in permutes)
  assert any("f32 on the wire" in fault for fault in report.faults)


def test_the_fault_of_a_ring_in_series():
  def product_then_send(x, w):
    ys = []
    for step in range(4):
      ys.append(x @ w)
      if step < 3:  # what goes on needs this product, and the next needs it
        x = x + ys[-1][:, :WIDTH]
        x = lax.ppermute(x, "model", [(i, (i + 1) % 4) for i in range(4)])
    return jnp.concatenate(ys)

  report = overlap_report(
    compile_for(mesh_of("v5e:2x4", SQUARES), product_then_send)
  )
  assert len(report.collectives) == 3
  for c in report.collectives:
    assert c.faults == ("no product between its start and its done",)
    assert c.hidden < 0.01
  with pytest.raises(AssertionError, match="3 collectives"):
    report.assert_overlapped(min_hidden=0.5)


def test_the_fault_of_a_hop_between_chips_that_are_no_neighbours():
  report = overlap_report(compile_for(mesh_of("v5e:2x4", LINES), ring))
  assert {c.hops for c in report.collectives} == {3}
  for c in report.collectives:
    assert c.faults == ("3 hops between neighbours of the ring",)


def test_a_gather_that_nobody_asked_for():
  mesh = mesh_of("v5e:2x4", SQUARES)

  def split_over_the_sum(x, w):
    return jnp.tanh(x) @ w  # the partitioner has to gather tanh(x)

  args = [
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    for shape, sharding in zip(
      ((ROWS, WIDTH), (WIDTH, FEATURES)),
      (jax.NamedSharding(mesh, COLUMNS), jax.NamedSharding(mesh, COLUMNS)),
      strict=True,
    )
  ]
  compiled = (
    jax.jit(split_over_the_sum, out_shardings=jax.NamedSharding(mesh, COLUMNS))
    .lower(*args)
    .compile()
  )
  report = overlap_report(compiled)
  (fault,) = {
    fault
    for c in report.collectives
    for fault in c.faults
    if c.kind == "all-gather" and "activation" in fault
  }
  assert fault == "gathers an activation, which the program did not ask for"
