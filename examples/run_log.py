"""What a run leaves behind: JSON lines, TensorBoard events and one picture."""

import json
import os
from pathlib import Path

import tensorboardX
from matplotlib.figure import Figure

# Panels of the picture, top to bottom: y label, then each scalar's legend.
_PANELS = (
  ("loss", {"train/loss": "training", "eval/loss": "held out"}),
  ("accuracy", {"eval/accuracy": "held out"}),
  ("attention logit", {"train/max_attention_logit": "largest, training"}),
)


class RunLog:
  """Scalars of one run by step, continued when the run is.

  A context manager; leaving it draws `curves.png`, after an error too.

  Attributes:
    history: every record so far, `{"step": ..., name: value, ...}`.
  """

  def __init__(self, workdir: Path, start: int = 0):
    """Opens the log at step `start`, forgetting what came after it.

    Args:
      workdir: an existing folder.
      start: the step that the run continues from; 0 for a new run.
    """
    self._workdir = workdir
    path = workdir / "metrics.jsonl"
    self.history = [r for r in _read(path) if r["step"] <= start]
    partial = path.with_suffix(".tmp")
    partial.write_text("".join(map(_line, self.history)))
    os.replace(partial, path)
    self._lines = path.open("a", buffering=1)
    self._events = tensorboardX.SummaryWriter(
      str(workdir), purge_step=start + 1 if start else None
    )

  def __enter__(self):
    return self

  def __exit__(self, _, error, __):
    try:
      self._lines.close()
      self._events.close()
      draw(self.history, self._workdir / "curves.png")
    except OSError:
      if error is None:  # a full disk has stopped the run already
        raise

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Records scalars; a name is `group/scalar`, as TensorBoard groups them."""
    record = {"step": step, **scalars}
    self.history.append(record)
    self._lines.write(_line(record))
    for name, value in scalars.items():
      self._events.add_scalar(name, value, step)


def draw(history: list[dict], path: Path) -> None:
  """Draws loss, accuracy and the largest attention logit over the steps."""
  figure = Figure(figsize=(7, 8), layout="constrained")
  axes = figure.subplots(len(_PANELS), sharex=True)
  for axis, (label, legends) in zip(axes, _PANELS, strict=True):
    for name, legend in legends.items():
      points = [(r["step"], r[name]) for r in history if name in r]
      steps, values = zip(*points, strict=True) if points else ((), ())
      axis.plot(steps, values, ".-", label=legend)
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    axis.legend()
  if any(r.get(name, 0) > 0 for r in history for name in _PANELS[0][1]):
    axes[0].set_yscale("log")  # a softmax that is sure has a loss of 0
  axes[-1].set_xlabel("step")
  figure.savefig(path, dpi=120)


def _line(record: dict) -> str:
  return json.dumps(record) + "\n"


def _read(path: Path) -> list[dict]:
  """Returns the records of a file; a killed run may leave half a last line."""
  if not path.exists():
    return []
  return [
    json.loads(line)
    for line in path.read_text().splitlines(keepends=True)
    if line.endswith("\n")
  ]
