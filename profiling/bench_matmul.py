r"""Times the collective matmuls on the devices that are here.

    python -m profiling.bench_matmul

Prints a Markdown table in under a minute on two CPU cores. Each op runs forward
and through both gradients by every method: roof (the local products alone),
unoverlapped, one-way ring, two-way ring. All of them must first agree with the
unoverlapped one. Sizes that tell something on an accelerator, for example
ViT-22B's q, k, v and MLP in one product:

    python -m profiling.bench_matmul --tokens 16384 --width 6144 \
      --features 43008 --dtype bfloat16
"""

import sys

from absl import app, flags

from profiling import platform

OPS = ("all_gather_matmul", "matmul_reduce_scatter")

_TOKENS = flags.DEFINE_integer(
  "tokens", 1024, "tokens, over all devices", lower_bound=1
)
_WIDTH = flags.DEFINE_integer("width", 512, "width of a token", lower_bound=1)
_FEATURES = flags.DEFINE_integer(
  "features", 2048, "features, over all devices", lower_bound=1
)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "dtype of inputs and outputs"
)
_MODEL_AXIS = flags.DEFINE_integer(
  "model_axis", None, "devices in the ring; all if not given", lower_bound=1
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", 10, "timed runs of each method", lower_bound=1
)


def main(argv: list[str]) -> int:
  """Runs the benchmark; returns the exit code."""
  if len(argv) > 1:
    return _refuse(f"only flags are understood, got {' '.join(argv[1:])}")
  chosen = platform.select(_MODEL_AXIS.value or 8)
  # What imports jax must come after the choice.
  import jax

  from collective_mm import make_mesh
  from profiling import matmul_methods, timing

  devices = jax.devices()
  size = _MODEL_AXIS.value or len(devices)
  if size > len(devices):
    return _refuse(
      f"--model_axis must be at most the number of devices here, "
      f"{len(devices)} ({chosen}), got {size}"
    )
  for flag in (_TOKENS, _FEATURES):
    if flag.value % size:
      return _refuse(
        f"--{flag.name} must be a multiple of the model axis, {size}, got "
        f"{flag.value}"
      )

  mesh = make_mesh(data=1, model=size, devices=devices[:size])
  print(
    f"Measured on {size} x {devices[0].device_kind} ({chosen}), jax "
    f"{jax.__version__}: forward and both gradients, {_TOKENS.value:,} tokens, "
    f"width {_WIDTH.value:,}, {_FEATURES.value:,} features, {_DTYPE.value}, "
    f"model axis {size}. ms, median [min, max] of {_ROUNDS.value} rounds, and "
    f"median over roof.\n"
  )
  print(f"| op | {' | '.join(matmul_methods.METHODS)} |")
  print(f"|---|{'---|' * len(matmul_methods.METHODS)}", flush=True)
  for op in OPS:
    problem = matmul_methods.Problem(
      op=op,
      tokens=_TOKENS.value,
      width=_WIDTH.value,
      features=_FEATURES.value,
      dtype=_DTYPE.value,
      mesh=mesh,
    )
    calls = matmul_methods.methods(problem)
    matmul_methods.check(problem, calls)
    times = timing.time_interleaved(calls, rounds=_ROUNDS.value)
    roof = times["roof"].median_s
    cells = " | ".join(_cell(times[name], roof) for name in times)
    print(f"| {op} | {cells} |", flush=True)
  if devices[0].platform == "cpu":
    print(
      "\nCPU figures say nothing about overlap: the devices share one "
      "machine's cores and memory."
    )
  return 0


def _cell(time, roof: float) -> str:
  median, low, high = (1e3 * s for s in (time.median_s, time.min_s, time.max_s))
  return f"{median:.2f} [{low:.2f}, {high:.2f}], {time.median_s / roof:.2f}x"


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit(_refuse(str(error)))


def _refuse(message: str) -> int:
  print(f"bench_matmul: {message}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  app.run(main, flags_parser=_parse)
