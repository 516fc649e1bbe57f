"""The command line of the trainer, turned into a config or one clear line."""

import dataclasses
from pathlib import Path

from absl import flags

from collective_mm.op_arguments import SCHEDULES
from examples.presets import PRESETS, TrainConfig
from examples.run_folder import read_config
from examples.usage import UsageError, blame

_MODEL_FLAGS = ("width", "depth", "mlp", "heads")
_RUN_FLAGS = (
  "batch",
  "seed",
  "layout",
  "compute_dtype",
  "log_every",
  "eval_every",
  "checkpoint_every",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What the user asked for.

  Attributes:
    config: the run.
    workdir: its folder; None for a fresh one under `runs/`.
    resume: continue the run in `workdir`.
  """

  config: TrainConfig
  workdir: Path | None
  resume: bool


def parse(argv: list[str]) -> Request | None:
  """Reads the command line; prints the help and returns None for `--help`.

  A run that is resumed starts from its own `config.json`; flags that are given
  change a field each.

  Args:
    argv: as `sys.argv`, the program's name first.

  Raises:
    UsageError: if a flag is unknown or its value cannot be.
  """
  given = _define()
  try:
    rest = given(argv)[1:]
  except flags.Error as error:
    raise UsageError(str(error).removeprefix("flag ")) from error
  if rest:
    raise UsageError(f"flags look like --name=value, got {rest[0]!r}")
  if given.help:
    print("python -m examples.train [--flag=value ...]\n", given.get_help())
    return None
  if given.resume and given.workdir is None:
    raise UsageError("--resume needs --workdir, the folder of the run")
  workdir = given.workdir and Path(given.workdir)
  return Request(
    config=_override(_base(given, workdir), given),
    workdir=workdir,
    resume=given.resume,
  )


def _define() -> flags.FlagValues:
  values = flags.FlagValues()
  options = {"flag_values": values}
  count = {"lower_bound": 1, **options}
  flags.DEFINE_bool("help", False, "show this help", short_name="h", **options)
  flags.DEFINE_enum(
    "preset", None, list(PRESETS), "what to train [digits]", **options
  )
  flags.DEFINE_string(
    "workdir", None, "folder of the run [runs/PRESET-DATE-TIME]", **options
  )
  flags.DEFINE_bool("resume", False, "continue the run in --workdir", **options)
  flags.DEFINE_integer(
    "steps", None, "length of the run; stretches the schedule", **count
  )
  flags.DEFINE_integer("batch", None, "images a step, all devices", **count)
  flags.DEFINE_float("lr", None, "peak learning rate", **options)
  flags.DEFINE_integer("seed", None, "of everything random", 0, **options)
  flags.DEFINE_list("mesh", None, "devices on data,model", **options)
  flags.DEFINE_enum(
    "layout",
    None,
    ["tokens", "features"],
    "dim of the activations that the model axis shards",
    **options,
  )
  flags.DEFINE_list(
    "schedule",
    None,
    f"of the collective matmuls, or forward,backward: {', '.join(SCHEDULES)}",
    **options,
  )
  flags.DEFINE_enum(
    "compute_dtype",
    None,
    ["float32", "bfloat16"],
    "of matmul operands",
    **options,
  )
  for name in _MODEL_FLAGS:
    flags.DEFINE_integer(name, None, "of the model", **count)
  for name in ("log", "eval", "checkpoint"):
    flags.DEFINE_integer(f"{name}_every", None, "steps", **count)
  return values


def _base(given, workdir) -> TrainConfig:
  """The config that the other flags change."""
  if not given.resume or given.preset:
    return PRESETS[given.preset or "digits"]
  return read_config(workdir)


def _override(config: TrainConfig, given: flags.FlagValues) -> TrainConfig:
  def changes(names):
    return {n: given[n].value for n in names if given[n].value is not None}

  model = changes(_MODEL_FLAGS)
  with blame(" ".join(f"--{name}={size}" for name, size in model.items())):
    config = dataclasses.replace(
      config, model=dataclasses.replace(config.model, **model)
    )
  if given.lr is not None:
    with blame(f"--lr={given.lr}"):
      optimizer = dataclasses.replace(config.optimizer, peak_lr=given.lr)
      config = dataclasses.replace(config, optimizer=optimizer)
  if given.steps is not None:
    optimizer = config.optimizer.stretched(given.steps)
    config = dataclasses.replace(config, optimizer=optimizer)
  if given.mesh is not None:
    config = dataclasses.replace(config, mesh=_mesh(given.mesh))
  if given.schedule is not None:
    config = dataclasses.replace(config, schedule=_schedule(given.schedule))
  return dataclasses.replace(config, **changes(_RUN_FLAGS))


def _schedule(names: list[str]) -> str | tuple[str, str]:
  if not 1 <= len(names) <= 2 or any(name not in SCHEDULES for name in names):
    raise UsageError(
      f"--schedule={','.join(names)}: must be one of "
      f"{', '.join(SCHEDULES)}, or two of them, forward,backward"
    )
  return names[0] if len(names) == 1 else (names[0], names[1])


def _mesh(sizes: list[str]) -> tuple[int, int]:
  try:
    data, model = map(int, sizes)
  except ValueError as error:
    raise UsageError(
      f"--mesh={','.join(sizes)}: must be two whole numbers, data,model"
    ) from error
  return data, model
