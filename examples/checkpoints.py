"""Checkpoints of a run: saved in the background, restored onto any mesh.

One folder per step, written by orbax: `state` holds the arrays, by their path
in the tree, and `about` is JSON: what the arrays must be (shape, dtype and a
sum of their bits), the position in the data, and what the run says of itself.
"""

import shutil
import sys
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import tensorstore
from jax.experimental import multihost_utils

from examples.leaves import (
  described,
  differences,
  matching,
  named,
  nested,
  sums_of_bits,
)
from examples.usage import UsageError


class CheckpointError(RuntimeError):
  """A checkpoint that could not be written; earlier ones are untouched."""


class Checkpoints:
  """The newest checkpoints of one run, one folder per step.

  A context manager: leaving it waits for the last save. A save becomes visible
  only when it is whole, so that a run killed meanwhile loses that one alone.
  """

  def __init__(
    self,
    directory: Path,
    keep: int,
    *,
    about: dict | None = None,
  ):
    """Opens `directory`, which is made if needed, and keeps `keep` newest.

    Args:
      directory: of all steps.
      keep: checkpoints to keep.
      about: JSON to keep in each, such as the run's config.
    """
    self._directory = directory.absolute()
    self._about = about or {}
    self._saved: list[int] = []
    self._pending = False  # a save whose end was not seen yet
    try:
      self._manager = ocp.CheckpointManager(
        self._directory,
        item_handlers={
          # Floats hardly shrink, and zstd takes processors from training.
          "state": ocp.PyTreeCheckpointHandler(use_compression=False),
          "about": ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          max_to_keep=keep, cleanup_tmp_directories=True
        ),
      )
    except OSError as error:
      raise CheckpointError(f"cannot write {directory}: {error}") from error

  def __enter__(self):
    return self

  def __exit__(self, _, error, __):
    try:
      self.wait()
    except CheckpointError as failure:
      if error is None:
        raise
      if error is not failure:
        _say(f"warning: {failure}")
    finally:
      self._manager.close()

  def check(self) -> None:
    """Returns at once, also if a save is still under way.

    Raises:
      CheckpointError: if the last save has failed.
    """
    if self._pending and not self._manager.is_saving_in_progress():
      self.wait()

  def save(self, step: int, state, data: dict | None = None) -> None:
    """Saves a tree of arrays; returns as soon as they may be donated.

    A checkpoint of this step or a later one that this run did not write is
    what the run did not continue from: it is renamed `STEP.aside`.

    Args:
      step: steps done.
      state: the tree.
      data: the data iterator's state, as JSON.

    Raises:
      CheckpointError: if this save or the one before it fails.
    """
    if step in self._saved:
      return
    leaves = named(state)
    sums = sums_of_bits(leaves)
    about = self._about | {
      "data": data,
      "leaves": {
        name: [described(leaf), sums[name]] for name, leaf in leaves.items()
      },
    }
    self.wait()
    self._set_aside(step)
    self._saved.append(step)
    self._pending = True
    items = ocp.args.Composite(
      state=ocp.args.PyTreeSave(nested(leaves)),
      about=ocp.args.JsonSave(about),
    )
    self._finish(lambda: self._manager.save(step, args=items, force=True))

  def wait(self) -> None:
    """Returns when the last save is on disk.

    Raises:
      CheckpointError: if it has failed.
    """
    if self._pending:
      self._finish(self._manager.wait_until_finished)
      self._pending = False

  def _finish(self, call):
    """Calls `call`, which passes on whatever the background thread met."""
    try:
      call()
    except Exception as error:
      step, self._pending = self._saved.pop(), False
      if jax.process_index() == 0:  # half a checkpoint is no use, but has size
        for partial in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
          shutil.rmtree(partial, ignore_errors=True)
      whole = ", ".join(map(str, sorted(_steps(self._directory)))) or "none"
      raise CheckpointError(
        f"checkpoint {self._directory / str(step)} could not be written: "
        f"{_reason(error)}; whole ones: {whole}"
      ) from error

  def _set_aside(self, step):
    stale = [s for s in _steps(self._directory) if s >= step]
    if not stale:
      return
    if jax.process_index() == 0:
      for s in stale:
        aside = self._directory / f"{s}.aside"
        shutil.rmtree(aside, ignore_errors=True)
        (self._directory / str(s)).rename(aside)
        _say(f"warning: checkpoint {self._directory / str(s)} is now {aside}")
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("set aside")
    self._manager.reload()


def about(directory: Path, step: int | None = None) -> dict:
  """Returns the JSON of a checkpoint: the newest, unless `step` is given.

  Raises:
    UsageError: if there is none, or it cannot be read.
  """
  steps = [step] if step is not None else sorted(_steps(directory))
  if not steps:
    raise UsageError(f"{directory} has no finished checkpoint")
  try:
    with _reader(directory) as manager:
      return _about(manager, steps[-1])
  except Exception as error:
    raise UsageError(
      f"checkpoint {directory / str(steps[-1])} cannot be read: "
      f"{_reason(error)}"
    ) from error


