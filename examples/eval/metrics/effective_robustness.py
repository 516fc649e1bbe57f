"""Effective robustness: accuracy under a shift beyond what accuracy predicts.

Taori et al. 2020: over models trained alike, accuracy on a shifted set follows
a line in accuracy on the set trained for, both on the logit axis.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit


class Line(NamedTuple):
  """`logit(shifted) = slope * logit(standard) + intercept`."""

  slope: float
  intercept: float

  def predict(self, standard: np.ndarray | float):
    """The accuracy on the shifted set that the line expects."""
    return expit(self.slope * logit(standard) + self.intercept)


def fit_line(standard: Sequence[float], shifted: Sequence[float]) -> Line:
  """Fits the line through baseline models by least squares.

  Args:
    standard: accuracy of each on the set trained for, in (0, 1).
    shifted: on the shifted set.

  Raises:
    ValueError: if there are fewer than two models, or an accuracy is 0 or 1.

  Example:
    >>> line = fit_line([0.5, 0.8], [0.3, 0.6])
    >>> round(float(line.predict(0.5)), 6)
    0.3
  """
  x, y = np.asarray(standard, float), np.asarray(shifted, float)
  if x.shape != y.shape or x.size < 2:
    raise ValueError(
      f"a line needs two models or more, got {x.size} and {y.size} accuracies"
    )
  both = np.concatenate([x, y])
  if both.min() <= 0 or both.max() >= 1:
    raise ValueError(
      f"accuracies must lie between 0 and 1, got {both.min()} to {both.max()}"
    )
  slope, intercept = np.polyfit(logit(x), logit(y), 1)
  return Line(float(slope), float(intercept))


def effective_robustness(standard: float, shifted: float, line: Line) -> float:
  """Returns `shifted - line.predict(standard)`.

  Example:
    >>> line = fit_line([0.5, 0.8], [0.3, 0.6])
    >>> round(effective_robustness(0.5, 0.35, line), 6)
    0.05
  """
  return float(shifted - line.predict(standard))
