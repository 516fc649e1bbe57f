"""Perceptual similarity: which of two images do people find nearer to a third?

Features are those of many layers at once, compared as LPIPS does without its
learned weights (Zhang et al. 2018, richzhang/PerceptualSimilarity).
"""

from collections.abc import Sequence

import numpy as np
from sklearn import metrics

from examples.eval.metrics.rows import (
  named,
  same_length,
  two_classes,
  unit_scores,
)

_EPSILON = 1e-10  # LPIPS adds it to the norm


def feature_distance(
  one: Sequence[np.ndarray],
  other: Sequence[np.ndarray],
  *,
  mean_pool: bool = False,
) -> np.ndarray:
  """Returns the distance of two batches of images by their features, `[N]`.

      sum_l mean_s |u_l(a)_s - u_l(b)_s|^2,   u = f / |f|

  over layers l and tokens s, each token of unit length. The mean-pool variant
  (Kumar et al. 2022) takes the mean token first, and its unit vector then: it
  does not ask where something is.

  Args:
    one: of every layer, `[N, S, D]`.
    other: likewise.
    mean_pool: use the variant.

  Raises:
    ValueError: if the layers or their shapes differ.
  """
  if len(one) != len(other) or not one:
    raise ValueError(
      f"both must have the same layers, at least one, got {len(one)} and "
      f"{len(other)}"
    )
  total = 0.0
  for layer, (a, b) in enumerate(zip(one, other, strict=True)):
    if a.shape != b.shape or a.ndim != 3:
      raise ValueError(
        f"features must both be [N, S, D]: layer {layer} has {a.shape} and "
        f"{b.shape}"
      )
    if mean_pool:
      a, b = (x.mean(axis=1, keepdims=True) for x in (a, b))
    total = total + ((_unit(a) - _unit(b)) ** 2).sum(axis=-1).mean(axis=1)
  return total


def two_afc_score(distance0, distance1, preference) -> float:
  """Returns how often a distance decides as people do, from 0 to 1.

      mean of (d0 < d1)(1 - g) + (d1 < d0) g + [d0 = d1] / 2

  Args:
    distance0: `[N]`, of image 0 to the reference.
    distance1: `[N]`, of image 1.
    preference: `[N]`, `g`, the share of people who find image 1 nearer.

  Raises:
    ValueError: if the lengths differ, or naming rows whose preference or
      distance is none.

  Example:
    >>> two_afc_score([0.1, 0.5], [0.2, 0.5], [0.2, 0.9])
    0.65
  """
  g = unit_scores("preferences", preference)
  d0, d1 = _distances(distance0), _distances(distance1)
  same_length(distance0=d0, distance1=d1, preference=g)
  agreed = (d0 < d1) * (1 - g) + (d1 < d0) * g + 0.5 * (d0 == d1)
  return float(agreed.mean())


def best_two_afc_score(preference) -> float:
  """Returns the score of the majority: no distance has a higher one."""
  g = unit_scores("preferences", preference)
  return float(np.maximum(g, 1 - g).mean())


def jnd_score(distance, same) -> float:
  """Returns the average precision of a small distance for "the same".

  Args:
    distance: `[N]`, of the two images of a pair.
    same: `[N]`, 1 where people saw no difference (a majority of them).

  Raises:
    ValueError: if all pairs are the same, or none is.
  """
  same = two_classes(same, "the JND score")
  distance = _distances(distance)
  same_length(distance=distance, same=same)
  return float(metrics.average_precision_score(same, -distance))


def _unit(x):
  norm = np.sqrt((x**2).sum(axis=-1, keepdims=True))
  return x / (norm + _EPSILON)


def _distances(x) -> np.ndarray:
  x = np.asarray(x, np.float64)
  if not np.isfinite(x).all():
    raise ValueError(
      f"distances must be finite: not so in {named(~np.isfinite(x))}"
    )
  return x
