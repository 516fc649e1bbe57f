"""Clips as folders of frames: what a view has, and what may be wrong."""

import numpy as np
import pytest
from PIL import Image

from examples.data.clips import open_clips
from examples.data.skipped import BadImage


def write(root, clip, frames, split="train"):
  folder = root / split / clip
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(frames):
    Image.new("RGB", (12, 10), (i, i, i)).save(folder / f"{i:04}.png")


def test_frames_of_a_view(tmp_path):
  write(tmp_path, "run/a", 9)
  write(tmp_path, "jump/b", 5)
  source = open_clips(f"frames:{tmp_path}", "train")
  assert (source.classes, source.labels) == (("jump", "run"), (0, 1))
  clip = source.read(1, 8, count=3, stride=2)
  assert clip.shape == (3, 8, 8, 3)
  # Four frames to spare, two before: 2, 4, 6.
  np.testing.assert_allclose(
    (clip[:, 0, 0, 0] + 1) * 127.5, [2, 4, 6], atol=1e-4
  )


def test_views_spread_over_the_clip(tmp_path):
  write(tmp_path, "run/a", 10)
  source = open_clips(f"frames:{tmp_path}", "train")
  starts = [source.frames(0, 3, 1, view, 4)[0].stem for view in range(4)]
  assert starts == ["0000", "0002", "0004", "0006"]


def test_a_clip_too_short_is_named(tmp_path):
  write(tmp_path, "run/a", 4)
  source = open_clips(f"frames:{tmp_path}", "train")
  with pytest.raises(ValueError, match=r"run/a: 3 .* need a clip of 5, got 4"):
    source.read(0, 8, count=3, stride=2)


def test_a_frame_that_cannot_be_read_is_named(tmp_path):
  write(tmp_path, "run/a", 3)
  (tmp_path / "train/run/a/0001.png").write_bytes(b"no picture")
  source = open_clips(f"frames:{tmp_path}", "train")
  with pytest.raises(BadImage, match=r"0001\.png: not a JPEG or PNG"):
    source.read(0, 8, count=3, stride=1)


def test_drawn_clips_have_the_labels_of_what_is_drawn():
  source = open_clips("clips:6", "train")
  assert len(source.labels) == len(source) == 6
  assert source.read(2, 16, count=4, stride=9).shape == (4, 16, 16, 3)


def test_bad_folders(tmp_path):
  with pytest.raises(ValueError, match="frames:PATH or clips:N, got 'k400'"):
    open_clips("k400", "train")
  with pytest.raises(
    ValueError, match="must hold a folder for each of its cla"
  ):
    open_clips(f"frames:{tmp_path}", "train")
  (tmp_path / "train/run").mkdir(parents=True)
  with pytest.raises(ValueError, match=r"run must hold .* each of its clips"):
    open_clips(f"frames:{tmp_path}", "train")
  (tmp_path / "train/run/a").mkdir()
  with pytest.raises(ValueError, match="a must hold frames, has none"):
    open_clips(f"frames:{tmp_path}", "train")
