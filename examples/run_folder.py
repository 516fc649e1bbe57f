"""The folder of one run: claimed once, recognised when the run continues."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import jax

from examples.presets import TrainConfig, from_json
from examples.usage import UsageError, blame

NONFINITE = "nonfinite.json"
_ROOT = Path(__file__).parents[1]
_PACKAGES = ("jax", "jaxlib", "libtpu", "numpy", "optax", "orbax-checkpoint")


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
    # Not what is left of a run that was killed while it wrote its config.
    taken = any(path.name != "config.tmp" for path in workdir.iterdir())
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


def record_start(workdir: Path, step: int, mesh: jax.sharding.Mesh) -> None:
  """Adds a line to `starts.jsonl`: what runs from this step on, and where.

  Raises:
    UsageError: if it cannot be written.
  """
  record = {
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "step": step,
    "command": sys.orig_argv,
    "git": _revision(),
    "versions": {"python": platform.python_version()} | _versions(),
    "mesh": dict(mesh.shape),
    "device": mesh.devices.flat[0].device_kind,
    "processes": jax.process_count(),
  }
  path = workdir / "starts.jsonl"
  with blame(f"--workdir={workdir}"), path.open("a") as lines:
    lines.write(json.dumps(record) + "\n")


def record_nonfinite(
  workdir: Path, step: int, loss: float, grad_norm: float, images: list[str]
) -> None:
  """Writes what a step was whose loss or gradient was not finite."""
  record = {
    "step": step,
    "loss": str(loss),  # JSON has no NaN
    "grad_norm": str(grad_norm),
    "images": images,
  }
  (workdir / NONFINITE).write_text(json.dumps(record, indent=2) + "\n")


def check_shared(workdir: Path) -> None:
  """Checks that the folder that the first process claimed is this one.

  Raises:
    UsageError: if this process does not see it.
  """
  if not has_run(workdir):
    raise UsageError(
      f"--workdir={workdir}: process {jax.process_index()} does not see what "
      "the first one wrote there; it must be a folder that all hosts share"
    )


def _revision() -> dict | None:
  """The commit of this clone; None where there is no git or no clone."""
  try:
    said = [
      subprocess.run(
        ["git", "-C", str(_ROOT), *command],
        capture_output=True,
        text=True,
        check=True,
      ).stdout.strip()
      for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
    ]
  except (OSError, subprocess.CalledProcessError):
    return None
  return {"revision": said[0], "changed": bool(said[1])}


def _versions() -> dict[str, str]:
  found = {}
  for name in _PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return found


def has_run(workdir: Path) -> bool:
  """Tells whether a run was started in the folder."""
  return (workdir / "config.json").exists()


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
      augmentation, batch or seed than `config`.
  """
  before, now = (_identity(c) for c in (read_config(workdir), config))
  for name, value in before.items():
    if now[name] != value:
      raise UsageError(
        f"--resume --workdir={workdir}: that run has {name}={value}, "
        f"got {name}={now[name]}"
      )


def _identity(config: TrainConfig) -> dict:
  groups = config.optimizer.groups
  return {
    **dataclasses.asdict(config.model),
    "optimizer kind": config.optimizer.kind,
    "optimizer groups": [(g.pattern, g.freeze) for g in groups],
    "loss": config.loss,
    "an average": config.ema_decay is not None,
    "data": config.data,
    "augment": config.augment,
    "batch": config.batch,
    "seed": config.seed,
  }
