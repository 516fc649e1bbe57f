"""Semantic segmentation: counts of labels against predictions, and mIoU."""

import numpy as np


def confusion(
  labels: np.ndarray,
  predictions: np.ndarray,
  classes: int,
  *,
  ignore: int | None = None,
) -> np.ndarray:
  """Counts pixels by label and prediction: `counts[label, prediction]`.

  Counts of a data set are the sum over its images.

  Args:
    labels: integers in `[0, classes)`, or `ignore`, of any shape.
    predictions: integers in `[0, classes)`, of the same shape.
    classes: `V`.
    ignore: a label whose pixels do not count.

  Returns:
    `[V, V]` int64.

  Raises:
    ValueError: if the shapes differ, or a number is no class.
  """
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  if labels.shape != predictions.shape:
    raise ValueError(
      f"predictions must have the shape of labels, {labels.shape}, "
      f"got {predictions.shape}"
    )
  if ignore is not None:
    kept = labels != ignore
    labels, predictions = labels[kept], predictions[kept]
  for name, array in (("labels", labels), ("predictions", predictions)):
    if array.size and not 0 <= array.min() <= array.max() < classes:
      raise ValueError(
        f"{name} must be in [0, {classes}), got {array.min()} to {array.max()}"
      )
  cells = labels.ravel().astype(np.int64) * classes + predictions.ravel()
  return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def iou(counts: np.ndarray) -> np.ndarray:
  """Returns each class's `TP / (TP + FP + FN)`, `[V]` float64.

  NaN for a class that is in no label and in no prediction.

  Args:
    counts: `[V, V]` of the whole data set, from `confusion`.

  Example:
    >>> iou(np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])).tolist()
    [0.5, 0.5714285714285714, nan]
  """
  hits = np.diag(counts).astype(np.float64)
  union = counts.sum(axis=0) + counts.sum(axis=1) - hits
  return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(counts: np.ndarray) -> float:
  """Returns the mean of `iou` over the classes that occur.

  Raises:
    ValueError: if no pixel was counted.
  """
  if not counts.sum():
    raise ValueError("counts must hold at least one pixel, got none")
  return float(np.nanmean(iou(counts)))
