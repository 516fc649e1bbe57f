import json

import pytest

from examples.data.folder import open_folder
from tests.image_files import encode, folder_of, smooth, write

JPEG = encode(smooth(8, 8))


def fill(root, classes, count):
  for name in classes:
    for i in range(count):
      write(root, f"{name}/{i}.jpg", JPEG)
  return str(root)


def names(path, split):
  source = open_folder(str(path), split)
  return [source.name(i) for i in range(len(source))]


def test_train_and_val_are_what_the_folder_says(tmp_path):
  folder_of(tmp_path, count=2)
  assert names(tmp_path, "val") == [
    "val/cat/0.jpg",
    "val/cat/1.jpg",
    "val/dog/0.jpg",
    "val/dog/1.jpg",
  ]
  source = open_folder(str(tmp_path), "train")
  assert source.classes == ("cat", "dog")
  example = source[3]
  assert (example["id"], example["label"]) == ("train/dog/1.jpg", [1])
  assert example["image"].shape == (31, 41, 3)


def test_a_tenth_of_each_class_is_held_out_and_always_the_same(tmp_path):
  path = fill(tmp_path, ("cat", "dog"), 40)
  fill(tmp_path, ("emu",), 2)
  train, val = names(path, "train"), names(path, "val")
  count = {c: sum(n.startswith(c) for n in val) for c in ("cat", "dog", "emu")}
  assert count == {"cat": 4, "dog": 4, "emu": 1}
  assert len({*train, *val}) == len(train) + len(val) == 82
  assert names(path, "val") == val
  # Another image hardly moves the others.
  write(tmp_path, "cat/new.jpg", JPEG)
  assert len(set(val) - set(names(path, "val"))) <= 1


def test_names_are_sorted_and_hidden_ones_left_out(tmp_path):
  for name in ("b/2.PNG", "b/10.jpeg", "a/1.jpg", "a/.DS_Store", ".git/x"):
    write(tmp_path, name, JPEG)
  source = open_folder(str(tmp_path), "train")
  assert source.classes == ("a", "b")


def test_a_hierarchy_adds_labels(tmp_path):
  folder_of(tmp_path, count=1)
  (tmp_path / "hierarchy.json").write_text(
    json.dumps({"cat": "pet", "dog": ["pet"], "pet": "animal"})
  )
  source = open_folder(str(tmp_path), "train")
  assert source.classes == ("cat", "dog", "animal", "pet")
  assert [source[i]["label"] for i in range(2)] == [[0, 2, 3], [1, 2, 3]]


def test_folders_that_cannot_be(tmp_path):
  def refused(message, split="train"):
    with pytest.raises(ValueError, match=message):
      open_folder(str(tmp_path), split)

  with pytest.raises(ValueError, match=r"none is not a folder"):
    open_folder(str(tmp_path / "none"), "train")
  refused("must have a folder for each class")
  (tmp_path / "cat").mkdir()
  refused("class 'cat' has no images: .*cat is empty")
  write(tmp_path, "cat/1.jpg", JPEG)
  refused("too few images to hold any out for 'val'", "val")
  write(tmp_path, "cat/notes.txt", b"")
  write(tmp_path, "cat/old.gif", b"")
  refused(r"only .jpg, .jpeg, .png files; 2 are not, the first 'notes.txt'")


def test_val_has_no_classes_of_its_own(tmp_path):
  folder_of(tmp_path, count=1)
  write(tmp_path, "val/emu/1.jpg", JPEG)
  with pytest.raises(ValueError, match=r"val has classes that .* lacks: emu"):
    open_folder(str(tmp_path), "train")
