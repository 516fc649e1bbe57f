"""A classifier made of the embeddings of sentences about each class."""

import numpy as np

_EPSILON = 1e-8  # big_vision's, below the norm


def normalised(x: np.ndarray) -> np.ndarray:
  """Returns `x` over its norm along the last dim.

  Example:
    >>> normalised(np.array([3.0, 4.0])).round(6)
    array([0.6, 0.8])
  """
  return x / (np.linalg.norm(x, axis=-1, keepdims=True) + _EPSILON)


def classifier(prompts: np.ndarray, class_of: np.ndarray) -> np.ndarray:
  """Returns a unit vector for each class: the mean of its prompts'.

  Prompts are normalised, averaged and normalised again (Radford et al. 2021;
  big_vision discriminative_classifier.py).

  Args:
    prompts: `[T, D]` embeddings of texts.
    class_of: `[T]` class of each, from 0, every class at least once.

  Returns:
    `[V, D]`.

  Raises:
    ValueError: if a class has no prompt.
  """
  class_of = np.asarray(class_of, int)
  count = np.bincount(class_of)
  if not count.all():
    raise ValueError(f"class {int(np.argmin(count))} has no prompt")
  unit = normalised(np.asarray(prompts, np.float64))
  sums = np.zeros((len(count), unit.shape[1]))
  np.add.at(sums, class_of, unit)
  return normalised(sums / count[:, None])


def scores(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Returns the cosines `[N, V]` of images `[N, D]` and classes `[V, D]`."""
  return normalised(np.asarray(images, np.float64)) @ weights.T
