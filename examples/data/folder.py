"""A folder of images by class: `PATH/cat/1.jpg`, `PATH/train/cat/1.jpg`."""

import hashlib
import math
from pathlib import Path

from examples.data import hierarchy
from examples.data.source import EncodedSource

_SUFFIXES = (".jpg", ".jpeg", ".png")
_SPLITS = ("train", "val")
_HELD_OUT = 0.1  # of each class, where the folder has no split of its own


class Folder(EncodedSource):
  """The images of a folder, read when they are asked for.

  Attributes:
    classes: names of the labels; those of folders first.
  """

  def __init__(
    self,
    root: Path,
    files: list[str],
    labels: list[list[int]],
    classes: tuple[str, ...],
  ):
    """Args:
    root: the folder that `files` lie in.
    files: their paths below `root`, which are the ids too.
    labels: of each file, its own class's first.
    classes: names of the labels.
    """
    self._root, self._files, self._labels = root, files, labels
    self.classes = classes

  def __len__(self) -> int:
    return len(self._files)

  def read(self, index: int) -> dict:
    name = self._files[index]
    with open(f"{self._root}/{name}", "rb") as file:
      data = file.read()
    return {
      "image": data,
      "label": self._labels[index],
      "id": name,
    }

  def name(self, index: int) -> str:
    return self._files[index]


def open_folder(path: str, split: str) -> Folder:
  """Scans a folder of images by class; reads names alone.

  With `train/` and `val/` in it, each holds a folder for each class. Otherwise
  the folders are the classes, and a tenth of each is held out for "val": which
  images depends on their names alone, and at least one of two is. Names that
  start with a dot are left out. A `hierarchy.json` or `hierarchy.csv` adds the
  labels above (`examples.data.hierarchy`).

  Args:
    path: the folder.
    split: "train" or "val".

  Raises:
    ValueError: if there are no classes, a class has no images, a file in a
      class's folder is not named like an image, or `val/` has other classes.
  """
  root = Path(path)
  if not root.is_dir():
    raise ValueError(f"{root} is not a folder")
  if all((root / name).is_dir() for name in _SPLITS):
    found = {name: _scan(root / name) for name in _SPLITS}
    unknown = sorted(found["val"].keys() - found["train"].keys())
    if unknown:
      raise ValueError(
        f"{root / 'val'} has classes that {root / 'train'} lacks: "
        f"{', '.join(unknown)}"
      )
    names, files = list(found["train"]), found[split]
    prefix = f"{split}/"
  else:
    found = _scan(root)
    names, prefix = list(found), ""
    files = {name: _part(name, found[name], split) for name in names}
  classes, labels = hierarchy.flatten(names, hierarchy.read(root))
  listed = [
    (f"{prefix}{name}/{file}", labels[name])
    for name, inside in files.items()
    for file in inside
  ]
  if not listed:
    raise ValueError(f"{root} has too few images to hold any out for {split!r}")
  return Folder(root, *map(list, zip(*listed, strict=True)), classes)


def _scan(folder: Path) -> dict[str, list[str]]:
  """Names of the images by class, both sorted."""
  classes = sorted(
    p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."
  )
  if not classes:
    raise ValueError(
      f"{folder} must have a folder for each class, with images in it; "
      "it has no folder"
    )
  return {name: _images(folder / name) for name in classes}


def _images(folder: Path) -> list[str]:
  names = sorted(p.name for p in folder.iterdir() if p.name[0] != ".")
  other = [n for n in names if not n.lower().endswith(_SUFFIXES)]
  if other:
    raise ValueError(
      f"{folder} must hold only {', '.join(_SUFFIXES)} files; "
      f"{len(other)} are not, the first {other[0]!r}"
    )
  if not names:
    raise ValueError(f"class {folder.name!r} has no images: {folder} is empty")
  return names


def _part(name: str, files: list[str], split: str) -> list[str]:
  count = max(math.ceil(len(files) * _HELD_OUT), 1) if len(files) > 1 else 0

  def draw(file: str) -> bytes:
    return hashlib.sha256(f"{name}/{file}".encode()).digest()

  held_out = set(sorted(files, key=draw)[:count])
  return [f for f in files if (f in held_out) == (split == "val")]
