"""Evaluates the newest checkpoint of a run.

    python -m examples.evaluate --workdir=runs/digits-20261123-085240

On any mesh of any devices, and on other data of the same classes with
`--data`, of which it takes the held-out part. Prints one line of JSON.
"""

import json
import sys
from pathlib import Path

import absl.logging
from absl import flags

from examples.usage import UsageError
from profiling import platform


def _define() -> flags.FlagValues:
  values = flags.FlagValues()
  options = {"flag_values": values}
  flags.DEFINE_string("workdir", None, "folder of the run", **options)
  flags.DEFINE_string("data", None, "as for training [the run's]", **options)
  flags.DEFINE_list("mesh", None, "devices on data,model", **options)
  flags.DEFINE_integer(
    "batch", None, "images at once [the run's]", 1, **options
  )
  return values


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  platform.select(devices=8)
  absl.logging.set_verbosity(absl.logging.ERROR)
  given = _define()
  try:
    if rest := given(argv)[1:]:
      raise UsageError(f"flags look like --name=value, got {rest[0]!r}")
    if given.workdir is None:
      raise UsageError("--workdir must name the folder of a run")
    print(
      json.dumps(
        evaluate(
          Path(given.workdir),
          data=given.data,
          mesh=given.mesh,
          batch=given.batch,
        )
      )
    )
  except (UsageError, flags.Error) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def evaluate(
  workdir: Path,
  *,
  data: str | None = None,
  mesh: list[str] | None = None,
  batch: int | None = None,
) -> dict:
  """Returns loss and accuracy of the newest checkpoint, and its step.

  Args:
    workdir: the folder of a run.
    data: what `examples.data.sources.open_source` opens; None for the run's.
    mesh: devices on data and model, as flags give them; None as in training.
    batch: images at once, over all devices; None for the run's.

  Raises:
    UsageError: if there is no run or it cannot be evaluated so.
  """
  from examples.checkpoints import restore
  from examples.presets import changed
  from examples.run_folder import read_config
  from examples.run_setup import Setup, choose_mesh, fitted, open_data
  from examples.usage import blame

  changes = {"data": data, "batch": batch, "mesh": mesh and ",".join(mesh)}
  changes = {name: x for name, x in changes.items() if x is not None}
  config = read_config(workdir)
  with blame(" ".join(f"--{name}={x}" for name, x in changes.items())):
    config = changed(config, changes | ({} if mesh else {"mesh": None}))
  train, test = open_data(config)
  classes = len(test.classes)
  if fitted(config, test) != config:
    raise UsageError(
      f"--data={config.data} must have {config.model.classes} classes as the "
      f"run in {workdir} has, got {classes}"
    )
  setup = Setup(config, choose_mesh(config), train, test)
  state = restore(
    workdir / "checkpoints",
    setup.abstract_state(),
    only="step|params/.*|ema/.*",
    flag=f"--workdir={workdir}",
  )
  setup.compile(train=False)
  result = setup.evaluate(state, lambda: True)
  return {"step": int(state.step), "data": config.data, **result}


if __name__ == "__main__":
  sys.exit(main(sys.argv))
