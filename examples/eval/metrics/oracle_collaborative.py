"""Selective prediction: how good a model and an oracle are together.

The oracle answers for the share of examples in which a model is least certain
(Kivlichan et al. 2021); definitions as in google-research/robustness_metrics
`metrics/uncertainty.py`. Curves are integrated over fixed thresholds, as Keras
does, so that `curve_area` of few thresholds is an approximation.
"""

import numpy as np

from examples.eval.metrics.calibration import top_class
from examples.eval.metrics.rows import (
  class_labels,
  class_probabilities,
  same_length,
  unit_scores,
)

_BEYOND = 1e-7  # how far the end thresholds lie outside [0, 1]
TN, FN, FP, TP = range(4)


def oracle_collaborative_auc(
  labels,
  scores,
  *,
  certainty=None,
  fraction: float = 0.01,
  max_count: int | None = None,
  threshold: float | None = None,
  bins: int = 1000,
  thresholds: int = 200,
  curve: str = "ROC",
) -> float:
  """Returns the area under a curve whose least certain examples are corrected.

  At each threshold the examples are sorted into equal bins of certainty; the
  `floor(fraction * N)` least certain ones are made right, the bin that the
  count cuts in expectation. The two end thresholds, outside [0, 1], are never
  corrected.

  Args:
    labels: `[N]`, nonzero for positives.
    scores: `[N]` in [0, 1], of the positive class; with `certainty` they may
      be any numbers.
    certainty: `[N]` in [0, 1]; by default the distance of the score to the
      threshold.
    fraction: share of the examples that the oracle sees.
    max_count: at most that many of them.
    threshold: the oracle sees what is no more certain than that, whatever
      their number.
    bins: of certainty, over [0, 1].
    thresholds: points of the curve.
    curve: "ROC" or "PR".

  Returns:
    The area; 0 of a ROC curve if a class is missing.

  Raises:
    ValueError: if an option is out of range, or naming rows outside [0, 1].
  """
  if not 0 <= fraction <= 1:
    raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
  if bins < 2 or thresholds < 3:
    raise ValueError(
      f"bins must be at least 2 and thresholds at least 3, got bins={bins}, "
      f"thresholds={thresholds}"
    )
  labels = np.asarray(labels).astype(bool)
  if certainty is None:
    scores = unit_scores("scores", scores)
  else:
    scores = np.asarray(scores, np.float64)
    certainty = unit_scores("certainty", certainty)
    same_length(scores=scores, certainty=certainty)
  same_length(labels=labels, scores=scores)

  ends = _thresholds(thresholds)
  counts = np.empty((thresholds, 4))
  for i, cut in enumerate(ends):
    sure = np.abs(scores - cut) if certainty is None else certainty
    if threshold is None:
      index = np.clip((sure * bins).astype(int), 0, bins - 1)
    else:
      index = (sure > threshold + _BEYOND).astype(int)
    binned = _confusion(scores > cut, labels, index, bins)
    if i in (0, thresholds - 1):
      counts[i] = binned.sum(axis=1)
      continue
    if threshold is None:
      reviewed = np.floor(len(labels) * fraction)
      reviewed = reviewed if max_count is None else min(reviewed, max_count)
    else:
      reviewed = binned[:, 0].sum()
    counts[i] = _corrected(binned, reviewed)
  return curve_area(counts, curve)


def oracle_collaborative_auc_multiclass(
  probs, labels, *, form: str, fraction: float = 0.005, **options
) -> float:
  """Returns the oracle-collaborative AUC of a classifier of many classes.

  The metric is binary. Two ways to feed it a classifier:

      "class_indices"  what published tables hold: the index of the top class
                       is the score and "not class 0" the positive label. On
                       ImageNet it says how well class 0 is told from the rest
                       (google/uncertainty-baselines `jft/deterministic.py`
                       and robustness_metrics `reports/plex.py`, take_argmax).
      "correctness"    the positives are the examples that are right, the
                       score is the confidence: does the model know when it is
                       right?

  In both the oracle sees the least confident examples first.

  Args:
    probs: `[N, K]` probabilities.
    labels: `[N]` classes.
    form: one of the two.
    fraction: as in `oracle_collaborative_auc`; 0.5 % in the paper.
    **options: of `oracle_collaborative_auc`.

  Raises:
    ValueError: if the form is neither.
  """
  confidence, right = top_class(probs, labels)
  if form == "class_indices":
    probs = class_probabilities(probs)
    positive, scores = class_labels(labels, probs), probs.argmax(axis=1)
  elif form == "correctness":
    positive, scores = right, confidence
  else:
    raise ValueError(f"form must be class_indices or correctness, got {form!r}")
  # `certainty` is given, so that scores may be class indices.
  return oracle_collaborative_auc(
    positive, scores, certainty=confidence, fraction=fraction, **options
  )


