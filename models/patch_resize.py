"""A patch embedding for patches of another size than it was learned on."""

import numpy as np


def resize_patch_kernel(
  kernel: np.ndarray,
  patch_from: int,
  patch_to: int,
  *,
  method: str = "pseudo_inverse",
) -> np.ndarray:
  """Returns a patch embedding's kernel for patches of `patch_to` pixels.

      kernel[p * p * C, D] -> [q * q * C, D]

  Let `B` resize a patch from p to q pixels, bilinearly. "pseudo_inverse" gives
  the kernel `w'` whose embedding of the resized patch is nearest to the old
  one of the patch, over patches of white noise:

      w' = argmin E (<x, w> - <B x, w'>)^2 = pinv(B^T) w

  (Beyer et al. 2022, FlexiViT, which the ViT-22B paper follows from 14 to 8
  pixels for images of 64); where q >= p it is exactly the same. "bilinear"
  resizes the kernel like an image, `B w`, which also changes its length.

  Args:
    kernel: rows as `models.patches.patchify` orders a patch.
    patch_from: `p`.
    patch_to: `q`.
    method: "pseudo_inverse" or "bilinear".

  Returns:
    A NumPy array in the dtype of `kernel`.

  Raises:
    ValueError: if a size is less than 1, `kernel` is not of `patch_from`, or
      the method is neither.

  Example:
    >>> resize_patch_kernel(np.ones((14 * 14 * 3, 6)), 14, 8).shape
    (192, 6)
  """
  kernel = np.asarray(kernel)
  if patch_from < 1 or patch_to < 1:
    raise ValueError(
      f"patches must have pixels, got {patch_from} and {patch_to}"
    )
  if kernel.ndim != 2 or kernel.shape[0] % patch_from**2:
    raise ValueError(
      f"kernel must be [{patch_from} * {patch_from} * C, D], got {kernel.shape}"
    )
  resize = _resize_matrix(patch_from, patch_to)
  if method == "pseudo_inverse":
    matrix = np.linalg.pinv(resize.T)
  elif method == "bilinear":
    matrix = resize
  else:
    raise ValueError(
      f"method must be pseudo_inverse or bilinear, got {method!r}"
    )
  pixels = kernel.reshape(patch_from**2, -1).astype(np.float64)
  resized = (matrix @ pixels).astype(kernel.dtype)
  return resized.reshape(-1, kernel.shape[1])


def _resize_matrix(size_from: int, size_to: int) -> np.ndarray:
  """`B[q * q, p * p]`: bilinear, antialiased when it shrinks."""
  step = size_from / size_to
  places = (np.arange(size_to) + 0.5) * step - 0.5
  apart = np.abs(places[:, None] - np.arange(size_from))
  weights = np.maximum(0, 1 - apart / max(1.0, step))
  one = weights / weights.sum(axis=1, keepdims=True)
  return np.kron(one, one)
