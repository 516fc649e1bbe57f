"""Few-shot transfer: least squares on the features of a few images a class.

big_vision evaluators/fewshot_lsr.py and scenic train_lib/transfer/
fewshot_utils.py, whose protocol this is.
"""

from collections.abc import Mapping, Sequence

import numpy as np

SHOTS = (1, 5, 10, 25)  # the paper's
L2 = 2.0**10  # big_vision's fixed one
L2_RANGE = tuple(2.0**power for power in range(-10, 20))  # scenic's

_EPSILON = 1e-5
_BIAS = 100.0  # a constant feature so large that the bias is hardly shrunk


class Ridge:
  """Least squares with L2, solved for any number of strengths at once.

      W = (X'X + l2 I)^-1 X'Y        primal, D x D
        = X' (XX' + l2 I)^-1 Y       dual, N x N

  Features are standardised by the support images and get a constant feature of
  100; targets are -1 and 1. One eigendecomposition of the smaller of the two
  matrices serves every strength. In float64.
  """

  def __init__(
    self,
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    form: str = "auto",
  ):
    """Decomposes.

    Args:
      features: `[N, D]` of the support images.
      labels: `[N]` classes.
      classes: `V`.
      form: "primal", "dual", or "auto" for the smaller.

    Raises:
      ValueError: if there is no image, or features and labels differ in number.
    """
    if len(features) != len(labels) or not len(labels):
      raise ValueError(
        f"every support image must have features and a label, got "
        f"{len(features)} and {len(labels)}"
      )
    x = np.asarray(features, np.float64)
    self._mean = x.mean(axis=0)
    self._std = x.std(axis=0) + _EPSILON
    x = self._prepared(x)
    y = 2.0 * np.eye(classes)[np.asarray(labels, int)] - 1
    if form == "auto":
      form = "primal" if x.shape[0] >= x.shape[1] else "dual"
    if form == "primal":
      self._eigs, q = np.linalg.eigh(x.T @ x)
      self._left, self._right = q, q.T @ (x.T @ y)
    else:
      self._eigs, q = np.linalg.eigh(x @ x.T)
      self._left, self._right = x.T @ q, q.T @ y

  def weights(self, l2: float = L2) -> np.ndarray:
    """Returns `W`, `[D + 1, V]`; the last row is of the constant feature."""
    # Rounding leaves eigenvalues of a singular matrix around zero.
    inverse = 1 / (np.maximum(self._eigs, 0) + l2)
    return (self._left * inverse) @ self._right

  def scores(self, features: np.ndarray, l2: float = L2) -> np.ndarray:
    """Returns the scores `[M, V]` of other images."""
    return self._prepared(np.asarray(features, np.float64)) @ self.weights(l2)

  def _prepared(self, x):
    x = (x - self._mean) / self._std
    return np.concatenate([x, np.full((len(x), 1), _BIAS)], axis=1)


def support(
  labels: Sequence[int], shots: int, seed: int, *, strict: bool = False
) -> np.ndarray:
  """Draws which training images are the support set.

  The same seed gives smaller sets that are part of the larger ones.

  Args:
    labels: `[N]` classes of the training images.
    shots: `k`, images of each class.
    seed: of the draw.
    strict: refuse a class with fewer than `k` images, which otherwise gives
      all it has.

  Returns:
    Indices of the chosen images, class by class.

  Raises:
    ValueError: if `k` is less than 1, or as `strict` says.
  """
  if shots < 1:
    raise ValueError(f"shots must be at least 1, got {shots}")
  labels = np.asarray(labels)
  rng = np.random.default_rng(seed)
  chosen = []
  for label in np.unique(labels):
    images = rng.permutation(np.flatnonzero(labels == label))
    if strict and len(images) < shots:
      raise ValueError(
        f"every class must have {shots} images, class {label} has {len(images)}"
      )
    chosen.append(images[:shots])
  return np.concatenate(chosen)


def choose_l2(accuracy: Mapping[str, Mapping[float, float]]) -> float:
  """Returns the one strength that is best over several data sets.

  The one of the highest mean rank, so that no set is tuned for by itself.

  Args:
    accuracy: of each data set, by strength; all with the same strengths.

  Raises:
    ValueError: if there is no data set, or the strengths differ.

  Example:
    >>> choose_l2({"a": {1: 0.5, 2: 0.7}, "b": {1: 0.1, 2: 0.2}})
    2
  """
  strengths = [tuple(found) for found in accuracy.values()]
  if len(set(strengths)) != 1:
    raise ValueError(
      f"all data sets must have the same strengths, got {len(set(strengths))} "
      f"lists of {len(strengths)} data sets"
    )
  ranks = [
    np.argsort(np.argsort(list(found.values()), kind="stable"), kind="stable")
    for found in accuracy.values()
  ]
  return strengths[0][int(np.argmax(np.mean(ranks, axis=0)))]
