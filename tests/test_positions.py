import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from models.positions import resample

sides = st.integers(2, 9)
grids = st.tuples(sides, sides)


def ramp(grid):
  """A constant, and each coordinate, from -1 to 1 over the grid."""
  rows, columns = (np.linspace(-1, 1, n) for n in grid)
  y, x = np.meshgrid(rows, columns, indexing="ij")
  return np.stack([np.full(grid, 0.3), y, x], axis=-1).reshape(-1, 3)


@hypothesis.given(grid_from=grids, grid_to=grids)
@hypothesis.settings(deadline=None, max_examples=30)
def test_constants_and_ramps_are_preserved(grid_from, grid_to):
  position = ramp(grid_from).astype(np.float32)
  got = resample(position, grid_from, grid_to)
  assert got.dtype == np.float32
  # Two float32 products of order one and their sum.
  np.testing.assert_allclose(got, ramp(grid_to), atol=5e-7)


def test_each_cell_is_the_mean_of_its_neighbours_by_distance():
  position = np.random.default_rng(0).normal(size=(16, 5))
  grid = position.reshape(4, 4, 5)
  got = resample(position, (4, 4), (7, 3)).reshape(7, 3, 5)
  for i in range(7):
    for j in range(3):
      y, x = i * 3 / 6, j * 3 / 2
      top, left = min(int(y), 2), min(int(x), 2)
      y, x = y - top, x - left
      cell = grid[top : top + 2, left : left + 2]
      want = np.einsum("a,b,abd->d", [1 - y, y], [1 - x, x], cell)
      np.testing.assert_allclose(got[i, j], want, atol=1e-6)


def test_equal_grids_change_nothing():
  position = np.random.default_rng(0).normal(size=(6, 4))
  np.testing.assert_array_equal(resample(position, (2, 3), (2, 3)), position)


def test_a_position_of_another_grid_is_refused():
  with pytest.raises(ValueError, match=r"must be \[2 \* 2, D\], got \(5, 3\)"):
    resample(np.zeros((5, 3)), (2, 2), (4, 4))
  with pytest.raises(ValueError, match=r"grids must have cells, got \(2, 2\)"):
    resample(np.zeros((4, 3)), (2, 2), (0, 4))
