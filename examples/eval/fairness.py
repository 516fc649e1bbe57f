"""Fairness: `python -m examples.eval.fairness --demo`.

Logistic regression on frozen features, demographic parity, the randomized
threshold optimizer, and the scores of each subgroup (paper, section 5.1 and
Appendix G). `--celeba=PATH` reads CelebA's public files; the demo's images are
digits of which some are drawn faint, more often those from five on: the target
is "five or more", the sensitive attribute "faint". A minute on two cores.
"""

import sys
from pathlib import Path

from absl import flags

from examples.eval import command
from examples.usage import UsageError, blame

_EPSILONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


def define(values: flags.FlagValues) -> None:
  """Adds the flags of this command."""
  options = {"flag_values": values}
  flags.DEFINE_string("celeba", None, "folder of CelebA", **options)
  flags.DEFINE_string("target", "Smiling", "attribute to predict", **options)
  flags.DEFINE_string("sensitive", "Male", "attribute of subgroups", **options)
  flags.DEFINE_float("epsilon", 0.01, "largest parity allowed", 0, 1, **options)
  flags.DEFINE_float("gamma", 0.05, "width of the random range", **options)


def evaluate(given) -> dict:
  """Runs the evaluation; returns what `command.report` does."""
  from examples.eval.metrics import fairness as metrics

  if not given.demo and given.celeba is None:
    raise UsageError("--celeba must name CelebA's folder; --demo needs none")
  out = command.out_folder(given, "fairness")
  parts, groups, data = _parts(given, out)
  with blame("--demo" if given.demo else f"--celeba={given.celeba}"):
    scores = {
      part: metrics.logistic_scores(
        parts["train"][0], parts["train"][1], features
      )
      for part, (features, _, _) in parts.items()
    }
    fit, test = (
      (parts[part][1], scores[part], parts[part][2]) for part in ("val", "test")
    )
    each = metrics.subgroup_scores(*test, expected=groups)
  with blame(f"--epsilon={given.epsilon:g} --gamma={given.gamma:g}"):
    rule = metrics.fit_randomized_threshold(
      fit[1],
      fit[2],
      epsilon=given.epsilon,
      gamma=given.gamma,
      expected=groups,
    )
    curve = metrics.trade_off(fit, test, epsilons=_EPSILONS, gamma=given.gamma)
  labels, p, s = test
  ours = {
    "parity_of_the_labels": metrics.demographic_parity(labels, s),
    "accuracy": float(((p > 0.5) == labels).mean()),
    "parity": metrics.demographic_parity(p > 0.5, s),
    "accuracy_debiased": metrics.rule_accuracy(labels, rule(p, s)),
    "parity_debiased": metrics.demographic_parity(rule(p, s), s),
    "parity_debiased_on_the_fit": metrics.demographic_parity(
      rule(fit[1], fit[2]), fit[2]
    ),
  }
  for group, found in each.items():
    for name, value in found.items():
      ours[f"{name}_{group}"] = value
  names = ("accuracy", "ece", "oc_auc")
  paper = {
    f"{name}_{group}": f"plotted in Figure {figure}"
    for name, figure in zip(names, (16, 17, 18), strict=True)
    for group in groups
  }
  return command.report(
    out,
    "fairness",
    ours,
    paper | {"parity": "plotted in Figure 15"},
    {
      "data": (data, "CelebA, gender; smiling or attractive"),
      "classifier": (
        "L-BFGS, C = 1",
        "SGD: 50 epochs, batch 64, learning rate 0.01, then 0.001",
      ),
      "threshold optimizer": ("a root finder", "SGD"),
      "oracle sees": ("1 %", "not said"),
    },
    figure=_figure(curve, ours),
  )


def _parts(given, out):
  """Features, targets and subgroups of three parts; the subgroups; the data."""
  import numpy as np

  from examples.eval.predict import Images, open_files, open_model

  if given.demo:
    model = open_model(given, out)
    drawn = _faint_digits(given.seed, model.cfg.image)
    parts = {
      part: (model.features(Images(images, y, ("below", "above"))).x, y, s)
      for part, (images, y, s) in drawn.items()
    }
    return parts, ["plain", "faint"], "digits, some faint"
  from examples.eval.celeba import read_attributes

  root = Path(given.celeba)
  with blame(f"--celeba={root}"):
    found = read_attributes(root, [given.target, given.sensitive])
    sources = {
      part: open_files(root, files) for part, (files, _) in found.items()
    }
  model = open_model(given, out)
  groups = [f"not_{given.sensitive}", given.sensitive]
  parts = {}
  for part, source in sources.items():
    values = found[part][1]
    features = model.features(source).x
    if len(features) != len(values):
      raise UsageError(
        f"--celeba={root}: {len(values) - len(features)} images of {part} "
        "cannot be read"
      )
    parts[part] = (features, values[:, 0], np.array(groups)[values[:, 1]])
  return parts, groups, f"CelebA, {given.sensitive}; {given.target}"


def _faint_digits(seed: int, size: int) -> dict:
  """Images, targets and subgroups: three quarters of the high ones faint."""
  import numpy as np

  from examples.data import digits

  rng = np.random.default_rng(seed)
  drawn = {}
  train, rest = digits.load("train"), digits.load("val")
  half = len(rest) // 2
  for part, scans, labels in (
    ("train", train.scans, train.labels),
    ("val", rest.scans[:half], rest.labels[:half]),
    ("test", rest.scans[half:], rest.labels[half:]),
  ):
    target = (labels >= 5).astype(int)
    faint = rng.random(len(labels)) < np.where(target == 1, 0.75, 0.25)
    ink = np.where(faint, 0.4, 1.0).astype(np.float32)
    images = [
      (digits.render(scan, size) + 1) * weight - 1
      for scan, weight in zip(scans, ink, strict=True)
    ]
    drawn[part] = images, target, np.where(faint, "faint", "plain")
  return drawn


def _figure(curve, ours):
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6, 4), layout="constrained")
  axis = figure.subplots()
  axis.plot(
    [point["parity"] for point in curve],
    [point["accuracy"] for point in curve],
    "o-",
    label="randomized thresholds",
  )
  axis.plot(ours["parity"], ours["accuracy"], "s", label="not debiased")
  axis.set(xlabel="demographic parity", ylabel="accuracy")
  axis.grid(alpha=0.3)
  axis.legend()
  return figure


if __name__ == "__main__":
  sys.exit(main(sys.argv))
