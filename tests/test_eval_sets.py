"""Public data sets in their on-disk layouts, in small, and where absent."""

import json

import numpy as np
import pytest
from PIL import Image

from examples.data.shapes import SHAPES, is_unseen, open_shapes
from examples.data.sources import open_source
from examples.eval import imagenet_sets
from examples.eval.captions import open_captions
from examples.eval.metrics.label_maps import label_map

NAMES = [f"n{i:08}" for i in range(1000)]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
  """One small JPEG, of which the data sets are made by links."""
  path = tmp_path_factory.mktemp("image") / "image.jpg"
  Image.fromarray(np.full((20, 40, 3), 90, np.uint8)).save(path)
  return path


def fill(root, folders, image, name="a.jpg"):
  for folder in folders:
    (root / folder).mkdir(parents=True)
    (root / folder / name.format(folder)).symlink_to(image)
  return root


def test_imagenet_is_numbered_by_its_sorted_names(tmp_path, image):
  fill(tmp_path / "val", NAMES[::-1], image)
  found = imagenet_sets.open_set("imagenet", str(tmp_path))
  assert len(found) == 1000 and found.groups is None
  assert found.files[7] == f"{NAMES[7]}/a.jpg" and found.labels[7] == [7]
  assert found.view(found.encoded(0)["image"], 8, None).shape == (8, 8, 3)


def test_real_takes_the_label_of_the_number_in_the_name(tmp_path, image):
  folders = fill(tmp_path / "val", NAMES, image, "ILSVRC2012_val_00000002.JPEG")
  assert folders.is_dir()
  (tmp_path / "real.json").write_text(json.dumps([[1], [3, 5]]))
  found = imagenet_sets.open_set("real", str(tmp_path))
  assert found.labels[0] == [3, 5]
  (tmp_path / "real.json").write_text(json.dumps([[1]]))
  with pytest.raises(ValueError, match=r"has 1 images, of which n0+/ILS"):
    imagenet_sets.open_set("real", str(tmp_path))


def test_imagenet_a_has_200_folders(tmp_path, image):
  fill(tmp_path, NAMES[:200], image)
  found = imagenet_sets.open_set("imagenet_a", str(tmp_path))
  assert found.groups == tuple(label_map("imagenet_a").values())
  assert (found.share, found.keep_aspect) == (0.75, True)
  assert found.labels[199] == [199]
  r = imagenet_sets.open_set("imagenet_r", str(tmp_path))
  assert (r.share, r.keep_aspect) == (0.875, False)


def test_imagenet_v2_is_numbered_by_its_names(tmp_path, image):
  fill(tmp_path, map(str, range(1000)), image)
  found = imagenet_sets.open_set("imagenet_v2", str(tmp_path))
  of = dict(zip(found.files, found.labels, strict=True))
  assert of["10/a.jpg"] == [10] and of["2/a.jpg"] == [2]


def test_objectnet_leaves_out_classes_and_the_red_frame(tmp_path):
  framed = np.full((46, 66, 3), (255, 0, 0), np.uint8)
  framed[3:-3, 3:-3] = (0, 90, 0)
  path = tmp_path / "framed.png"
  Image.fromarray(framed).save(path)
  folders = [*label_map("objectnet"), "squeegee"]
  fill(tmp_path / "images", folders, path, "a.png")
  found = imagenet_sets.open_set("objectnet", str(tmp_path))
  assert len(found) == 113 == len(found.groups)
  assert not any("squeegee" in name for name in found.files)
  shown = found.view(found.encoded(0)["image"], 12, None)
  assert (shown == (0, 90, 0)).all()


def test_imagenet_c_needs_all_corruptions(tmp_path, image):
  fill(tmp_path / "gaussian_noise" / "1", NAMES, image)
  with pytest.raises(ValueError, match="gaussian_noise/2, which is not there"):
    imagenet_sets.open_corrupted(str(tmp_path))


@pytest.mark.parametrize("kind", imagenet_sets.KINDS[:-1])
def test_an_absent_set_is_one_clear_line(tmp_path, kind):
  with pytest.raises(ValueError, match="which is not there"):
    imagenet_sets.open_set(kind, str(tmp_path / "nowhere"))


