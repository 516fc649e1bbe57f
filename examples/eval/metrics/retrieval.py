"""Recall of image-text retrieval, both ways, several texts an image."""

from collections.abc import Sequence

import numpy as np

KS = (1, 5, 10)


def recall(
  distances: np.ndarray, image_of: Sequence[int], ks: Sequence[int] = KS
) -> dict[str, float]:
  """Returns the share of queries that find what belongs to them in the first k.

  An image has found its text if any of its texts is among its nearest; a text,
  if its image is (big_vision image_text_retrieval.py). Ties go to the lower
  index.

  Args:
    distances: `[images, texts]`, smaller is nearer.
    image_of: `[texts]`, the image that each text belongs to.
    ks: how many of the nearest count.

  Returns:
    "image to text R@k" and "text to image R@k" for each `k`.

  Raises:
    ValueError: if `image_of` does not fit, or an image has no text.
  """
  images, texts = distances.shape
  image_of = np.asarray(image_of, int)
  if image_of.shape != (texts,):
    raise ValueError(
      f"image_of must name an image for each of {texts} texts, got "
      f"{image_of.shape}"
    )
  if set(image_of.tolist()) != set(range(images)):
    raise ValueError(
      f"every one of {images} images must have a text, got texts of "
      f"{len(set(image_of.tolist()))} images"
    )
  texts_of_image = np.argsort(distances, axis=1, kind="stable")
  images_of_text = np.argsort(distances, axis=0, kind="stable")
  found = {}
  for k in ks:
    right = image_of[texts_of_image[:, :k]] == np.arange(images)[:, None]
    found[f"image to text R@{k}"] = float(right.any(axis=1).mean())
  for k in ks:
    right = images_of_text[:k] == image_of
    found[f"text to image R@{k}"] = float(right.any(axis=0).mean())
  return found
