"""Calibration: `python -m examples.eval.calibration --demo`.

How far a model's confidence is from its accuracy, before and after its logits
are scaled by a temperature that a fifth of the images gives (Appendix H).
`--data` and `--checkpoint` name images and a model; `--predictions=FILE.npz`
brings "probs" [N, K] and "labels" [N] of any other. A minute on two cores.
"""

import sys

from absl import flags

from examples.eval import command
from examples.usage import UsageError, blame


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


def define(values: flags.FlagValues) -> None:
  """Adds the flags of this command."""
  options = {"flag_values": values}
  flags.DEFINE_string("predictions", None, "an .npz: probs, labels", **options)
  flags.DEFINE_float("percent", 20, "of images that fit T", **options)
  flags.DEFINE_integer("bins", 15, "equal bins of the ECE", 1, **options)


def evaluate(given) -> dict:
  """Runs the evaluation; returns what `command.report` does."""
  from examples.eval.metrics import calibration as metrics

  out = command.out_folder(given, "calibration")
  probs, labels, data = _predictions(given, out)
  with blame("--predictions" if given.predictions else "--data"):
    probs = metrics.class_probabilities(probs)
    labels = metrics.class_labels(labels, probs)
  with blame(f"--percent={given.percent:g}"):
    fit, rest = metrics.fit_split(
      len(labels), percent=given.percent, seed=given.seed
    )
  beta = metrics.fit_temperature(probs[fit], labels[fit])
  labels = labels[rest]
  before = probs[rest]
  after = metrics.scale_temperature(before, beta)
  ours = {"error": float((before.argmax(axis=1) != labels).mean())}
  for when, p in (("", before), ("_scaled", after)):
    ours |= {
      f"ece{when}": metrics.expected_calibration_error(
        p, labels, bins=given.bins
      ),
      f"ece_adaptive_100{when}": metrics.general_calibration_error(p, labels),
      f"nll{when}": metrics.negative_log_likelihood(p, labels),
      f"brier{when}": metrics.brier_score(p, labels),
    }
  ours["temperature"] = 1 / beta
  plotted = "a point of Figure 9"
  return command.report(
    out,
    "calibration",
    ours,
    {name: plotted for name in ours if name.startswith(("error", "ece_a"))},
    {
      "data": (data, "ImageNet, 384 pixels"),
      "loss": (
        "not known" if given.predictions or given.checkpoint else "sigmoid",
        "softmax, 20k steps, learning rate 0.03",
      ),
      "images": (len(labels), 40_000),
      "share that fits T": (f"{given.percent:g} %", "20 %"),
    },
    figure=_figure(before, after, labels, given.bins, metrics),
  )


def _predictions(given, out):
  """Probabilities, labels and what they are of."""
  from examples.eval.arrays import read_npz

  if given.predictions:
    if given.demo or given.checkpoint or given.data:
      raise UsageError("--predictions needs no --demo, --data, --checkpoint")
    with blame(f"--predictions={given.predictions}"):
      arrays = read_npz(given.predictions, "probs", "labels")
    return *arrays, given.predictions
  from examples.data.sources import open_source
  from examples.eval.predict import open_model

  model = open_model(given, out)
  spec = "digits" if given.demo else given.data
  if spec is None:
    raise UsageError("--data must name a data set; --demo needs none")
  with blame(f"--data={spec}"):
    source = open_source(spec, "val")
    return *model.probabilities(source), spec


def _figure(before, after, labels, bins, metrics):
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8, 4), layout="constrained")
  panels = figure.subplots(1, 2, sharey=True)
  for axis, probs, title in zip(
    panels, (before, after), ("as trained", "temperature scaled"), strict=True
  ):
    found = metrics.reliability(probs, labels, bins=bins)
    filled = found.counts > 0
    axis.plot([0, 1], [0, 1], "k:", label="calibrated")
    axis.plot(
      found.confidence[filled], found.accuracy[filled], "o-", label="model"
    )
    axis.bar(
      [(i + 0.5) / bins for i in range(bins)],
      found.counts / len(labels),
      width=1 / bins,
      alpha=0.3,
      label="share of images",
    )
    axis.set(title=f"{title}: ECE {found.error():.3f}", xlabel="confidence")
  panels[0].set_ylabel("accuracy")
  panels[0].legend()
  return figure


if __name__ == "__main__":
  sys.exit(main(sys.argv))
