"""Checkpoints of a run: saved in the background, restored onto any mesh."""

from pathlib import Path

import orbax.checkpoint as ocp
import tensorstore

from examples.usage import UsageError


class Checkpoints:
  """The newest checkpoints of one run, one folder per step.

  A context manager: leaving it waits for the last save. A save becomes visible
  only when it is whole, so that a run killed meanwhile loses that one alone.
  """

  def __init__(self, directory: Path, keep: int):
    """Opens `directory`, which is made if needed, and keeps `keep` newest."""
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep),
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._manager.close()

  def save(self, step: int, state) -> None:
    """Saves a tree of arrays; returns as soon as they may be donated."""
    self._manager.save(step, args=ocp.args.StandardSave(state))


def restore(directory: Path, like):
  """Returns the newest checkpoint under `directory`, and changes no file.

  Args:
    directory: as `Checkpoints` was given.
    like: a tree of `jax.ShapeDtypeStruct` with the shardings to restore onto,
      which need not be those of the run that saved.

  Raises:
    UsageError: if there is no checkpoint, or the newest cannot be read.
  """
  steps = []
  if directory.is_dir():
    manager = ocp.CheckpointManager(
      directory.absolute(), options=ocp.CheckpointManagerOptions(create=False)
    )
    steps = sorted(manager.all_steps())
  if not steps:
    raise UsageError(f"--resume: {directory} has no finished checkpoint")
  with manager:
    try:
      _read_once(directory.absolute() / str(steps[-1]) / "default")
      return manager.restore(steps[-1], args=ocp.args.StandardRestore(like))
    except Exception as error:  # they pass on whatever their readers raise
      remedy = "it is the only one"
      if steps[:-1]:
        remedy = f"remove it to continue from step {steps[-2]}"
      raise UsageError(
        f"--resume: checkpoint {directory / str(steps[-1])} is damaged or "
        f"half written; {remedy}"
      ) from error


def _read_once(folder: Path) -> None:
  """Reads what a checkpoint stores, so that damage is found here.

  When a read fails in orbax, its other threads print tracebacks of their own.
  """
  spec = {"driver": "ocdbt", "base": f"{folder.as_uri()}/"}
  store = tensorstore.KvStore.open(spec).result()
  keys = store.list().result()
  if not keys:
    raise ValueError(f"{folder} stores nothing")
  for key in keys:
    store.read(key).result()
