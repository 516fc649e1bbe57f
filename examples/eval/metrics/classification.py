"""Top-1 accuracy with several labels an image, and accuracy by class."""

from collections.abc import Sequence

import numpy as np


def multi_hot(labels: Sequence[int | Sequence[int]], classes: int):
  """Returns labels as `[N, V]` float32 of 0 and 1.

  Args:
    labels: one, several or no class of each image.
    classes: `V`.

  Raises:
    ValueError: if a label is not one of the classes.

  Example:
    >>> multi_hot([1, [0, 2], []], 3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
  """
  out = np.zeros((len(labels), classes), np.float32)
  for row, found in zip(out, labels, strict=True):
    found = np.atleast_1d(np.asarray(found, int))
    if found.size and not (found.min() >= 0 and found.max() < classes):
      raise ValueError(
        f"labels must be from 0 to {classes - 1}, got {found.tolist()}"
      )
    row[found] = 1
  return out


def top1(
  logits: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None
) -> float:
  """Returns the share of images whose largest logit is one of their labels.

  Images without a label do not count, nor do those that the mask leaves out:
  ReaL (Beyer et al. 2020) has images on whose label nobody agreed (big_vision
  evaluators/classification.py).

  Args:
    logits: `[N, V]`, or probabilities.
    labels: `[N, V]`, 1 for each label of an image.
    mask: `[N]`, 0 for padding.

  Raises:
    ValueError: if the shapes differ or no image counts.

  Example:
    >>> logits = np.array([[2, 1, 0], [2, 1, 0], [2, 1, 0]])
    >>> top1(logits, multi_hot([[0, 1], 1, []], 3))  # the last has no label
    0.5
  """
  if logits.shape != labels.shape:
    raise ValueError(
      f"labels must have the shape of logits, {logits.shape}, "
      f"got labels.shape={labels.shape}"
    )
  right, counts = _hits(logits, labels, mask)
  if not counts.any():
    raise ValueError("no image has a label that counts")
  return float(right[counts].mean())


def mean_class_accuracy(
  logits: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None
) -> float:
  """Returns the mean over classes of each class's accuracy.

  For long-tailed data, where `top1` hardly sees the rare classes. An image with
  several labels counts for each; classes without images are left out.

  Args:
    logits, labels, mask: as for `top1`.
  """
  right, counts = _hits(logits, labels, mask)
  held = labels[counts] > 0
  images = held.sum(axis=0)
  hits = (held * right[counts][:, None]).sum(axis=0)
  return float((hits[images > 0] / images[images > 0]).mean())


def _hits(logits, labels, mask):
  """Which images are right, and which count."""
  top = logits.argmax(axis=1)
  right = labels[np.arange(len(labels)), top] > 0
  counts = labels.any(axis=1)
  if mask is not None:
    counts &= np.asarray(mask) > 0
  return right, counts
