"""Data sets of masks: their published folders, and what may be wrong there."""

import numpy as np
import pytest
from PIL import Image

from examples.data.masks import IGNORE, open_masks, sized

RNG = np.random.default_rng(0)


def picture(path, size=(8, 6)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, (255, 0, 0)).save(path)


def mask(path, numbers, palette=False):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(np.asarray(numbers, np.uint8))
  if palette:  # VOC's masks: numbers that look like colours
    image.putpalette(RNG.integers(0, 256, 768).astype(np.uint8).tobytes())
  image.save(path)


def ade20k(root, numbers):
  picture(root / "images/training/a.jpg")
  mask(root / "annotations/training/a.png", numbers)
  return open_masks(f"ade20k:{root}", "train")


def test_ade20k_counts_from_one(tmp_path):
  numbers = RNG.integers(0, 151, (6, 8))
  numbers[0, :2] = 0, 150
  source = ade20k(tmp_path, numbers)
  example = source[0]
  assert (len(source), source.classes) == (1, 150)
  assert example["id"] == "a"
  assert example["image"].shape == (6, 8, 3)
  expected = np.where(numbers == 0, IGNORE, numbers - 1)
  np.testing.assert_array_equal(example["mask"], expected)


def test_voc_reads_numbers_of_palettes(tmp_path):
  (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
  (tmp_path / "ImageSets/Segmentation/val.txt").write_text("b\na\n")
  numbers = RNG.integers(0, 21, (6, 8))
  numbers[0, 0] = IGNORE
  for name in "ab":
    picture(tmp_path / f"JPEGImages/{name}.jpg")
    mask(tmp_path / f"SegmentationClass/{name}.png", numbers, palette=True)
  source = open_masks(f"voc:{tmp_path}", "val")
  assert [source[i]["id"] for i in range(2)] == ["b", "a"]
  np.testing.assert_array_equal(source[0]["mask"], numbers)


def test_context_has_59_classes(tmp_path):
  (tmp_path / "ImageSets/SegmentationContext").mkdir(parents=True)
  (tmp_path / "ImageSets/SegmentationContext/train.txt").write_text("a")
  picture(tmp_path / "JPEGImages/a.jpg")
  mask(tmp_path / "SegmentationClassContext/a.png", np.full((6, 8), 59))
  source = open_masks(f"context:{tmp_path}", "train")
  assert (source.classes, source[0]["mask"].max()) == (59, 58)


def test_drawn_scenes_are_held_out():
  train, test = (open_masks("scenes:3", split) for split in ("train", "val"))
  assert len(train) == len(test) == 3
  assert not np.array_equal(train[0]["image"], test[0]["image"])


def test_sized_keeps_labels_whole():
  example = open_masks("scenes:1", "train", size=32)[0]
  image, labels = sized(example, 50)
  assert (image.shape, image.dtype) == ((50, 50, 3), np.float32)
  assert set(np.unique(labels)) <= set(np.unique(example["mask"]))


def test_bad_files(tmp_path):
  source = ade20k(tmp_path, np.ones((5, 8)))
  with pytest.raises(ValueError, match=r"a\.png: .* 8 x 6, got 8 x 5"):
    source[0]
  source = ade20k(tmp_path, np.full((6, 8), 151))
  with pytest.raises(
    ValueError, match=r"a\.png: classes must be below 151, go"
  ):
    source[0]
  source = ade20k(tmp_path, np.zeros((6, 8, 3)))
  with pytest.raises(ValueError, match=r"a\.png: .* one number a pixel, got 3"):
    source[0]
  (tmp_path / "annotations/training/a.png").write_text("no picture")
  with pytest.raises(ValueError, match=r"a\.png: cannot be read as a PNG"):
    source[0]


def test_bad_folders(tmp_path):
  with pytest.raises(ValueError, match=r"must be ade20k:PATH, .* got 'coco:x'"):
    open_masks("coco:x", "train")
  with pytest.raises(ValueError, match="has no images where they are"):
    open_masks(f"ade20k:{tmp_path}", "train")
  with pytest.raises(ValueError, match=r"train\.txt must list the images"):
    open_masks(f"voc:{tmp_path}", "train")
  picture(tmp_path / "images/validation/a.jpg")
  with pytest.raises(ValueError, match=r"1 files of .* the first .*a\.png"):
    open_masks(f"ade20k:{tmp_path}", "val")
  with pytest.raises(ValueError, match="split must be train or val, got 'all'"):
    open_masks("scenes:1", "all")
