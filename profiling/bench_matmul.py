r"""Times the collective matmuls: measured here, or simulated for TPUs.

    python -m profiling.bench_matmul
    python -m profiling.bench_matmul --simulate=v4,v5e,v5p,v6e

Both print Markdown tables of each op forward and through both gradients, by
the methods of `profiling.matmul_methods`.

The first measures on the devices that are here, in about a minute on two CPU
cores; all methods must first agree with the unoverlapped one. Sizes that tell
something on an accelerator, for example ViT-22B's q, k, v and MLP in one
product:

    python -m profiling.bench_matmul --shape=16384,6144,43008 --dtype=bfloat16

The second needs no TPU: it compiles for eight devices of each chip and replays
the compiler's schedule, a quarter of an hour for all four on one core. The
compiler's own collective matmul stands in three columns, for its three modes.
All but "roof" and "unoverlapped" are compiled with the options of
`collective_mm.gate.compiler_options`.
"""

import dataclasses
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata

from absl import app, flags

from profiling import platform

_SIMULATE = flags.DEFINE_list(
  "simulate", [], "chips to simulate on, such as v4,v6e; measure if not given"
)
_OPS = flags.DEFINE_list("op", [], "ops; both if not given")
_SHAPES = flags.DEFINE_multi_string(
  "shape",
  [],
  "tokens,width,features over all devices; may be given more than once; "
  "1024,512,2048 or large ones for each chip if not given",
)
_METHODS = flags.DEFINE_list("methods", [], "methods; all if not given")
_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16"],
  "dtype of inputs and outputs; float32 measured, bfloat16 simulated if not "
  "given",
)
_JSON = flags.DEFINE_string(
  "json", None, "file to append a line to for each time"
)
_MODEL_AXIS = flags.DEFINE_integer(
  "model_axis",
  None,
  "devices in the ring when measured; all if not given",
  lower_bound=1,
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", 10, "timed runs of each method when measured", lower_bound=1
)


def main(argv: list[str]) -> int:
  """Runs the benchmark; returns the exit code."""
  try:
    if len(argv) > 1:
      raise flags.Error(f"only flags are understood, got {' '.join(argv[1:])}")
    if _SIMULATE.value:
      _simulate()
    else:
      _measure()
  except (flags.Error, MemoryError, OSError) as error:
    return _refuse(str(error))
  return 0


def _measure() -> None:
  chosen = platform.select(_MODEL_AXIS.value or 8)
  # What imports jax must come after the choice.
  import jax

  from collective_mm import make_mesh
  from profiling import matmul_methods, timing

  devices = jax.devices()
  size = _MODEL_AXIS.value or len(devices)
  if size > len(devices):
    raise flags.Error(
      f"--model_axis must be at most the number of devices here, "
      f"{len(devices)} ({chosen}), got {size}"
    )
  ops = _among("op", _OPS.value, matmul_methods.OPS)
  names = _among("methods", _METHODS.value, matmul_methods.METHODS)
  shapes = _shapes(size) or [(1024, 512, 2048)]
  dtype = _DTYPE.value or "float32"
  over_roof = ", and median over roof" if "roof" in names else ""

  mesh = make_mesh(data=1, model=size, devices=devices[:size])
  print(
    f"Measured on {size} x {devices[0].device_kind} ({chosen}), jax "
    f"{jax.__version__}: forward and both gradients, {dtype}, model axis "
    f"{size}. ms, median [min, max] of {_ROUNDS.value} rounds{over_roof}.\n"
  )
  _print_header("op", "tokens x width x features", *names)
  for op in ops:
    for shape in shapes:
      problem = _problem(op, shape, dtype, mesh)
      calls = matmul_methods.methods(problem, names)
      matmul_methods.check(problem, calls)
      times = timing.time_interleaved(calls, rounds=_ROUNDS.value)
      roof = times.get("roof")
      _print_row(op, _text(shape), *(_cell(t, roof) for t in times.values()))
      for method, time in times.items():
        _write_json(
          {
            "what": "measured",
            "device_kind": devices[0].device_kind,
            "model_axis": size,
            **_fields(problem, method),
            "median_ms": 1e3 * time.median_s,
            "min_ms": 1e3 * time.min_s,
            "max_ms": 1e3 * time.max_s,
            "jax": jax.__version__,
          }
        )
  if devices[0].platform == "cpu":
    print(
      "\nCPU figures say nothing about overlap: the devices share one "
      "machine's cores and memory."
    )


