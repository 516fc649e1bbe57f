"""Images with a class for every pixel: ADE20K, Pascal VOC and Context."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from examples.data.decode import Encoded
from examples.data.scenes import CLASSES, draw_scene

IGNORE = 255  # the label of pixels that do not count
_HELD_OUT_SEED = 1_000_000  # of drawn scenes: those of "val" start here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masks:
  """A source of `{"image": uint8 [H, W, 3], "mask": uint8 [H, W], "id": str}`.

  Attributes:
    files: of each example, the image and its mask.
    classes: `V`; masks hold numbers below it, or `IGNORE`.
    first: the number in the files that is class 0; what is below is ignored.
  """

  files: tuple[tuple[Path, Path], ...]
  classes: int
  first: int = 0

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> dict:
    """Reads one example.

    Raises:
      ValueError: if a file cannot be read, the mask has another size than the
        image, or holds what is no class.
    """
    path, mask_path = self.files[index]
    image = np.asarray(Encoded(path.read_bytes(), str(path)).decode(3))
    mask = self._mask(mask_path)
    if mask.shape != image.shape[:2]:
      raise ValueError(
        f"{mask_path}: the mask must have the image's size, "
        f"{image.shape[1]} x {image.shape[0]}, got {mask.shape[1]} x "
        f"{mask.shape[0]}"
      )
    return {"image": image, "mask": mask, "id": path.stem}

  def _mask(self, path):
    try:
      with Image.open(path, formats=("PNG",)) as file:
        mask = np.asarray(file)  # a palette's numbers, not its colours
    except OSError as error:
      raise ValueError(f"{path}: cannot be read as a PNG file") from error
    if mask.ndim != 2:
      raise ValueError(
        f"{path}: a mask must have one number a pixel, got {mask.shape[2]}"
      )
    mask = mask.astype(np.int32)
    known = (mask >= self.first) & (mask != IGNORE)
    mask = np.where(known, mask - self.first, IGNORE)
    largest = mask[known].max(initial=0)
    if largest >= self.classes:
      raise ValueError(
        f"{path}: classes must be below {self.classes + self.first}, "
        f"got {largest + self.first}"
      )
    return mask.astype(np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnMasks:
  """A source of drawn scenes, as `Masks` gives them."""

  count: int
  size: int
  first_seed: int
  classes = len(CLASSES)

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> dict:
    scene = draw_scene(self.first_seed + index, self.size)
    image = np.round((scene.image + 1) * 127.5).astype(np.uint8)
    return {"image": image, "mask": scene.mask, "id": f"scene {index}"}


def open_masks(spec: str, split: str, *, size: int = 64) -> Masks | DrawnMasks:
  """Opens a data set of masks by its published folders; reads names alone.

      ade20k:PATH   images/{training,validation}/*.jpg and annotations/ with a
                    .png for each: 0 is nothing, 1 to 150 the classes
      voc:PATH      JPEGImages, SegmentationClass and
                    ImageSets/Segmentation/{train,val}.txt: 21 classes
      context:PATH  JPEGImages, SegmentationClassContext and
                    ImageSets/SegmentationContext/{train,val}.txt: 0 is nothing,
                    1 to 59 the classes
      scenes:N      N drawn scenes (`examples.data.scenes`)

  Args:
    spec: one of these.
    split: "train" or "val".
    size: of drawn scenes, in pixels.

  Raises:
    ValueError: if the spec is none of these, or files are missing.
  """
  kind, _, path = spec.partition(":")
  if split not in ("train", "val"):
    raise ValueError(f"split must be train or val, got {split!r}")
  if kind == "scenes" and path.isdigit() and int(path):
    first = 0 if split == "train" else _HELD_OUT_SEED
    return DrawnMasks(count=int(path), size=size, first_seed=first)
  root = Path(path)
  if path and kind == "ade20k":
    part = {"train": "training", "val": "validation"}[split]
    images = sorted((root / "images" / part).glob("*.jpg"))
    folder = root / "annotations" / part
    return _opened(spec, images, folder, classes=150, first=1)
  if path and kind == "voc":
    images = _listed(root, "Segmentation", split)
    return _opened(spec, images, root / "SegmentationClass", classes=21)
  if path and kind == "context":
    images = _listed(root, "SegmentationContext", split)
    folder = root / "SegmentationClassContext"
    return _opened(spec, images, folder, classes=59, first=1)
  raise ValueError(
    f"must be ade20k:PATH, voc:PATH, context:PATH or scenes:N, got {spec!r}"
  )


def sized(example: dict, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Squeezes an example into a square.

  Returns:
    float32 `[size, size, 3]` in [-1, 1], bilinear, and the uint8 mask
    `[size, size]`, each pixel that of the nearest.
  """
  shape = (size, size)
  image = Image.fromarray(example["image"]).resize(
    shape, Image.Resampling.BILINEAR
  )
  mask = Image.fromarray(example["mask"]).resize(
    shape, Image.Resampling.NEAREST
  )
  return np.asarray(image, np.float32) / 127.5 - 1, np.asarray(mask)


def _listed(root, name, split):
  path = root / "ImageSets" / name / f"{split}.txt"
  if not path.is_file():
    raise ValueError(f"{path} must list the images, and is not there")
  names = path.read_text().split()
  return [root / "JPEGImages" / f"{name}.jpg" for name in names]


def _opened(spec, images, masks, **options) -> Masks:
  if not images:
    raise ValueError(f"{spec} has no images where they are published")
  files = tuple((path, masks / f"{path.stem}.png") for path in images)
  missing = [path for pair in files for path in pair if not path.is_file()]
  if missing:
    raise ValueError(
      f"{len(missing)} files of {spec} are missing, the first {missing[0]}"
    )
  return Masks(files=files, **options)
