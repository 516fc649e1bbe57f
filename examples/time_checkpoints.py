"""Step time with and without checkpoints, in one run.

    python -m examples.time_checkpoints
    python -m examples.time_checkpoints --width=384 --depth=8 --every=5

Trains a ViT on random images for some rounds, every other one with a checkpoint
each few steps, and prints the medians of both, of the same run. A step counts
from the end of the one before, so that what `save` holds up is in it.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from examples.usage import UsageError, blame
from profiling import platform


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  platform.select(devices=1)
  try:
    given = _flags()
    try:
      given(argv)
    except flags.Error as error:
      raise UsageError(str(error).removeprefix("flag ")) from error
    if given.help:
      print(__doc__, given.get_help())
    else:
      print(_measure(given))
  except UsageError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


@dataclasses.dataclass
class Times:
  """Seconds of the steps of one kind of round, and of what `save` held up."""

  steps: list[float] = dataclasses.field(default_factory=list)
  saves: list[float] = dataclasses.field(default_factory=list)

  @property
  def median(self) -> float:
    return statistics.median(self.steps)


def _measure(given) -> str:
  import jax
  import numpy as np

  from collective_mm import make_mesh
  from examples.checkpoints import Checkpoints
  from models import train_step
  from models.optimizer import OptimizerConfig, make_optimizer
  from models.vit_config import get_config

  with blame(f"--width={given.width} --depth={given.depth}"):
    cfg = get_config(
      "vit_tiny", width=given.width, depth=given.depth, mlp=4 * given.width
    )
  mesh = make_mesh(data=jax.device_count(), model=1)
  optimizer = make_optimizer(OptimizerConfig())
  state = train_step.init_state(jax.random.key(0), cfg, optimizer, mesh)
  batch = jax.tree.map(
    lambda x: np.ones(x.shape, np.float32),
    train_step.abstract_batch(cfg, mesh, given.batch),
  )
  batch = jax.device_put(batch, train_step.batch_sharding(mesh))
  step = train_step.make_train_step(cfg, optimizer, mesh)
  state, metrics = step(state, batch)
  jax.block_until_ready(metrics)
  size = sum(x.nbytes for x in jax.tree.leaves(state))

  times = {False: Times(), True: Times()}
  number = 0
  with (
    tempfile.TemporaryDirectory(dir=given.dir) as folder,
    Checkpoints(Path(folder), keep=2) as checkpoints,
  ):
    checkpoints.save(number, state)  # compiles what it needs, once
    for saving in (False, True) * given.rounds:
      checkpoints.wait()  # a round begins with nothing in the background
      began = time.perf_counter()
      for i in range(given.steps):
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        number += 1
        if saving and i % given.every == 0:
          save_began = time.perf_counter()
          checkpoints.save(number, state)
          times[True].saves.append(time.perf_counter() - save_began)
        now = time.perf_counter()
        times[saving].steps.append(now - began)
        began = now
    written = time.perf_counter()
    checkpoints.save(number + 1, state)
    checkpoints.wait()
    written = time.perf_counter() - written
  return _report(times, size, written, given)


def _report(times, size, written, given) -> str:
  without, with_saves = times[False], times[True]
  more = with_saves.median / without.median - 1
  whole = sum(with_saves.steps) / sum(without.steps) - 1
  return (
    f"state of {size / 1e6:.0f} MB, written in {written * 1e3:.0f} ms; "
    f"{given.rounds} rounds of {given.steps} steps of each kind\n"
    f"median step without checkpoints {without.median * 1e3:.1f} ms, with one "
    f"every {given.every} steps {with_saves.median * 1e3:.1f} ms: {more:+.1%}\n"
    f"all steps together {whole:+.1%}; a call of save holds the step up for "
    f"{statistics.median(with_saves.saves) * 1e3:.1f} ms"
  )


def _flags():
  values = flags.FlagValues()
  options = {"flag_values": values}
  count = {"lower_bound": 1, **options}
  flags.DEFINE_bool("help", False, "show this help", short_name="h", **options)
  flags.DEFINE_integer("width", 256, "of the model", **count)
  flags.DEFINE_integer("depth", 6, "of the model", **count)
  flags.DEFINE_integer("batch", 16, "images a step", **count)
  flags.DEFINE_integer("every", 10, "steps from save to save", **count)
  flags.DEFINE_integer("steps", 10, "of a round", **count)
  flags.DEFINE_integer("rounds", 8, "of each kind", **count)
  flags.DEFINE_string("dir", None, "where to write [temporary]", **options)
  return values


if __name__ == "__main__":
  sys.exit(main(sys.argv))
