"""Image files for tests, drawn here."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def smooth(width: int, height: int, *, seed: int = 0) -> np.ndarray:
  """A colour image that JPEG keeps nearly as it is: uint8 `[H, W, 3]`."""
  rng = np.random.default_rng(seed)
  few = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
  return np.asarray(few.resize((width, height), Image.Resampling.BICUBIC))


def encode(
  pixels: np.ndarray, kind: str = "JPEG", mode: str | None = None, **options
) -> bytes:
  """The bytes of an image file."""
  image = Image.fromarray(pixels)
  file = io.BytesIO()
  (image.convert(mode) if mode else image).save(file, kind, **options)
  return file.getvalue()


def write(folder: Path, name: str, data: bytes) -> Path:
  """Writes `folder/name` and the folders that it lies in."""
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return path


def folder_of(
  root: Path, count: int = 6, classes: tuple[str, ...] = ("cat", "dog")
) -> Path:
  """A folder with `train/` and `val/` of `count` JPEGs in each class."""
  for split in ("train", "val"):
    for c, name in enumerate(classes):
      for i in range(count):
        seed = 1000 * c + 100 * (split == "val") + i
        pixels = smooth(40 + i, 30 + c, seed=seed)
        write(root, f"{split}/{name}/{i}.jpg", encode(pixels))
  return root