def restore(
  directory: Path,
  like,
  *,
  step: int | None = None,
  only: str = ".*",
  flag: str = "--resume",
):
  """Returns the newest checkpoint under `directory`, and changes no file.

  One that is damaged is named on stderr, and the one before it is taken.

  Args:
    directory: as `Checkpoints` was given.
    like: a tree of `jax.ShapeDtypeStruct` with the shardings to restore onto,
      which need not be those of the run that saved.
    step: take this one alone.
    only: a regex of paths, such as `params/(?!head).*`; leaves that it does not
      match in full come back as `like` has them.
    flag: what errors start with.

  Raises:
    UsageError: if there is no checkpoint, none can be read, it has other leaves
      than `like` (they are listed), or `only` matches none.
  """
  wanted = matching(named(like), only)
  if not wanted:
    raise UsageError(f"{flag}: {only!r} matches no leaf")
  steps = sorted(_steps(directory), reverse=True)
  if step is not None:
    steps = [s for s in steps if s == step]
  if not steps:
    raise UsageError(f"{flag}: {directory} has no finished checkpoint")
  damaged = []
  with _reader(directory) as manager:
    for candidate in steps:
      folder = directory / str(candidate)
      try:
        found = _attempt(manager, folder, wanted, only, flag)
      except _Damaged as damage:
        damaged.append(candidate)
        _say(f"warning: checkpoint {folder} is damaged: {damage}")
        continue
      if damaged:
        _say(f"warning: continuing from checkpoint {folder}")
      leaves = [found.get(name, leaf) for name, leaf in named(like).items()]
      return jax.tree.unflatten(jax.tree.structure(like), leaves)
  names = ", ".join(map(str, damaged))
  raise UsageError(f"{flag}: no checkpoint in {directory} is whole: {names}")


class _Damaged(Exception):
  """A checkpoint that does not give back what was saved; says why."""


def _attempt(manager, folder, wanted, only, flag) -> dict:
  """Reads the wanted leaves of one checkpoint."""
  step, reason = int(folder.name), None
  try:
    saved = {n: (x, s) for n, (x, s) in _about(manager, step)["leaves"].items()}
    _read_once(folder.absolute() / "state")
  except Exception as error:  # they pass on whatever their readers raise
    reason = _reason(error)
  if _anywhere(reason is not None):
    raise _Damaged(reason or "another host cannot read it")
  here = {name: described(x) for name, x in wanted.items()}
  there = {name: x for name, (x, _) in matching(saved, only).items()}
  if differ := differences(there, here):
    raise UsageError(
      f"{flag}: checkpoint {folder} is of another architecture: {differ}"
    )
  try:
    found = _read(manager, step, wanted)
  except Exception as error:
    raise _Damaged(_reason(error)) from error
  for name, bits in sums_of_bits(found).items():
    if bits != saved[name][1]:
      raise _Damaged(f"{name} is not what was saved")
  return found


def _steps(directory: Path) -> list[int]:
  """Steps of the finished checkpoints: orbax renames a folder to its number
  when all is written."""
  if not directory.is_dir():
    return []
  return [int(path.name) for path in directory.iterdir() if path.name.isdigit()]


def _reader(directory: Path) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    directory.absolute(),
    item_names=("state", "about"),
    options=ocp.CheckpointManagerOptions(create=False),
  )


def _about(manager, step) -> dict:
  items = ocp.args.Composite(about=ocp.args.JsonRestore())
  return manager.restore(step, args=items).about


def _read(manager, step, wanted) -> dict:
  """Reads the named leaves, each onto its sharding."""
  tree = nested(wanted)
  items = ocp.args.Composite(
    state=ocp.args.PyTreeRestore(
      tree,
      restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
      partial_restore=True,
    )
  )
  return named(manager.restore(step, args=items).state)


def _read_once(folder: Path) -> None:
  """Reads what a checkpoint stores, so that damage is found here.

  When a read fails in orbax, its other threads print tracebacks of their own.
  Each host reads its share.
  """
  spec = {"driver": "ocdbt", "base": f"{folder.as_uri()}/"}
  store = tensorstore.KvStore.open(spec).result()
  keys = sorted(store.list().result())
  if not keys:
    raise ValueError(f"{folder} stores nothing")
  for key in keys[jax.process_index() :: jax.process_count()]:
    store.read(key).result()


def _anywhere(failed: bool) -> bool:
  """Whether it failed on any host: all must take the same checkpoint."""
  if jax.process_count() == 1:
    return failed
  return bool(multihost_utils.process_allgather(failed).any())


def _reason(error: BaseException) -> str:
  """The shortest that says why: the system's words, or the first line."""
  text = f"{error}".strip() or type(error).__name__
  for words in ("No space left on device", "File too large"):
    if words in text:
      return words
  return text.splitlines()[0][:200]


def _say(line: str) -> None:
  if jax.process_index() == 0:
    print(line, file=sys.stderr)
