"""Drawn scenes and clips: what they promise of masks, depths and motions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.data.scenes import CLASSES, MOTIONS, draw_clip, draw_scene


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(8, 48))
def test_a_scene(seed, size):
  scene = draw_scene(seed, size)
  assert scene.image.shape == (size, size, 3)
  assert scene.image.dtype == np.float32
  assert np.abs(scene.image).max() <= 1
  assert scene.mask.max() < len(CLASSES)
  assert scene.depth.min() > 0
  assert np.isfinite(scene.depth).all()
  # The wall is behind all else, and a floor comes nearer downward.
  wall = scene.depth[scene.mask == 0]
  if wall.size:
    assert wall.min() == scene.depth.max()
  for column_mask, column in zip(scene.mask.T, scene.depth.T, strict=True):
    assert (np.diff(column[column_mask == 1]) <= 0).all()


def test_a_seed_is_a_scene():
  one, same, other = (draw_scene(seed, 32) for seed in (1, 1, 2))
  np.testing.assert_array_equal(one.image, same.image)
  assert not np.array_equal(one.image, other.image)


def test_depth_is_known_at_some_pixels_of_every_fourth_row():
  rows = draw_scene(0, 64).valid.any(axis=1)
  assert rows.sum() == 16
  assert (
    0.05 < np.mean([draw_scene(s, 64).valid.mean() for s in range(8)]) < 0.2
  )


def test_colour_does_not_tell_the_class():
  colours = [[] for _ in CLASSES]
  for seed in range(200):
    scene = draw_scene(seed, 32)
    for kind in range(2, 5):
      if (scene.mask == kind).any():
        colours[kind].append(scene.image[scene.mask == kind].mean(axis=0))
  means = np.array([np.mean(c, axis=0) for c in colours[2:]])
  # Standard errors are about 0.03: 150 draws of deviation 0.4.
  assert np.abs(means).max() < 0.15


def test_a_clip_moves_as_it_says():
  for seed in range(12):
    clip = draw_clip(seed, 48, 5)
    motion = clip.motion
    for frame, inside in zip(clip.frames, clip.inside, strict=True):
      # The noise is 0.05, and each has one colour.
      assert frame[inside].std(axis=0).max() < 0.1
      assert frame[~inside].std(axis=0).max() < 0.1
    rows, columns = (
      np.array([axis[frame].mean() for frame in clip.inside])
      for axis in np.indices((48, 48))
    )
    places = columns if MOTIONS[motion] in ("right", "left") else rows
    sign = 1 if MOTIONS[motion] in ("right", "down") else -1
    assert (sign * np.diff(places) > 0).all(), (seed, motion)


def test_every_motion_is_drawn():
  found = [draw_clip(seed, 8, 2).motion for seed in range(400)]
  assert np.bincount(found).min() > 60


def test_bad_input():
  with pytest.raises(ValueError, match="at least 8 pixels, got 7"):
    draw_scene(0, 7)
  with pytest.raises(ValueError, match="frames must be at least 2, got 1"):
    draw_clip(0, 16, 1)
