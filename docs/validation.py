"""Replays programs whose times on hardware others have published.

    python docs/validation.py

Prints the tables of validation.md that one to two minutes on two CPU cores are
enough for; the page names the commands behind the others. Needs libtpu.
"""

from collections.abc import Callable

from profiling import platform

if __name__ == "__main__":  # before jax is imported
  platform.compile_only()

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm import all_gather_matmul, gate, make_mesh
from profiling import topology
from profiling.replay import Replay, replay

# marin-community/marin issue 6736: seconds of one `lax.ppermute`.
PERMUTES = (
  ("v5p:2x2x1", 1 << 20, 16.94e-6),
  ("v5p:2x2x1", 64 << 20, 781.98e-6),
  ("v6e:2x2", 16 << 10, 5.9e-6),
  ("v6e:2x2", 1 << 20, 17.45e-6),
  ("v6e:2x2", 64 << 20, 776.34e-6),
)
# AI-Hypercomputer/maxtext pull request 534: rows, width and features of an
# all-gather before a product on four devices, as the compiler partitions it.
MAXTEXT = ((2 * 8192, 16384, 16384), 13.68e-3)
# vllm-project/tpu-inference pull request 703: rows, width, features, and what a
# Pallas kernel gains over the compiler on eight devices of a v6e.
TPU_INFERENCE = (
  ((2048, 5120, 51200), 1.53),
  ((2048, 8192, 57344), 1.19),
  ((4096, 5120, 51200), 1.09),
)


def simulated(
  slice_name: str, step: Callable, shapes, specs, out, *, rings=False
) -> Replay:
  """The replay of `step` on all devices of a slice as one ring.

  Args:
    slice_name: such as "v5e:2x4".
    step: what to compile; with `rings`, what one device does.
    shapes: of its arguments, bfloat16.
    specs: of its arguments.
    out: spec of its result.
    rings: whether to open `jax.shard_map`, and compile for rings.
  """
  devices = topology.devices(slice_name)
  mesh = make_mesh(data=1, model=len(devices), devices=devices)
  placed = [
    jax.ShapeDtypeStruct(
      shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec)
    )
    for shape, spec in zip(shapes, specs, strict=True)
  ]
  options = {}
  if rings:
    step = jax.shard_map(step, mesh=mesh, in_specs=tuple(specs), out_specs=out)
    options = gate.compiler_options(slice_name.partition(":")[0])
  jitted = jax.jit(step, out_shardings=jax.NamedSharding(mesh, out))
  text = jitted.lower(*placed).compile(compiler_options=options).as_text()
  places = topology.coordinates(list(mesh.devices.flat))
  kind = devices[0].device_kind
  return replay(text, devices=places, chip=kind)


def permute(slice_name: str, nbytes: int) -> float:
  """Simulated seconds of a permute of `nbytes` a device to its neighbour."""

  def step(x):
    size = lax.axis_size("model")
    pairs = [(i, (i + 1) % size) for i in range(size)]
    return lax.ppermute(x, "model", pairs)

  spec = jax.P(None, "model")
  shape = (nbytes // 256, 128 * 4)
  run = simulated(slice_name, step, [shape], [spec], spec, rings=True)
  # The step also copies its argument, which a loop as was measured would not.
  (sent,) = (e for e in run.events if e.row == "collective-permute")
  return sent.end_s - sent.start_s


def gather_matmul(slice_name: str, shape, method: str) -> float:
  """Simulated seconds of `x[R_m, D] @ w[D, F_m] -> y[R, F_m]`, forward alone.

  Args:
    slice_name: the slice.
    shape: rows, width and features over all devices.
    method: "compiler", "two_way" or "roof", where `x` lies whole everywhere.
  """
  rows, width, features = shape
  x = jax.P() if method == "roof" else jax.P("model", None)
  columns = jax.P(None, "model")

  def ring(x, w):
    return all_gather_matmul(
      x, w, axis_name="model", gather_dim=0, schedule="two_way"
    )

  rings = method == "two_way"
  return simulated(
    slice_name,
    ring if rings else jnp.matmul,
    [(rows, width), (width, features)],
    [x, columns],
    columns,
    rings=rings,
  ).step_time_s


def main() -> None:
  print("| slice | bytes | measured us | simulated us | off by |")
  print("|---|---|---|---|---|")
  for name, nbytes, measured in PERMUTES:
    got = permute(name, nbytes)
    print(
      f"| {name} | {nbytes:,} | {1e6 * measured:.2f} | {1e6 * got:.2f} | "
      f"{got / measured - 1:+.0%} |",
      flush=True,
    )
  shape, measured = MAXTEXT
  print("\n| slice | measured ms | simulated ms | off by |\n|---|---|---|---|")
  for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1"):
    got = gather_matmul(name, shape, "compiler")
    print(
      f"| {name} | {1e3 * measured:.2f} | {1e3 * got:.2f} | "
      f"{got / measured - 1:+.0%} |",
      flush=True,
    )
  print(
    "\n| shape | gain measured | compiler ms | two_way ms | roof ms |", end=""
  )
  print(
    " compiler / two_way | compiler / roof |\n|---|---|---|---|---|---|---|"
  )
  for shape, gain in TPU_INFERENCE:
    auto, ring, roof = (
      gather_matmul("v6e:2x4", shape, method)
      for method in ("compiler", "two_way", "roof")
    )
    text = " x ".join(f"{n:,}" for n in shape)
    print(
      f"| {text} | {gain:.2f} | {1e3 * auto:.3f} | {1e3 * ring:.3f} | "
      f"{1e3 * roof:.3f} | {auto / ring:.2f} | {auto / roof:.2f} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
