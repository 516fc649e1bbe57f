"""The folder of one run: claimed once, recognised when the run continues."""

import dataclasses
import json
import os
import time
from pathlib import Path

from examples.presets import TrainConfig, from_json
from examples.usage import UsageError, blame


def fresh(name: str) -> Path:
  """Returns a folder under `runs/` that is named for this moment."""
  return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def claim(workdir: Path, config: TrainConfig) -> None:
  """Makes the folder of a new run and writes its `config.json`.

  Raises:
    UsageError: if the folder holds anything already or cannot be written.
  """
  with blame(f"--workdir={workdir}"):
    workdir.mkdir(parents=True, exist_ok=True)
    taken = any(workdir.iterdir())
  if taken:
    raise UsageError(
      f"--workdir={workdir}: the folder is not empty; name another, or add "
      "--resume to continue the run in it"
    )
  write_config(workdir, config)


def write_config(workdir: Path, config: TrainConfig) -> None:
  """Writes `config.json`, whole or not at all.

  Raises:
    UsageError: if it cannot be written.
  """
  path = workdir / "config.json"
  partial = path.with_suffix(".tmp")
  with blame(f"--workdir={workdir}"):
    partial.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    os.replace(partial, path)


def read_config(workdir: Path) -> TrainConfig:
  """Returns the config of the run in `workdir`.

  Raises:
    UsageError: if there is none, or it cannot be read.
  """
  path = workdir / "config.json"
  with blame(f"--resume --workdir={workdir}"):
    try:
      return from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(f"{path} is not the config of a run") from error


def check_same_run(workdir: Path, config: TrainConfig) -> None:
  """Refuses to continue a run as another: other parameters, other batches.

  Raises:
    UsageError: if the run in `workdir` has another model, optimiser, data set,
      batch or seed than `config`.
  """
  before, now = (_identity(c) for c in (read_config(workdir), config))
  for name, value in before.items():
    if now[name] != value:
      raise UsageError(
        f"--resume --workdir={workdir}: that run has {name}={value}, "
        f"got {name}={now[name]}"
      )


def _identity(config: TrainConfig) -> dict:
  return {
    **dataclasses.asdict(config.model),
    "optimizer kind": config.optimizer.kind,
    "data": config.data,
    "batch": config.batch,
    "seed": config.seed,
  }
