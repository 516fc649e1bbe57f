"""Images to tokens: the ViT's patches, shared by both models."""

import jax


def patchify(images: jax.Array, patch: int) -> jax.Array:
  """Cuts images into square patches, one token each.

      images[B, H, W, C] -> patches[B, S, P]

  with `S = (H // patch) * (W // patch)` and `P = patch * patch * C`; pixels
  beyond the last whole patch are left out ("VALID"). Tokens run in
  row-major order over the image, and the numbers of a token in row-major order
  over (row, column, channel) of its patch, so that `patchify(x, p) @ kernel` is
  the strided convolution of big_vision's `models/vit.py` with its kernel
  reshaped from `[p, p, C, D]`.

  Args:
    images: `[B, H, W, C]`, of any dtype.
    patch: height and width of a patch, in pixels.

  Returns:
    `[B, S, P]` in the dtype of `images`.

  Raises:
    ValueError: if `images` does not have four dims or is smaller than a patch.

  Example:
    >>> import jax.numpy as jnp
    >>> patchify(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
  """
  if images.ndim != 4:
    raise ValueError(
      f"images must have 4 dims [B, H, W, C], got images.shape={images.shape}"
    )
  batch, height, width, channels = images.shape
  if not 1 <= patch <= min(height, width):
    raise ValueError(
      f"patch must be at least 1 and fit the images' height {height} and "
      f"width {width}, got patch={patch}"
    )
  rows, columns = height // patch, width // patch
  images = images[:, : rows * patch, : columns * patch]
  grid = images.reshape(batch, rows, patch, columns, patch, channels)
  return grid.swapaxes(2, 3).reshape(batch, rows * columns, -1)
