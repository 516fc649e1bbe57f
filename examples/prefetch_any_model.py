"""Weights a layer ahead, for a stack of Llama-style MLPs.

    python -m examples.prefetch_any_model
    python -m examples.prefetch_any_model v5e:2x4

The first runs the stack's gradients on the devices that are here, with and
without prefetch; the second compiles them for a TPU slice that need not be
here. Both print what hides behind what; on a CPU every collective blocks.
"""

import sys

from profiling import platform

LAYERS = 4


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  platform.select(devices=8)
  import jax
  import jax.numpy as jnp

  from collective_mm import (
    gate,
    make_mesh,
    overlap_report,
    prefetch_scan,
  )
  from collective_mm.axis_rings import axis_rings
  from profiling import topology

  try:
    devices = topology.devices(argv[1]) if len(argv) > 1 else jax.devices()
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  mesh = make_mesh(data=len(devices), model=1, devices=devices)
  cut, rows = jax.P(None, "data"), jax.P("data")
  specs = {"norm": jax.P(), "gate": cut, "up": cut, "down": cut}

  def layer(w, x):  # written for whole weights: x[B, D], gate[D, F], down[F, D]
    y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    y = (y * w["norm"]).astype(w["up"].dtype)
    y = (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]
    return x + y.astype(x.dtype)

  def gradients(distance):
    def stack(params, x):  # in place of jax.lax.scan
      return prefetch_scan(
        layer, x, params, specs=specs, distance=distance,
        rings=axis_rings(mesh, "data"),
      )  # fmt: skip

    run = jax.shard_map(
      stack, mesh=mesh, in_specs=(specs, rows), out_specs=rows
    )
    return jax.jit(
      jax.grad(lambda params, x: jnp.square(run(params, x)).mean())
    )

  d, f, b = (4096, 16384, 4096) if len(argv) > 1 else (64, 256, 16)
  shapes = {"norm": (d,), "gate": (d, f), "up": (d, f), "down": (f, d)}

  def array(shape, spec):
    sharding = jax.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

  params = {k: array((LAYERS, *s), specs[k]) for k, s in shapes.items()}
  args = params, array((b * len(devices), d), rows)
  options = gate.compiler_options(devices[0].device_kind, prefetch=True)
  compiled = gradients(1).lower(*args).compile(compiler_options=options)
  print(overlap_report(compiled))
  if len(argv) == 1:

    def draw(a):
      x = jax.random.normal(jax.random.key(0), a.shape) / 8
      return jax.device_put(x, a.sharding)

    args = jax.tree.map(draw, args)
    got, want = compiled(*args), gradients(0)(*args)
    same = jax.tree.map(jnp.array_equal, got, want)
    said = "equal" if all(same.values()) else "not equal"
    print(f"the gradients are {said} to those without prefetch")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