def oracle_collaborative_accuracy(
  probs, labels, *, fraction: float = 0.01, bins: int = 100
) -> float:
  """Returns the accuracy once the least confident examples are made right.

  Args:
    probs: `[N, K]` probabilities, or `[N]` for P(class 1).
    labels: `[N]` classes.
    fraction: share of the examples that the oracle sees.
    bins: equal ones of confidence; the last that the oracle sees counts in
      expectation.

  Raises:
    ValueError: if the fraction is none, or naming rows whose probability or
      label is none.
  """
  if not 0 <= fraction <= 1:
    raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
  confidence, right = top_class(probs, labels)
  index = np.minimum((confidence * bins).astype(int), bins - 1)
  counts = np.bincount(index, minlength=bins)
  correct = np.bincount(index, right, bins)
  share = _reviewed_share(counts, np.floor(len(right) * fraction))
  return float((correct + share * (counts - correct)).sum() / len(right))


def calibration_auc(
  labels, predictions, confidence, *, thresholds: int = 200, curve: str = "ROC"
) -> float:
  """Returns the AUC of confidence as a score of being right.

  Args:
    labels: `[N]` classes.
    predictions: `[N]` predicted classes.
    confidence: `[N]` in [0, 1].
    thresholds: points of the curve.
    curve: "ROC" or "PR".

  Raises:
    ValueError: if the columns differ in length, or naming rows outside [0, 1].
  """
  confidence = unit_scores("confidence", confidence)
  same_length(labels=labels, predictions=predictions, confidence=confidence)
  right = np.asarray(labels) == np.asarray(predictions)
  one_bin = np.zeros(len(right), int)
  counts = [
    _confusion(confidence > cut, right, one_bin, 1)[:, 0]
    for cut in _thresholds(thresholds)
  ]
  return curve_area(np.stack(counts), curve)


def curve_area(counts: np.ndarray, curve: str) -> float:
  """Returns the area under a ROC or PR curve.

  ROC points are joined by straight lines. Between two PR points the counts,
  not their ratio, are straight (Davis & Goadrich 2006): with `n` predicted
  positives, `tp = a n + b` and recall `tp / P`, the area of a piece is
  `integral of (a n + b) / n d(a n) = a (delta tp + b log(n1 / n0)) / P`.

  Args:
    counts: `[T, 4]` true negatives, false negatives, false positives and true
      positives, thresholds rising.
    curve: "ROC" or "PR".

  Raises:
    ValueError: if the curve is neither.
  """
  tn, fn, fp, tp = np.asarray(counts, np.float64).T
  if curve == "ROC":
    x, y = _ratio(fp, fp + tn), _ratio(tp, tp + fn)
    return float(((x[:-1] - x[1:]) * (y[:-1] + y[1:]) / 2).sum())
  if curve != "PR":
    raise ValueError(f"curve must be ROC or PR, got {curve!r}")
  predicted = tp + fp
  gained = tp[:-1] - tp[1:]
  slope = _ratio(gained, np.maximum(predicted[:-1] - predicted[1:], 0))
  offset = tp[1:] - slope * predicted[1:]
  both = (predicted[:-1] > 0) & (predicted[1:] > 0)
  growth = np.where(both, _ratio(predicted[:-1], predicted[1:]), 1.0)
  area = slope * (gained + offset * np.log(growth))
  return float(_ratio(area, tp[1:] + fn[1:]).sum())


def _thresholds(count: int) -> np.ndarray:
  cuts = np.linspace(0, 1, count)
  cuts[0], cuts[-1] = -_BEYOND, 1 + _BEYOND
  return cuts


def _confusion(predicted, labels, index, bins) -> np.ndarray:
  """Counts `[4, bins]` in the order TN, FN, FP, TP."""
  kind = 2 * predicted + labels
  counts = np.bincount(kind * bins + index, minlength=4 * bins)
  return counts.reshape(4, bins).astype(np.float64)


def _reviewed_share(counts, reviewed) -> np.ndarray:
  """The share of each bin among the `reviewed` first examples."""
  before = np.cumsum(counts) - counts
  return np.clip(_ratio(reviewed - before, counts), 0, 1)


def _corrected(binned, reviewed) -> np.ndarray:
  share = _reviewed_share(binned.sum(axis=0), reviewed)
  fixed_fn, fixed_fp = (share @ binned[kind] for kind in (FN, FP))
  counts = binned.sum(axis=1)
  return counts + np.array([fixed_fp, -fixed_fn, -fixed_fp, fixed_fn])


def _ratio(a, b) -> np.ndarray:
  """`a / b`, and 0 where `b` is 0."""
  a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
  return np.divide(a, b, out=np.zeros_like(a), where=b != 0)
