"""ImageNet and the sets made to test its models, as they lie on disk.

    imagenet:PATH     PATH/val/n01440764/ILSVRC2012_val_00000293.JPEG
    real:PATH         the same, and PATH/real.json (Beyer et al. 2020)
    imagenet_v2:PATH  PATH/0/*.jpeg to PATH/999/*.jpeg
    imagenet_a:PATH   PATH/n01498041/*.jpg, 200 folders
    imagenet_r:PATH   likewise
    objectnet:PATH    PATH/images/air_freshener/*.png, 313 folders
    imagenet_c:PATH   PATH/gaussian_noise/1/n01440764/*.JPEG, 15 x 5 x 1000

The paper shows the middle 75 % of ObjectNet and ImageNet-A with their aspect
kept, and 87.5 % of the others squeezed into a square; ObjectNet's red border
goes first.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.data.crops import central_box, cut
from examples.data.source import EncodedSource
from examples.eval.metrics import corruptions, label_maps

KINDS = (
  "imagenet",
  "real",
  "imagenet_v2",
  "imagenet_a",
  "imagenet_r",
  "objectnet",
  "imagenet_c",
)
_SUFFIXES = (".jpg", ".jpeg", ".png")
_BORDER = 3  # pixels of ObjectNet's red frame, and what JPEG spread of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetSet(EncodedSource):
  """The images of one set, in the crop of the paper.

  Attributes:
    root: the folder that `files` lie in.
    files: paths of the images.
    labels: of each, indices into `classes`.
    classes: their names.
    groups: ImageNet's classes behind each; None where they are ImageNet's.
    share: of the image that is shown.
    keep_aspect: show a square part, instead of squeezing all into a square.
    border: pixels to take off each side first.
  """

  root: Path
  files: Sequence[str]
  labels: Sequence[list[int]]
  classes: tuple[str, ...]
  groups: tuple[tuple[int, ...], ...] | None = None
  share: float = 0.875
  keep_aspect: bool = False
  border: int = 0

  def __len__(self) -> int:
    return len(self.files)

  def read(self, index: int) -> dict:
    name = self.files[index]
    return {
      "image": (self.root / name).read_bytes(),
      "label": self.labels[index],
      "id": name,
    }

  def name(self, index: int) -> str:
    return self.files[index]

  def view(self, image, size: int, rng) -> np.ndarray:
    """Shows the part that the paper does."""
    del rng
    frame = self.border
    width, height = (side - 2 * frame for side in image.size)
    left, top, right, bottom = central_box(
      (width, height), share=self.share, keep_aspect=self.keep_aspect
    )
    box = (left + frame, top + frame, right + frame, bottom + frame)
    return cut(image, box, size, 3)


def open_set(kind: str, path: str) -> ImageNetSet:
  """Opens one of the sets; ImageNet-C's are opened by `open_corrupted`.

  Raises:
    ValueError: if the kind is unknown, or the set is not there as published.
  """
  root = Path(path)
  if kind not in KINDS:
    raise ValueError(f"must be one of {', '.join(KINDS)}, got {kind!r}")
  if kind in ("imagenet", "real"):
    return _imagenet(root, root / "val", kind == "real")
  if kind == "objectnet":
    root = root / "images"
  by_class = _by_class(root, kind)
  folders = sorted(by_class)
  if kind == "imagenet_v2":
    if set(folders) != {str(i) for i in range(label_maps.IMAGENET_CLASSES)}:
      raise ValueError(
        f"imagenet_v2 must have folders 0 to 999 in {root}, got {len(folders)}"
      )
    index = dict(zip(folders, map(int, folders), strict=True))
    return _set(root, by_class, index, _numbered())
  found = label_maps.by_folder(kind, folders)
  index = dict(zip(folders, found, strict=True))
  groups = label_maps.label_map(kind)
  return _set(
    root,
    by_class,
    index,
    tuple(groups),
    groups=tuple(groups.values()),
    **({"share": 0.75, "keep_aspect": True} if kind != "imagenet_r" else {}),
    border=_BORDER if kind == "objectnet" else 0,
  )


def open_corrupted(path: str) -> dict[str, list[ImageNetSet]]:
  """Opens ImageNet-C: of each corruption its five severities.

  Raises:
    ValueError: if one of the 15 or a severity is not there.
  """
  root, found = Path(path), {}
  severities = range(1, corruptions.SEVERITIES + 1)
  for corruption in corruptions.ALEXNET_ERRORS:
    found[corruption] = []
    for severity in severities:
      folder = root / corruption / str(severity)
      found[corruption].append(_imagenet(folder, folder, False))
  return found


def _imagenet(root, folder, real):
  """A folder of 1,000 classes by WordNet name, in their order."""
  by_class = _by_class(folder, "imagenet")
  names = sorted(by_class)
  if len(names) != label_maps.IMAGENET_CLASSES:
    raise ValueError(
      f"{folder} must have ImageNet's 1000 class folders, got {len(names)}"
    )
  index = {name: i for i, name in enumerate(names)}
  found = _set(folder, by_class, index, _numbered())
  if not real:
    return found
  path = root / "real.json"
  if not path.is_file():
    raise ValueError(f"ReaL must have {path}, which is not there")
  labels = json.loads(path.read_text())
  return dataclasses.replace(
    found, labels=[_real(labels, name, path) for name in found.files]
  )


def _real(labels, name, path):
  """ReaL's labels of a file, whose name ends in its number, from 1."""
  number = re.search(r"val_(\d{8})", name)
  if number is None or not 1 <= int(number[1]) <= len(labels):
    raise ValueError(
      f"{path} has {len(labels)} images, of which {name} is not one"
    )
  return labels[int(number[1]) - 1]


def _by_class(root: Path, kind: str) -> dict[str, list[str]]:
  if not root.is_dir():
    raise ValueError(
      f"{kind} must be in {root}, which is not there; it is not downloaded here"
    )
  found = {
    folder.name: sorted(
      f"{folder.name}/{file.name}"
      for file in folder.iterdir()
      if file.suffix.lower() in _SUFFIXES
    )
    for folder in root.iterdir()
    if folder.is_dir()
  }
  if empty := sorted(name for name, files in found.items() if not files):
    raise ValueError(f"{root / empty[0]} has no images")
  return found


def _set(root, by_class, index, classes, **options) -> ImageNetSet:
  pairs = [
    (file, [index[name]])
    for name in sorted(by_class)
    for file in by_class[name]
    if index[name] >= 0
  ]
  return ImageNetSet(
    root=root,
    files=[file for file, _ in pairs],
    labels=[label for _, label in pairs],
    classes=classes,
    **options,
  )


def _numbered() -> tuple[str, ...]:
  return tuple(map(str, range(label_maps.IMAGENET_CLASSES)))