def test_folders_that_are_not_the_sets(tmp_path, image):
  fill(tmp_path, NAMES[:3], image)
  with pytest.raises(ValueError, match="200 class folders, got 3"):
    imagenet_sets.open_set("imagenet_r", str(tmp_path))
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="empty has no images"):
    imagenet_sets.open_set("imagenet_r", str(tmp_path))
  with pytest.raises(ValueError, match="must be one of imagenet, real"):
    imagenet_sets.open_set("imagenet_b", str(tmp_path))


def test_coco_captions(tmp_path, image):
  fill(tmp_path, ["val2017"], image)
  (tmp_path / "annotations").mkdir()
  listing = {
    "images": [{"id": 5, "file_name": "a.jpg"}],
    "annotations": [
      {"image_id": 5, "caption": "one"},
      {"image_id": 5, "caption": "two"},
    ],
  }
  path = tmp_path / "annotations" / "captions_val2017.json"
  path.write_text(json.dumps(listing))
  found = open_captions(f"coco:{tmp_path}", "val")
  assert len(found) == 1 and found.captions(0) == ("one", "two")
  assert found[0]["image"].shape == (20, 40, 3)
  with pytest.raises(ValueError, match=r"captions_train2017\.json, which is"):
    open_captions(f"coco:{tmp_path}", "train")


def test_flickr30k_takes_karpathys_test_split(tmp_path, image):
  fill(tmp_path, ["flickr30k-images"], image)
  listing = {
    "images": [
      {"filename": "a.jpg", "split": s, "sentences": [{"raw": s}]}
      for s in ("train", "val", "test")
    ]
  }
  (tmp_path / "dataset_flickr30k.json").write_text(json.dumps(listing))
  found = open_captions(f"flickr30k:{tmp_path}", "val")
  assert [found.captions(i) for i in range(len(found))] == [("test",)]


def test_json_lines_of_pairs(tmp_path, image):
  (tmp_path / "a.jpg").symlink_to(image)
  lines = [{"image": "a.jpg", "caption": c} for c in ("one", "two")]
  path = tmp_path / "val.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)))
  assert open_captions(f"jsonl:{tmp_path}", "val").captions(0) == ("one", "two")
  path.write_text('{"image": "b.jpg", "caption": "c"}')
  with pytest.raises(ValueError, match=r"must have its images, but .*b\.jpg"):
    open_captions(f"jsonl:{tmp_path}", "val")
  path.write_text("{}")
  with pytest.raises(ValueError, match=r'val\.jsonl, line 1: must be {"image"'):
    open_captions(f"jsonl:{tmp_path}", "val")
  with pytest.raises(NotImplementedError, match="only shapes and coco:PATH"):
    open_captions("webli", "val")


def test_shapes_are_the_same_for_the_same_index():
  source = open_shapes("", "train")
  first, again = source[5], open_shapes("", "train")[5]
  np.testing.assert_array_equal(first["image"], again["image"])
  assert first["image"].shape == (64, 64, 3)
  assert (first["image"] != open_shapes("", "val")[5]["image"]).any()
  with pytest.raises(IndexError, match="from 0 to 4095, got 4096"):
    source[len(source)]


def test_shapes_hold_combinations_back():
  seen, unseen = (open_shapes(which, "val") for which in ("", "unseen"))
  assert not set(seen.combinations) & set(unseen.combinations)
  assert len(seen.combinations) + len(unseen.combinations) == 48
  for pairs in (seen.combinations, unseen.combinations):
    assert {c for c, _ in pairs} == set(range(8))
    assert {s for _, s in pairs} == set(range(6))
  assert all(is_unseen(*pair) for pair in unseen.combinations)
  assert open_source("shapes:unseen", "val").classes == unseen.classes
  with pytest.raises(ValueError, match=r"shapes:all, got 'no"):
    open_source("shapes:none", "val")


def test_labels_and_captions_say_what_is_drawn():
  source = open_shapes("", "val")
  colour, shape, size = (source.classes[i] for i in source[3]["label"])
  for text in source.captions(3):
    assert colour in text and shape in text and size in text
  whole = open_shapes("unseen", "val")
  assert whole.classes[whole[4]["label"]].split()[1] in SHAPES
