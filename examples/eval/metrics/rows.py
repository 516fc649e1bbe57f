"""What every metric asks of its rows; a message names those that break it."""

import numpy as np

_SHOWN = 5  # rows that a message lists


def named(rows: np.ndarray, names=None) -> str:
  """Says which rows are meant.

  Args:
    rows: their indices, or a mask over all rows.
    names: what to call them instead of their numbers, one for every row.

  Example:
    >>> named(np.array([True, False, True]))
    'rows 0, 2'
    >>> named(np.arange(7))
    'rows 0, 1, 2, 3, 4 and 2 more'
  """
  rows = np.asarray(rows)
  rows = np.flatnonzero(rows) if rows.dtype == bool else rows
  listed = [str(i if names is None else names[i]) for i in rows[:_SHOWN]]
  more = len(rows) - len(listed)
  word = "row" if len(rows) == 1 else "rows"
  return f"{word} {', '.join(listed)}" + (f" and {more} more" if more else "")


def unit_scores(name: str, scores) -> np.ndarray:
  """Returns `scores` as float64 `[N]` or `[N, ...]`, each within [0, 1].

  Raises:
    ValueError: if there are none, or naming the rows that reach outside.
  """
  scores = np.asarray(scores, np.float64)
  if scores.ndim == 0 or not len(scores):
    raise ValueError(f"{name} must have rows, got shape {scores.shape}")
  inside = (scores >= 0) & (scores <= 1)  # false for NaN
  outside = ~inside.reshape(len(scores), -1).all(axis=1)
  if outside.any():
    values = scores.reshape(len(scores), -1)[outside]
    first = values[0][~((values[0] >= 0) & (values[0] <= 1))][0]
    raise ValueError(
      f"{name} must lie in [0, 1]: not so in {named(outside)}, where the first "
      f"is {first}"
    )
  return scores


def class_probabilities(probs) -> np.ndarray:
  """Returns probabilities as `[N, K]`; one column means P(class 1).

  They need not sum to 1: with the columns of some classes left out they do
  not.

  Raises:
    ValueError: if the shape is another, or naming rows outside [0, 1].
  """
  probs = unit_scores("probabilities", probs)
  if probs.ndim > 2 or (probs.ndim == 2 and probs.shape[1] < 1):
    raise ValueError(f"probabilities must be [N, K], got shape {probs.shape}")
  if probs.ndim == 1 or probs.shape[1] == 1:
    positive = probs.reshape(-1)
    probs = np.stack([1 - positive, positive], axis=1)
  return probs


def class_labels(labels, probs: np.ndarray) -> np.ndarray:
  """Returns integer labels `[N]`, one class of `probs[N, K]` each.

  Raises:
    ValueError: if their number is another, or naming the rows whose label is
      no class.
  """
  labels = np.asarray(labels)
  rows, classes = probs.shape
  if labels.shape != (rows,):
    raise ValueError(
      f"labels must be one for each of the {rows} rows, got shape "
      f"{labels.shape}"
    )
  wrong = (labels != np.floor(labels)) | (labels < 0) | (labels >= classes)
  if wrong.any():
    raise ValueError(
      f"labels must be classes from 0 to {classes - 1}: not so in "
      f"{named(wrong)}, where the first is {labels[wrong][0]:g}"
    )
  return labels.astype(np.int64)


def two_classes(labels, metric: str) -> np.ndarray:
  """Returns labels `[N]` as bools, some of them true and some false.

  Raises:
    ValueError: if a label is neither 0 nor 1, or all rows have the same.
  """
  labels = np.asarray(labels)
  if labels.ndim != 1 or not len(labels):
    raise ValueError(
      f"labels must be [N] with rows for {metric}, got shape {labels.shape}"
    )
  wrong = (labels != 0) & (labels != 1)
  if wrong.any():
    raise ValueError(
      f"labels must be 0 or 1 for {metric}: not so in {named(wrong)}, where "
      f"the first is {labels[wrong][0]}"
    )
  labels = labels.astype(bool)
  if labels.all() or not labels.any():
    raise ValueError(
      f"labels must have both classes for {metric}: all rows, 0 to "
      f"{len(labels) - 1}, have label {int(labels[0])}"
    )
  return labels


def same_length(**columns) -> None:
  """Checks that all columns have as many rows.

  Raises:
    ValueError: naming the columns with their lengths.
  """
  lengths = {name: len(column) for name, column in columns.items()}
  if len(set(lengths.values())) > 1:
    listed = ", ".join(f"{name} {n}" for name, n in lengths.items())
    raise ValueError(f"columns must have equally many rows, got {listed}")
