"""Trains with and without QK-norm at a high learning rate, and draws why.

    python -m examples.stability --workdir=runs/stability

The paper's Figure 1 in small, on the digits: without LayerNorm on queries and
keys the attention logits grow, with it they stay where they are. In the folder
are `stability.png` and the two runs. Takes about two minutes on two CPU cores.
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags

from examples.usage import UsageError
from profiling import platform

ARMS = {"with QK-norm": True, "without": False}
LOGIT = "train/max_attention_logit"


def _define() -> flags.FlagValues:
  values = flags.FlagValues()
  options = {"flag_values": values}
  flags.DEFINE_string("workdir", None, "folder of both runs", **options)
  flags.DEFINE_float("lr", 0.01, "peak learning rate", **options)
  flags.DEFINE_integer("steps", 150, "of each run", 10, **options)
  return values


def arm(lr: float, steps: int, *, qk_norm: bool):
  """The config of one of the two runs, which differ in QK-norm alone."""
  from examples.presets import PRESETS

  base = PRESETS["digits"]
  optimizer = base.optimizer.stretched(steps)
  # Clipping is off: it would hold back just what is to be seen.
  optimizer = dataclasses.replace(
    optimizer, peak_lr=lr, cooldown_steps=0, clip_norm=1e9
  )
  return dataclasses.replace(
    base,
    model=dataclasses.replace(base.model, qk_norm=qk_norm),
    optimizer=optimizer,
    eval_every=steps,
    checkpoint_every=steps,
    log_every=max(1, steps // 40),
  )


def history(workdir: Path) -> list[dict]:
  """The records of a run, as its `metrics.jsonl` has them."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def draw(runs: dict[str, list[dict]], path: Path) -> None:
  """Draws loss and largest attention logit of each run over its steps."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 6), layout="constrained")
  axes = figure.subplots(2, sharex=True)
  names = ("train/loss", LOGIT)
  labels = ("training loss", "largest attention logit")
  for axis, name, label in zip(axes, names, labels, strict=True):
    for run, records in runs.items():
      points = [(r["step"], r[name]) for r in records if name in r]
      axis.plot(*zip(*points, strict=True), label=run)
    axis.set_yscale("log")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    axis.legend()
  axes[-1].set_xlabel("step")
  figure.savefig(path, dpi=120)


def main(argv: list[str]) -> int:
  """Runs both arms; returns the exit code."""
  platform.select(devices=8)
  given = _define()
  try:
    if rest := given(argv)[1:]:
      raise UsageError(f"flags look like --name=value, got {rest[0]!r}")
    if given.workdir is None:
      raise UsageError("--workdir must name the folder of both runs")
    compare(Path(given.workdir), lr=given.lr, steps=given.steps)
  except (UsageError, flags.Error) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def compare(workdir: Path, *, lr: float, steps: int) -> dict[str, float]:
  """Trains both and draws them; returns each one's last largest logit.

  Args:
    workdir: a folder, for a folder of each run and `stability.png`.
    lr: peak learning rate.
    steps: of each run.

  Raises:
    UsageError: if a run's folder is not empty.
  """
  from examples.train_loop import run

  runs = {}
  for name, qk_norm in ARMS.items():
    folder = workdir / name.replace(" ", "_")
    try:
      run(arm(lr, steps, qk_norm=qk_norm), folder)
    except FloatingPointError as error:
      print(f"{name}: diverged, {error}")
    runs[name] = history(folder)
  draw(runs, workdir / "stability.png")
  logits = {
    name: [r[LOGIT] for r in records if LOGIT in r][-1]
    for name, records in runs.items()
  }
  for name, logit in logits.items():
    print(f"{name}: largest attention logit {logit:.1f} at the end")
  print(f"picture: {workdir / 'stability.png'}")
  return logits


if __name__ == "__main__":
  sys.exit(main(sys.argv))
