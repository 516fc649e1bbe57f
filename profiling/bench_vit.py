r"""Times the trainer's real step on the devices that are here.

    python -m profiling.bench_vit

Prints a Markdown table in under a minute on two CPU cores. The methods are
schedules of the collective matmuls, side by side, and on one device the model's
twin in plain jnp, or with flax.linen. They must first agree on loss and
gradient norm. Then they take turns, one step each a round. ViT-L on one GPU:

    python -m profiling.bench_vit --model=vit_l --batch=64 --dtype=bfloat16 \
      --schedules=unoverlapped --twins=plain,linen

ViT-22B on a TPU slice of 1,024 chips, started on every host:

    python -m profiling.bench_vit --distributed --model=vit_22b --mesh=256,4 \
      --batch=65536 --dtype=bfloat16 --remat --optimizer=adafactor \
      --schedules=unoverlapped,auto --trace_dir=trace --out_dir=results

`--out_dir` gets `results.jsonl`, TensorBoard events and `table.md`;
`--trace_dir` a profiler trace in which each step bears its method's name.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

from absl import app, flags

from profiling import platform

_MODEL = flags.DEFINE_string("model", "vit_tiny", "a name of the ViT family")
_SIZES = {
  name: flags.DEFINE_integer(
    name, None, "of the model, if not its own", lower_bound=1
  )
  for name in ("depth", "width", "mlp", "heads", "classes", "image")
}
flags.DEFINE_alias("layers", "depth")
_BATCH = flags.DEFINE_integer(
  "batch", None, "images, over all devices; 4 a device if not given", 1
)
_MESH = flags.DEFINE_list(
  "mesh", None, "devices on data,model; model up to 4 if not given"
)
_WHOLE_DIMS = flags.DEFINE_bool(
  "whole_dims", False, "lay the model axis along whole dims (make_mesh)"
)
_LAYOUT = flags.DEFINE_enum(
  "layout", "tokens", ["tokens", "features"], "dim that the model axis shards"
)
_SCHEDULES = flags.DEFINE_list(
  "schedules",
  ["unoverlapped", "auto"],
  "schedules of the collective matmuls, the first what others are held to",
)
_TWINS = flags.DEFINE_list(
  "twins",
  ["plain"],
  "on one device, the same model otherwise written: plain (jnp), linen (flax)",
)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "dtype of matmul operands"
)
_REMAT = flags.DEFINE_bool("remat", False, "recompute each block in backward")
_OPTIMIZER = flags.DEFINE_enum(
  "optimizer", "adam", ["adam", "adafactor"], "with ViT-22B's numbers"
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", 5, "timed steps of each method", lower_bound=1
)
_WARMUP = flags.DEFINE_integer(
  "warmup", 1, "steps of each method before them", lower_bound=0
)
_TRACE_DIR = flags.DEFINE_string(
  "trace_dir", None, "folder for a profiler trace of three more rounds"
)
_OUT_DIR = flags.DEFINE_string(
  "out_dir", None, "folder for results.jsonl, TensorBoard events and table.md"
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "one of several processes, each started the same way"
)
_TRACED = 3


def main(argv: list[str]) -> int:
  """Runs the benchmark; returns the exit code."""
  if len(argv) > 1:
    return _refuse(f"only flags are understood, got {' '.join(argv[1:])}")
  chosen = platform.select(8)
  import jax

  try:
    if _DISTRIBUTED.value:
      _join()
    problem = _problem()
    if _OUT_DIR.value:
      Path(_OUT_DIR.value).mkdir(parents=True, exist_ok=True)
  except (OSError, ValueError) as error:
    return _refuse(str(error))
  _bench(problem, chosen, speaks=jax.process_index() == 0)
  return 0


def _join() -> None:
  """Makes this process one of a job, as its cluster says."""
  import jax

  try:
    jax.distributed.initialize()
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(
      f"--distributed needs a TPU slice, Slurm or Open MPI, in whose "
      f"environment jax finds the other processes: {reason}"
    ) from error


def _problem():
  import jax

  from collective_mm import make_mesh
  from collective_mm.op_arguments import SCHEDULES
  from models.sharding import check_mesh
  from models.vit_config import get_config
  from profiling.vit_methods import TWINS, Problem

  changes = {
    name: size.value for name, size in _SIZES.items() if size.value is not None
  }
  cfg = get_config(_MODEL.value, **changes)
  if not _SCHEDULES.value or set(_SCHEDULES.value) - set(SCHEDULES):
    raise ValueError(
      f"--schedules must be some of {','.join(SCHEDULES)}, got "
      f"{','.join(_SCHEDULES.value)}"
    )
  if set(_TWINS.value) - set(TWINS):
    raise ValueError(
      f"--twins must be some of {','.join(TWINS)}, got {','.join(_TWINS.value)}"
    )
  if "linen" in _TWINS.value and importlib.util.find_spec("flax") is None:
    raise ValueError("--twins=linen needs flax, which is not installed")
  count = jax.device_count()
  model = math.gcd(4, count, cfg.heads, cfg.mlp)
  data, model = _mesh_sizes() or (count // model, model)
  mesh = make_mesh(data=data, model=model, whole_dims=_WHOLE_DIMS.value)
  batch = _BATCH.value or 4 * mesh.size
  if "linen" in _TWINS.value and mesh.size > 1:
    raise ValueError(f"--twins=linen is for one device, got {mesh.size}")
  check_mesh(cfg, mesh, batch, _LAYOUT.value)
  return Problem(
    cfg=cfg,
    mesh=mesh,
    whole_dims=_WHOLE_DIMS.value,
    batch=batch,
    layout=_LAYOUT.value,
    compute_dtype=_DTYPE.value,
    remat=_REMAT.value,
    optimizer=_OPTIMIZER.value,
    schedules=tuple(dict.fromkeys(_SCHEDULES.value)),
    twins=tuple(dict.fromkeys(_TWINS.value)),
  )


def _mesh_sizes() -> tuple[int, int] | None:
  if _MESH.value is None:
    return None
  try:
    data, model = map(int, _MESH.value)
  except ValueError as error:
    raise ValueError(
      f"--mesh must be two whole numbers, data,model, got "
      f"{','.join(_MESH.value)}"
    ) from error
  return data, model


def _bench(problem, chosen: str, *, speaks: bool) -> None:
  import jax

  from profiling import timing, vit_methods

  methods = vit_methods.Methods(problem)
  expected = methods.check()
  times = timing.time_interleaved(
    methods.calls, rounds=_ROUNDS.value, warmup=_WARMUP.value
  )
  on_device = _traced(methods.calls)
  if not speaks:
    return
  records = [
    _record(problem, name, time, on_device.get(name))
    for name, time in times.items()
  ]
  text = _table(problem, chosen, expected, records)
  print(text)
  if _OUT_DIR.value:
    folder = Path(_OUT_DIR.value)
    (folder / "table.md").write_text(f"{text}\n")
    with (folder / "results.jsonl").open("a") as lines:
      for record in records:
        lines.write(json.dumps(record | expected) + "\n")
    _write_events(folder, times, records)
  if jax.default_backend() == "cpu":
    print(
      "\nCPU figures say nothing about overlap: the devices share one "
      "machine's cores and memory."
    )


def _traced(calls) -> dict[str, float]:
  """Median seconds of each method on the device, where a trace tells.

  Only a TPU's does; elsewhere a trace is made for `--trace_dir` alone.
  """
  import jax

  from profiling.device_time import program_seconds

  if not _TRACE_DIR.value and jax.default_backend() != "tpu":
    return {}
  with contextlib.ExitStack() as stack:
    folder = _TRACE_DIR.value or stack.enter_context(
      tempfile.TemporaryDirectory()
    )
    with jax.profiler.trace(folder):
      for step in range(_TRACED):
        for name, call in calls.items():
          with jax.profiler.StepTraceAnnotation(name, step_num=step):
            jax.block_until_ready(call())
    seconds = program_seconds(folder)
  if seconds is None or len(seconds) != _TRACED * len(calls):
    return {}
  return {
    name: statistics.median(seconds[i :: len(calls)])
    for i, name in enumerate(calls)
  }


def _record(problem, name: str, time, device_s: float | None) -> dict:
  """One method's line of results."""
  import jax

  from profiling.flops import throughput, vit_flops_per_token

  devices = list(problem.mesh.devices.flat)
  step_s = device_s or time.median_s
  rates = throughput(
    problem.tokens / step_s, vit_flops_per_token(problem.cfg), devices
  )
  return {
    "what": "measured",
    "method": name,
    "model": _MODEL.value,
    **dataclasses.asdict(problem.cfg),
    "batch": problem.batch,
    "tokens": problem.tokens,
    "mesh": dict(problem.mesh.shape),
    "whole_dims": problem.whole_dims,
    "layout": problem.layout,
    "dtype": problem.compute_dtype,
    "remat": problem.remat,
    "optimizer": problem.optimizer,
    "device_kind": devices[0].device_kind,
    "processes": jax.process_count(),
    "jax": jax.__version__,
    "median_ms": 1e3 * time.median_s,
    "min_ms": 1e3 * time.min_s,
    "max_ms": 1e3 * time.max_s,
    "rounds": time.rounds,
    "device_ms": None if device_s is None else 1e3 * device_s,
    **dataclasses.asdict(rates),
    "hbm_peak_bytes": _hbm_peak(),
  }


