"""Frames with points: where each point lands, and what may be wrong."""

import numpy as np
import pytest
from PIL import Image

from examples.data.depths import open_depths


def frame(folder, points, size=(8, 4)):
  folder.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size).save(folder / "a.jpg")
  np.savez(folder / "a.npz", points=np.asarray(points, np.float64))
  return open_depths(f"frames:{folder.parent}", "train")


def test_points_are_laid_on_the_middle_square(tmp_path):
  # The square is columns 2 to 6 of an 8 x 4 frame, enlarged by two.
  points = [
    (2.0, 0.0, 5.0),  # its upper left corner
    (5.9, 3.9, 7.0),  # its lower right one
    (1.9, 1.0, 9.0),  # left of it
    (6.0, 1.0, 9.0),  # right of it
    (3.1, 2.2, 4.0),  # two on one pixel: the nearest is seen
    (3.2, 2.4, 3.0),
  ]
  found = frame(tmp_path / "train", points).sized(0, 8)
  assert found["image"].shape == (8, 8, 3)
  expected = np.zeros((8, 8))
  expected[0, 0], expected[7, 7], expected[4, 2] = 5, 7, 3
  np.testing.assert_array_equal(found["depth"], expected)
  np.testing.assert_array_equal(found["valid"], expected > 0)


def test_drawn_scenes_know_depth_where_they_say():
  source = open_depths("scenes:2", "val")
  example = source.sized(1, 32)
  assert len(source) == 2
  np.testing.assert_array_equal(example["depth"] > 0, example["valid"])


def test_bad_files(tmp_path):
  folder = tmp_path / "train"
  with pytest.raises(ValueError, match=r"a\.npz: none of 1 points lies on"):
    frame(folder, [(0, 0, 1)]).sized(0, 8)
  with pytest.raises(ValueError, match=r"a\.npz: points must be \[N, 3\], got"):
    frame(folder, [(0, 0)]).sized(0, 8)
  with pytest.raises(ValueError, match=r"a\.npz: depths must be above 0, got"):
    frame(folder, [(3, 0, -1)]).sized(0, 8)
  source = frame(folder, [(3, 0, 1)])
  (folder / "a.npz").write_bytes(b"no points")
  with pytest.raises(ValueError, match=r"a\.npz: has no array 'points'"):
    source.sized(0, 8)
  (folder / "a.npz").unlink()
  with pytest.raises(ValueError, match=r"1 frames of .* no points, the first"):
    open_depths(f"frames:{tmp_path}", "train")


def test_bad_specs(tmp_path):
  with pytest.raises(
    ValueError, match="frames:PATH or scenes:N, got 'scenes:x'"
  ):
    open_depths("scenes:x", "train")
  with pytest.raises(ValueError, match=r"must hold frames NAME\.jpg, and has"):
    open_depths(f"frames:{tmp_path}", "val")
