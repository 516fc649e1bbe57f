"""Monocular depth: errors over the pixels whose depth is known."""

import numpy as np

THRESHOLDS = (1.1, 1.25, 1.25**2)
"""Of the inlier fractions; 1.25 and its square from Eigen et al. 2014."""


def depth_errors(
  depth: np.ndarray, predicted: np.ndarray, valid: np.ndarray
) -> dict[str, float]:
  """Returns the errors of one image, over its valid pixels.

      mse      mean (log(1 + d) - log(1 + p))^2       the training loss
      abs_rel  mean |d - p| / d
      d<t      share with max(d / p, p / d) < t, for each of `THRESHOLDS`

  Means over a data set are means over its images of these (big_vision
  evaluators/proj/uvim/nyu_depth.py), not over all pixels together.

  Args:
    depth: `d`, positive where valid, of any shape and unit.
    predicted: `p`, in the same unit, after the logarithm was undone; what is
      not above 0 is outside every threshold.
    valid: bool, which pixels have a depth.

  Raises:
    ValueError: if the shapes differ, no pixel is valid, or a valid depth is not
      positive.
  """
  shapes = {np.shape(x) for x in (depth, predicted, valid)}
  if len(shapes) > 1:
    raise ValueError(
      "depth, predicted and valid must have one shape, got "
      f"{np.shape(depth)}, {np.shape(predicted)} and {np.shape(valid)}"
    )
  valid = np.asarray(valid, bool)
  d, p = (np.asarray(x, np.float64)[valid] for x in (depth, predicted))
  if not d.size:
    raise ValueError(f"valid must keep a pixel of {valid.size}, got none")
  if not d.min() > 0:
    raise ValueError(f"valid depths must be above 0, got {d.min()}")
  positive = np.maximum(p, np.finfo(np.float64).tiny)
  ratio = np.maximum(d / positive, positive / d)
  return {
    "mse": float(np.mean((np.log1p(d) - np.log1p(np.maximum(p, 0))) ** 2)),
    "abs_rel": float(np.mean(np.abs(d - p) / d)),
    **{f"d<{t:.4g}": float(np.mean(ratio < t)) for t in THRESHOLDS},
  }


def mean_errors(errors: list[dict[str, float]]) -> dict[str, float]:
  """Returns the mean of each error over images.

  Raises:
    ValueError: if there is no image.
  """
  if not errors:
    raise ValueError("errors must hold at least one image, got none")
  return {name: float(np.mean([e[name] for e in errors])) for name in errors[0]}
