"""What the TPU compiler makes of a prefetched stack, without a TPU."""

import jax
import jax.numpy as jnp
import pytest

from collective_mm import gate, make_mesh, overlap_report, prefetch_scan
from collective_mm.placement import axis_rings
from profiling import topology

P = jax.P
LENGTH, WIDTH, HIDDEN = 6, 4096, 16384
SPECS = {
  "up": P(None, "data", "model"),
  "down": P(None, ("model", "data"), None),
}


def compiled_stack(name, model, rows):
  """The gradients of a stack of MLPs, `rows` tokens a chip."""
  pytest.importorskip("libtpu")
  devices = topology.devices(name)
  mesh = make_mesh(data=len(devices) // model, model=model, devices=devices)
  x_spec = P("data")

  def layer(w, x):
    y = jax.nn.gelu(x @ w["up"]) @ w["down"]
    return x + (jax.lax.psum(y, "model") if model > 1 else y)

  def loss(params, x):
    y = prefetch_scan(
      layer, x, params, specs=SPECS, rings=axis_rings(mesh, "data")
    )
    return jnp.square(y.astype(jnp.float32)).sum()

  mapped = jax.shard_map(
    jax.grad(loss),
    mesh=mesh,
    in_specs=(SPECS, x_spec),
    out_specs=SPECS,
    check_vma=False,
  )

  def array(shape, spec, dtype):
    sharding = jax.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  shapes = {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
  params = {
    k: array((LENGTH, *s), SPECS[k], jnp.float32) for k, s in shapes.items()
  }
  x = array((rows * len(devices) // model, WIDTH), x_spec, jnp.bfloat16)
  options = gate.compiler_options(name.partition(":")[0], prefetch=True)
  return jax.jit(mapped).lower(params, x).compile(compiler_options=options)


def check(name, rows):
  report = overlap_report(compiled_stack(name, 1, rows))
  in_loops = [c for c in report.collectives if c.runs > 1]
  kinds = {c.kind for c in in_loops}
  # A reduction has no blocking form, nor does a gather become an all-reduce.
  assert kinds == {"all-gather", "collective-permute"}
  sends = [c for c in in_loops if c.kind == "collective-permute"]
  assert len(sends) >= 2 * len(SPECS)
  assert min(c.hidden for c in sends) > 0.99
  gathers = [c for c in in_loops if c.kind == "all-gather"]
  assert {c.dtype for c in gathers} == {"bf16"}
  # Two layers of forward a trip, and one of backward.
  assert len(gathers) == 3 * len(SPECS)
  return gathers


@pytest.mark.tpu_compiler
def test_reductions_hide_behind_the_next_layer():
  gathers = check("v4:2x2x2", 16384)
  assert sum(c.hidden < 0.99 for c in gathers) <= 1


@pytest.mark.long
@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  "name", ["v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8"]
)
def test_reductions_hide_on_larger_slices(name):
  check(name, 16384)
