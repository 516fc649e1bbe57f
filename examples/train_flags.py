"""The command line of the trainer, turned into a config or one clear line."""

import dataclasses
from pathlib import Path
from typing import Literal

from absl import flags

from collective_mm.op_arguments import SCHEDULES
from examples.config_fields import assignment, read_file
from examples.hosts import Hosts
from examples.presets import PRESETS, TrainConfig, changed
from examples.run_folder import has_run, read_config
from examples.usage import UsageError, blame

_MODEL_FLAGS = ("width", "depth", "mlp", "heads")
_RUN_FLAGS = (
  "data",
  "init_from",
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
    resume: continue the run in `workdir`; "auto" starts it again if it has no
      checkpoint yet.
    hosts: where the other processes of the run are; None if there are none.
  """

  config: TrainConfig
  workdir: Path | None
  resume: bool | Literal["auto"]
  hosts: Hosts | None


def parse(argv: list[str]) -> Request | None:
  """Reads the command line; prints the help and returns None for `--help`.

  A run starts from its preset, or from its own `config.json` where it is
  resumed. `--config` changes what its file names, then each `--set` a field,
  then the other flags.

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
  hosts = _hosts(given)
  for name in ("resume", "auto_resume"):
    if given[name].value and given.workdir is None:
      raise UsageError(f"--{name} needs --workdir, the folder of the run")
  if hosts and given.workdir is None:
    raise UsageError(
      "--distributed needs --workdir, a folder that all hosts share"
    )
  workdir = given.workdir and Path(given.workdir)
  resume = given.resume
  if given.auto_resume and has_run(workdir):
    resume = "auto"
  return Request(
    config=_config(given, workdir, resume),
    workdir=workdir,
    resume=resume,
    hosts=hosts,
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
    "config", None, "TOML or JSON file of fields to change", **options
  )
  flags.DEFINE_multi_string(
    "set", [], "field to change, as optimizer.b2=0.99; may repeat", **options
  )
  flags.DEFINE_string(
    "workdir", None, "folder of the run [runs/PRESET-DATE-TIME]", **options
  )
  flags.DEFINE_bool("resume", False, "continue the run in --workdir", **options)
  flags.DEFINE_bool(
    "auto_resume",
    False,
    "continue the run in --workdir if there is one, else start it",
    **options,
  )
  flags.DEFINE_string(
    "data", None, "digits, or folder:PATH, images by class", **options
  )
  flags.DEFINE_string(
    "init_from",
    None,
    "weights to start from: run, .npz, .safetensors",
    **options,
  )
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
  flags.DEFINE_bool(
    "distributed",
    False,
    "one of several processes, each started with the same flags",
    **options,
  )
  flags.DEFINE_string(
    "coordinator", None, "address:port of process 0 [the cluster's]", **options
  )
  flags.DEFINE_integer(
    "num_processes", None, "processes of the run [the cluster's]", **count
  )
  flags.DEFINE_integer(
    "process_id", None, "which one this is [the cluster's]", 0, **options
  )
  flags.DEFINE_integer(
    "host_timeout", 100, "seconds to wait for a lost process", **count
  )
  return values


def _hosts(given) -> Hosts | None:
  named = ("coordinator", "num_processes", "process_id")
  values = [given[name].value for name in named]
  if not given.distributed:
    for name, value in zip(named, values, strict=True):
      if value is not None:
        raise UsageError(f"--{name} needs --distributed")
    return None
  coordinator, processes, index = values
  return Hosts(
    coordinator=coordinator,
    processes=processes,
    index=index,
    timeout_s=given.host_timeout,
  )


def _config(given, workdir, resume) -> TrainConfig:
  """The preset or the run's own config, changed as the flags say."""
  fields, blamed = {}, ""
  if given.config:
    blamed = f"--config={given.config}"
    with blame(blamed):
      fields = read_file(Path(given.config))
  named = fields.pop("preset", None)
  preset = given.preset or named
  if resume and not given.preset:
    config = read_config(workdir)
  elif preset is not None and preset not in PRESETS:
    raise UsageError(
      f"{blamed}: preset must be one of {', '.join(PRESETS)}, got {preset!r}"
    )
  else:
    config = PRESETS[preset or "digits"]
  with blame(blamed):
    config = changed(config, fields)
  for text in given.set:
    with blame(f"--set {text}"):
      config = changed(config, assignment(text))
  return _override(config, given)


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
      config = changed(config, {"optimizer": {"peak_lr": given.lr}})
  if given.steps is not None:
    optimizer = config.optimizer.stretched(given.steps)
    config = dataclasses.replace(config, optimizer=optimizer)
  if given.mesh is not None:
    config = dataclasses.replace(config, mesh=_mesh(given.mesh))
  if given.schedule is not None:
    config = dataclasses.replace(config, schedule=_schedule(given.schedule))
  config = dataclasses.replace(config, **changes(_RUN_FLAGS))
  if config.name == "finetune" and config.init_from is None:
    raise UsageError("--preset=finetune needs --init_from, weights to tune")
  return config


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
