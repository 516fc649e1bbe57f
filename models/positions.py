"""Position embeddings for another grid of patches than they were learned on."""

import numpy as np
from scipy import ndimage


def resample(
  position: np.ndarray, grid_from: tuple[int, int], grid_to: tuple[int, int]
) -> np.ndarray:
  """Returns a position embedding drawn over another grid, bilinearly.

      position[h * w, D] -> [h' * w', D]

  The corners of both grids coincide (`scipy.ndimage.zoom` with `order=1`, as
  big_vision's `models/vit.py` `resample_posemb`), so that constants and linear
  ramps stay what they are; grids that are equal change nothing. A class token
  has no place on the grid: keep its row aside.

  Args:
    position: rows in row-major order over the grid.
    grid_from: rows and columns `(h, w)` that `position` has.
    grid_to: rows and columns `(h', w')` to return.

  Returns:
    A NumPy array in the dtype of `position`.

  Raises:
    ValueError: if a grid has no cell, or `position` not those of `grid_from`.

  Example:
    >>> resample(np.array([[0.0], [2.0], [4.0], [6.0]]), (2, 2), (3, 2)).T
    array([[0., 2., 2., 4., 4., 6.]])
  """
  position = np.asarray(position)
  rows, columns = grid_from
  if min(*grid_from, *grid_to) < 1:
    raise ValueError(f"grids must have cells, got {grid_from} and {grid_to}")
  if position.ndim != 2 or len(position) != rows * columns:
    raise ValueError(
      f"position must be [{rows} * {columns}, D], got {position.shape}"
    )
  if grid_from == grid_to:
    return position
  grid = position.reshape(rows, columns, -1).astype(np.float32)
  zoom = grid_to[0] / rows, grid_to[1] / columns, 1
  drawn = ndimage.zoom(grid, zoom, order=1)
  return drawn.reshape(-1, position.shape[1]).astype(position.dtype)
