"""Head2Toe: one linear classifier on the features of every layer.

Evci et al. 2022. The paper takes all features, unselected: 349,081 of ViT-22B.
"""

from collections.abc import Mapping

import numpy as np

from models.vit_config import ViTConfig


def feature_count(cfg: ViTConfig) -> int:
  """Returns the length of the vector that `concatenated` makes.

  The embedded patches, every block, the final norm, the pooling's attention
  and the pre-logits give `D` each, the classifier its logits.

  Example:
    >>> from models.vit_config import get_config
    >>> feature_count(get_config("vit_22b"))  # 52 * 6144 + 29_593
    349081
  """
  layers = 1 + cfg.depth + 1 + bool(cfg.pool) + 1
  return layers * cfg.width + cfg.classes


def concatenated(features: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns `[N, all features]`, each image's layers scaled to unit length.

  Without it the layers of the largest numbers would do all the talking.

  Args:
    features: of each layer `[N, D]`, as `examples.eval.features` gives them.
  """
  norms = [np.linalg.norm(x, axis=1, keepdims=True) for x in features.values()]
  return np.concatenate(
    [
      x / np.maximum(norm, 1e-8)
      for x, norm in zip(features.values(), norms, strict=True)
    ],
    axis=1,
  )


def group_lasso_scores(weights: np.ndarray) -> np.ndarray:
  """Returns `s_i = ||W_i||_2`: how much each feature is used.

  Args:
    weights: `[features, V]` of a head trained with the penalty `sum_i s_i`.

  Example:
    >>> group_lasso_scores(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [5.0, 0.0]
  """
  return np.linalg.norm(weights, axis=1)


def keep(scores: np.ndarray, fraction: float) -> np.ndarray:
  """Returns the indices of the best-scored share of features, in order.

  Args:
    scores: `[features]`.
    fraction: of them, in (0, 1]; at least one is kept.

  Raises:
    ValueError: if the fraction is out of range.

  Example:
    >>> keep(np.array([0.1, 0.9, 0.5, 0.7]), 0.5).tolist()
    [1, 3]
  """
  check_fraction(fraction)
  count = max(1, int(len(scores) * fraction))
  return np.sort(np.argsort(-scores, kind="stable")[:count])


def check_fraction(fraction: float) -> None:
  """Checks a share of features to keep.

  Raises:
    ValueError: if it is not in (0, 1].
  """
  if not 0 < fraction <= 1:
    raise ValueError(f"fraction must be in (0, 1], got {fraction}")
