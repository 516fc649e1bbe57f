"""Batches of images: the same ones for the same seed and step, every time."""

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from models.vit_config import ViTConfig

_SIDE, _INK, _CLASSES = 8, 16, 10  # of scikit-learn's digits

# Largest random changes of a training image. More shift than this would push
# strokes out of the scan, which they fill from edge to edge.
_ROTATION = 0.2  # radians
_SCALE = 0.1  # of the size
_SHIFT = 0.8  # scan pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """Part of a data set: scans `[N, 8, 8]` in [-1, 1] and labels `[N]`."""

  scans: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)


def load(name: str) -> tuple[Split, Split]:
  """Returns the training part and the held-out fifth of a data set.

  The digits are the 1,797 scans that scikit-learn carries (UCI optdigits,
  Alpaydin & Kaynak 1998). Each class gives a fifth; which scans are held out
  does not depend on the seed of a run.

  Args:
    name: "digits".

  Raises:
    NotImplementedError: if this command cannot read the data set.
  """
  if name != "digits":
    raise NotImplementedError(
      f"data set {name!r} cannot be read by this command yet, only 'digits'"
    )
  digits = load_digits()
  scans = (digits.images / (_INK / 2) - 1).astype(np.float32)
  parts = train_test_split(
    scans,
    digits.target,
    test_size=0.2,
    stratify=digits.target,
    random_state=0,
  )
  train_scans, test_scans, train_labels, test_labels = parts
  return (
    Split(scans=train_scans, labels=train_labels),
    Split(scans=test_scans, labels=test_labels),
  )


def train_batches(
  split: Split, cfg: ViTConfig, *, batch: int, seed: int
) -> grain.MapDataset:
  """Returns endless training batches; item `i` is the batch of step `i`.

  Each epoch has its own order, and each image is turned, scaled and shifted
  anew. An item depends on `seed` and `i` alone, so that a run can continue at
  any step.

  Args:
    split: what to draw from.
    cfg: the model that the batches are for.
    batch: `B`, images of one batch.
    seed: of order and augmentation.

  Returns:
    Items `{"image": [B, H, W, 1], "label": [B, V], "mask": [B]}`, all float32:
    images in [-1, 1], labels and mask 0 or 1.

  Raises:
    ValueError: if `cfg` is not a model for the digits.
  """
  _check(cfg)
  examples = list(zip(split.scans, split.labels, strict=True))

  def augment(example, rng):
    scan, label = example
    image = render(
      scan,
      cfg.image,
      angle=rng.uniform(-_ROTATION, _ROTATION),
      scale=rng.uniform(1 - _SCALE, 1 + _SCALE),
      shift=rng.uniform(-_SHIFT, _SHIFT, 2),
    )
    return _example(image, label)

  data = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
  return data.random_map(augment).batch(batch)


def prefetched(data: grain.MapDataset, start: int, stop: int) -> Iterator[dict]:
  """Yields items `start` to `stop`, made on a thread ahead of their use."""
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  return iter(data.slice(slice(start, stop)).to_iter_dataset(options))


def eval_batches(split: Split, cfg: ViTConfig, *, batch: int) -> list[dict]:
  """Returns the whole split in order, the last batch filled with mask 0.

  Args:
    split: what to evaluate on.
    cfg: the model that the batches are for.
    batch: `B`, images of one batch.

  Returns:
    Batches as from `train_batches`, not augmented.

  Raises:
    ValueError: if `cfg` is not a model for the digits.
  """
  _check(cfg)
  examples = [
    _example(render(scan, cfg.image), label)
    for scan, label in zip(split.scans, split.labels, strict=True)
  ]
  padding = -len(examples) % batch
  whole = {
    name: np.stack([example[name] for example in examples])
    for name in examples[0]
  }
  padded = {
    name: np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)])
    for name, x in whole.items()
  }
  return [
    {name: x[start : start + batch] for name, x in padded.items()}
    for start in range(0, len(examples), batch)
  ]


def render(
  scan: np.ndarray,
  size: int,
  *,
  angle: float = 0.0,
  scale: float = 1.0,
  shift: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
  """Draws a scan at another size, turned, scaled and shifted.

  Bilinear, once: the pixel at `u` from the centre of the image, in scan
  pixels, shows the scan at `R(angle) u / scale + shift` from its centre.

  Args:
    scan: `[8, 8]` float32 in [-1, 1].
    size: height and width of the image, in pixels.
    angle: radians.
    scale: of the strokes' size.
    shift: (x, y), scan pixels.

  Returns:
    `[size, size, 1]` float32; what lies outside the scan is -1, no ink.
  """
  step = _SIDE / size
  cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
  centre = _SIDE / 2
  x = centre + shift[0] - (cos + sin) * centre
  y = centre + shift[1] - (cos - sin) * centre
  image = Image.fromarray(scan).transform(
    (size, size),
    Image.Transform.AFFINE,
    (cos * step, sin * step, x, -sin * step, cos * step, y),
    Image.Resampling.BILINEAR,
    fillcolor=-1,
  )
  return np.asarray(image)[..., None]


def _example(image, label):
  return {
    "image": image,
    "label": np.eye(_CLASSES, dtype=np.float32)[label],
    "mask": np.float32(1),
  }


def _check(cfg):
  if (cfg.channels, cfg.classes) != (1, _CLASSES):
    raise ValueError(
      f"cfg must have channels=1 and classes={_CLASSES} for the digits, got "
      f"channels={cfg.channels} and classes={cfg.classes}"
    )