def _simulate() -> None:
  for flag in (_MODEL_AXIS, _ROUNDS):
    if flag.present:
      raise flags.Error(f"--{flag.name} is for what is measured, not simulated")
  platform.compile_only()
  from profiling import matmul_methods, simulate_matmul

  chips = _among("simulate", _SIMULATE.value, simulate_matmul.SLICES)
  ops = _among("op", _OPS.value, matmul_methods.OPS)
  names = _among("methods", _METHODS.value, simulate_matmul.METHODS)
  dtype = _DTYPE.value or "bfloat16"
  given = _shapes(simulate_matmul.RING)
  try:
    versions = {name: metadata.version(name) for name in ("jax", "libtpu")}
  except metadata.PackageNotFoundError:
    raise flags.Error(
      "--simulate needs the TPU compiler, the libtpu wheel of jax[tpu], which "
      "exists for Linux on x86-64"
    ) from None

  print(
    f"Simulated, jax {versions['jax']}, libtpu {versions['libtpu']}: compiled "
    f"for {', '.join(simulate_matmul.SLICES[chip] for chip in chips)}, model "
    f"axis {simulate_matmul.RING} on neighbouring chips, and the schedule "
    f"replayed. Forward and both gradients together, {dtype}, ms.\n"
    f"`python -m profiling.bench_matmul {shlex.join(sys.argv[1:])}`\n"
  )
  ratios = {
    f"{title} / auto": (chosen, [])
    for title, among in simulate_matmul.BASELINES.items()
    if "auto" in names and (chosen := [n for n in names if n in among])
  }
  _print_header("chip", "op", "tokens x width x features", *names, *ratios)
  for chip in chips:
    simulator = simulate_matmul.Simulator(chip)
    for shape in given or [simulate_matmul.SHAPES[chip]]:
      for op in ops:
        problem = _problem(op, shape, dtype, simulator.mesh)
        runs = {name: simulator.run(problem, name) for name in names}
        cells = [f"{run.step_time_ms:.2f}" for run in runs.values()]
        for among, found in ratios.values():
          best = min(runs[name].step_time_ms for name in among)
          found.append(best / runs["auto"].step_time_ms)
          cells.append(f"{found[-1]:.3f}")
        _print_row(chip, op, _text(shape), *cells)
        for name, run in runs.items():
          _write_json(
            {
              "what": "simulated",
              "slice": simulate_matmul.SLICES[chip],
              "model_axis": simulate_matmul.RING,
              **_fields(problem, name),
              **dataclasses.asdict(run),
              **versions,
            }
          )
  for title, (_, found) in ratios.items():
    print(
      f"\n{title}: {statistics.geometric_mean(found):.3f} in geometric "
      f"mean, {min(found):.3f} at least, of {len(found)}."
    )


def _among(flag: str, given: list[str], known: Sequence[str]) -> list[str]:
  """What a flag chose, in the order of `known`, or all of it."""
  for name in given:
    if name not in known:
      raise flags.Error(
        f"--{flag} must be some of {','.join(known)}, got {name}"
      )
  return [name for name in known if name in (given or known)]


def _shapes(ring: int) -> list[tuple[int, int, int]]:
  """The shapes that were asked for."""
  shapes = []
  for text in _SHAPES.value:
    try:
      tokens, width, features = map(int, text.split(","))
      fits = min(tokens, width, features) > 0
    except ValueError:
      fits = False
    if not fits or tokens % ring or features % ring:
      raise flags.Error(
        f"--shape must be tokens,width,features, three positive numbers, the "
        f"first and last multiples of the model axis, {ring}; got {text}"
      )
    shapes.append((tokens, width, features))
  return shapes


def _problem(op: str, shape: tuple[int, int, int], dtype: str, mesh):
  from profiling.matmul_methods import Problem

  tokens, width, features = shape
  return Problem(
    op=op, tokens=tokens, width=width, features=features, dtype=dtype, mesh=mesh
  )


def _fields(problem, method: str) -> dict[str, str | int]:
  return {
    "op": problem.op,
    "tokens": problem.tokens,
    "width": problem.width,
    "features": problem.features,
    "dtype": problem.dtype,
    "method": method,
  }


def _text(shape: tuple[int, int, int]) -> str:
  return " x ".join(f"{n:,}" for n in shape)


def _cell(time, roof) -> str:
  median, low, high = (1e3 * s for s in (time.median_s, time.min_s, time.max_s))
  ratio = f", {time.median_s / roof.median_s:.2f}x" if roof else ""
  return f"{median:.2f} [{low:.2f}, {high:.2f}]{ratio}"


def _print_header(*cells: str) -> None:
  _print_row(*cells)
  print(f"|{'---|' * len(cells)}", flush=True)


def _print_row(*cells: str) -> None:
  print(f"| {' | '.join(cells)} |", flush=True)


def _write_json(fields: dict) -> None:
  if _JSON.value:
    with open(_JSON.value, "a") as file:
      file.write(json.dumps(fields) + "\n")


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