def _hbm_peak() -> int | None:
  """The most memory that any device of this process has held, all methods."""
  import jax

  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  return max(peaks) if peaks else None


def _table(problem, chosen: str, expected, records: list[dict]) -> str:
  import jax

  cfg, first = problem.cfg, records[0]
  mesh = " x ".join(f"{n} {axis}" for axis, n in problem.mesh.shape.items())
  peak = first["hbm_peak_bytes"]
  held = "n/a" if peak is None else f"{peak / (1 << 30):.2f} GiB"
  timed = any(record["device_ms"] is not None for record in records)
  rates = "the device's time" if timed else "the median of wall time"
  lines = [
    f"Measured on {problem.mesh.size} x {first['device_kind']} ({chosen}), "
    f"{jax.process_count()} process{'es' * (jax.process_count() > 1)}, jax "
    f"{jax.__version__}: the training step of {_MODEL.value}, depth "
    f"{cfg.depth}, width {cfg.width}, mesh {mesh}, {problem.layout} sharded, "
    f"{problem.batch:,} images, {problem.compute_dtype}, {problem.optimizer}"
    f"{', remat' * problem.remat}.",
    f"`{shlex.join(['python', '-m', 'profiling.bench_vit', *sys.argv[1:]])}`",
    "",
    f"All methods agree on the first step within {problem.tolerance:.1e}: loss "
    f"{expected['loss']:.6g}, gradient norm {expected['grad_norm']:.6g}. Wall "
    f"time is median [min, max] of {first['rounds']} rounds; tokens/s and MFU "
    f"({first['mfu_note']}) are of {rates}. HBM peak of all methods: {held}.",
    "",
    "| method | wall ms | device ms | tokens/s per device | per chip | "
    "per TensorCore | MFU |",
    "|---|---|---|---|---|---|---|",
  ]
  lines += [
    f"| {r['method']} | {r['median_ms']:,.2f} [{r['min_ms']:,.2f}, "
    f"{r['max_ms']:,.2f}] | {_figure(r['device_ms'], ',.2f')} | "
    f"{_figure(r['tokens_per_s_per_device'])} | "
    f"{_figure(r['tokens_per_s_per_chip'])} | "
    f"{_figure(r['tokens_per_s_per_tensor_core'])} | "
    f"{_figure(r['mfu'], '.1%')} |"
    for r in records
  ]
  return "\n".join(lines)


def _figure(value: float | None, form: str = ",.0f") -> str:
  return "n/a" if value is None else format(value, form)


def _write_events(folder: Path, times, records: list[dict]) -> None:
  import tensorboardX

  # One run of TensorBoard for each method, so that they share their charts.
  for record in records:
    name = record["method"]
    with tensorboardX.SummaryWriter(str(folder / name)) as writer:
      for i, seconds in enumerate(times[name].times_s):
        writer.add_scalar("step/wall_ms", 1e3 * seconds, i)
      for key in ("tokens_per_s_per_device", "mfu", "device_ms"):
        if record[key] is not None:
          writer.add_scalar(f"summary/{key}", record[key], 0)


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit(_refuse(str(error)))


def _refuse(message: str) -> int:
  print(f"bench_vit: {message}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  app.run(main, flags_parser=_parse)
