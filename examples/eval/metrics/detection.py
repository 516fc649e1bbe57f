"""Open-set detection: is an image of the known kinds at all?"""

import numpy as np
from sklearn import metrics

from examples.eval.metrics.rows import (
  class_probabilities,
  same_length,
  two_classes,
)


def maximum_softmax_probability(probs) -> np.ndarray:
  """Returns `max_k p_k`, `[N]` (Hendrycks & Gimpel 2017)."""
  return class_probabilities(probs).max(axis=1)


def auroc(labels, scores) -> float:
  """Returns the area under the ROC curve.

  Args:
    labels: `[N]`, 0 or 1.
    scores: `[N]`, higher for label 1.

  Raises:
    ValueError: if all labels are the same, naming the rows.
  """
  labels = two_classes(labels, "AUROC")
  same_length(labels=labels, scores=scores)
  return float(metrics.roc_auc_score(labels, scores))


def detection_scores(labels, scores) -> dict[str, float]:
  """Returns AUROC, AUPRC and FPR95 of telling label 1 from label 0.

  AUPRC is the average precision; FPR95 the false-positive rate at the first
  threshold that finds 95 % of label 1.

  Args:
    labels: `[N]`, 0 or 1.
    scores: `[N]`, higher for label 1.

  Raises:
    ValueError: if all labels are the same, naming the rows.
  """
  labels = two_classes(labels, "AUROC")
  same_length(labels=labels, scores=scores)
  false, true, _ = metrics.roc_curve(labels, scores)
  return {
    "auroc": float(metrics.auc(false, true)),
    "auprc": float(metrics.average_precision_score(labels, scores)),
    "fpr95": float(false[np.argmax(true >= 0.95)]),
  }


def out_of_distribution(inside_probs, outside_probs) -> dict[str, float]:
  """Returns `detection_scores` by the maximum softmax probability.

  The labelling is that of Plex (Tran et al. 2022): images from outside are the
  positives and `1 - MSP` is their score.

  Args:
    inside_probs: `[N, K]` probabilities on images of the known classes.
    outside_probs: `[M, K]` probabilities on others.
  """
  msp = [maximum_softmax_probability(p) for p in (inside_probs, outside_probs)]
  labels = np.repeat([0, 1], [len(scores) for scores in msp])
  return detection_scores(labels, 1 - np.concatenate(msp))
