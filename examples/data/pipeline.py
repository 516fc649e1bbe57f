"""Batches of images: the same ones for the same seed and step, every time."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import grain
import numpy as np

from examples.data import mixup
from examples.data.crops import central_box, cut, inception_box
from examples.data.skipped import BadImage, Skipped
from examples.data.source import Source
from models.vit_config import ViTConfig

_LOOKED_AT = 200  # examples that are read before training, evenly spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
  """What is done at random to a training image.

  The paper's: crops of 5 to 100 % of the area, flips, no mixup.

  Attributes:
    area: smallest and largest share of an image that is shown.
    ratio: smallest and largest width over height of that part.
    flip: show every other image from behind.
    mixup: alpha of mixup's Beta distribution; 0 leaves mixup out.
    mixup_per: draw mixup's weight for each "batch" or each "example".

  Raises:
    ValueError: if a range is empty or alpha is negative.
  """

  area: tuple[float, float] = (0.05, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)
  flip: bool = True
  mixup: float = 0.0
  mixup_per: Literal["batch", "example"] = "batch"

  def __post_init__(self):
    if not 0 < self.area[0] <= self.area[1] <= 1:
      raise ValueError(f"area must rise in (0, 1], got {self.area}")
    if not 0 < self.ratio[0] <= self.ratio[1]:
      raise ValueError(f"ratio must be positive and rise, got {self.ratio}")
    if self.mixup < 0:
      raise ValueError(f"mixup must be at least 0, got {self.mixup}")
    if self.mixup_per not in ("batch", "example"):
      raise ValueError(
        f"mixup_per must be batch or example, got {self.mixup_per!r}"
      )


def train_batches(
  source: Source,
  cfg: ViTConfig,
  *,
  batch: int,
  seed: int,
  augment: Augment | None = None,
  rows: Sequence[int] | None = None,
  skipped: Skipped | None = None,
  levels: bool = False,
) -> grain.MapDataset:
  """Returns endless training batches; item `i` is the batch of step `i`.

  Each epoch has its own order, and each image is cropped and flipped anew, or
  as its source would have it. Row `r` of item `i` depends on `seed`, `i * batch
  + r` and the source alone, so that a run can go on at any step and with any
  number of hosts.

  An image that cannot be decoded leaves its row empty, with mask 0: no other
  row changes.

  Args:
    source: what to draw from.
    cfg: the model that the batches are for.
    batch: `B`, images of one batch, over all hosts.
    seed: of order and augmentation.
    augment: None for the paper's; not used if the source has a `view`, but for
      mixup.
    rows: which rows of a batch to make (`feed.host_rows`); None for all.
    skipped: counts images left out, and says when they are too many; None
      allows ten.
    levels: leave images as uint8 levels, which are a quarter of the bytes and
      which `feed.on_device` makes values of; not those that are mixed up or a
      source's `view`.

  Returns:
    Items `{"image": [B, H, W, C], "label": [B, V], "mask": [B]}`, all float32:
    images in [-1, 1], labels and mask 0 or 1, labels between with mixup. With
    `rows`, `B` is their number.

  Raises:
    ValueError: if `cfg` is not a model for this data, or a label that was
      looked at is out of range.
    UsageError: if more images than `skipped` allows are bad.
  """
  augment = augment or Augment()
  rows = range(batch) if rows is None else rows
  if augment.mixup:
    mixup.check_pairs(rows)
  read = _reader(source, cfg, skipped, _crop_at_random(augment))
  data = _order(source, seed).random_map(read)
  kind = _kind(source, levels and not augment.mixup)
  data = _Batches(data, cfg, batch, rows, kind)
  if augment.mixup:

    def mix(examples, rng):
      weight = mixup.weights(rng, augment.mixup, batch, per=augment.mixup_per)
      return mixup.mix(examples, weight[list(rows)])

    data = data.random_map(mix)
  return data


def train_names(source: Source, *, batch: int, seed: int) -> grain.MapDataset:
  """Returns the ids of the training batches: item `i` is a list of `B`."""
  data = _order(source, seed).map(source.name)
  return data.batch(batch, batch_fn=list)


def eval_batches(
  source: Source,
  cfg: ViTConfig,
  *,
  batch: int,
  share: float = 0.875,
  keep_aspect: bool = True,
  rows: Sequence[int] | None = None,
  skipped: Skipped | None = None,
  levels: bool = False,
) -> grain.MapDataset:
  """Returns the whole source in order, the last batch filled with mask 0.

  Args:
    source: what to evaluate on.
    cfg: the model that the batches are for.
    batch: `B`, images of one batch, over all hosts.
    share: of the image that is shown, in its middle (`crops.central_box`).
    keep_aspect: show a square part; otherwise squeeze the image into a square.
    rows: as for `train_batches`.
    skipped: as for `train_batches`.
    levels: as for `train_batches`.

  Returns:
    `ceil(len(source) / B)` items as from `train_batches`, not augmented; they
    are made when they are asked for.

  Raises:
    ValueError: as `train_batches`.
    UsageError: as `train_batches`.
  """

  def crop(image, size, channels, rng):
    del rng
    box = central_box(_size(image), share=share, keep_aspect=keep_aspect)
    return cut(image, box, size, channels)

  read = _reader(source, cfg, skipped, crop)
  count = len(source)
  padded = -(-count // batch) * batch
  data = grain.MapDataset.range(padded).map(
    lambda index: read(index, None) if index < count else _blank(cfg)
  )
  rows = range(batch) if rows is None else rows
  return _Batches(data, cfg, batch, rows, _kind(source, levels))


class _Batches(grain.MapDataset):
  """Some rows of each batch of its parent, whose items are single examples.

  Each image is put into its batch as soon as it is made: as many as a batch
  has, held until all are there, would take fresh memory every time.
  """

  def __init__(self, parent, cfg, batch, rows, kind):
    super().__init__(parent)
    self._cfg, self._batch, self._rows = cfg, batch, tuple(rows)
    self._kind = kind

  def __len__(self):
    return len(self.parents[0]) // self._batch

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    cfg, count = self._cfg, len(self._rows)
    # Not zeros: the system hands out empty pages in larger pieces.
    images = np.empty((count, cfg.image, cfg.image, cfg.channels), self._kind)
    labels = np.empty((count, cfg.classes), np.float32)
    mask = np.empty(count, np.float32)
    for i, row in enumerate(self._rows):
      example = self.parents[0][index * self._batch + row]
      _put(images[i], example["image"])
      labels[i], mask[i] = example["label"], example["mask"]
    return {"image": images, "label": labels, "mask": mask}


def _order(source, seed) -> grain.MapDataset:
  """Indices of examples, endlessly, each epoch in its own order."""
  return grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()


def _kind(source, levels):
  """The dtype of images in a batch."""
  return np.uint8 if levels and not hasattr(source, "view") else np.float32


def _put(out: np.ndarray, image: np.ndarray | None) -> None:
  """Writes an image into its row of a batch: levels, or values in [-1, 1]."""
  if image is None:
    out[...] = 0
  elif image.dtype == out.dtype:
    out[...] = image
  else:
    out[...] = image
    out *= np.float32(1 / 127.5)  # 255 becomes 2 exactly
    out -= 1


def _reader(source, cfg, skipped, crop) -> Callable:
  """Returns what makes one row, from an index and a generator or None."""
  _check(source, cfg)
  if skipped is None:
    skipped = Skipped()
  read = getattr(source, "encoded", source.__getitem__)
  view = getattr(source, "view", None)
  _look(source, read, skipped)

  def row(index, rng):
    try:
      example = read(index)
      if view:
        image = view(example["image"], cfg.image, rng)
      else:
        image = crop(example["image"], cfg.image, cfg.channels, rng)
    except BadImage as error:
      skipped.add(error)
      return _blank(cfg)
    label = np.zeros(cfg.classes, np.float32)
    label[_labels(source, example)] = 1
    return {"image": image, "label": label, "mask": 1}

  return row


def _crop_at_random(augment) -> Callable:
  def crop(image, size, channels, rng):
    box = inception_box(
      _size(image), rng, area=augment.area, ratio=augment.ratio
    )
    behind = augment.flip and rng.random() < 0.5
    return cut(image, box, size, channels, behind=behind)

  return crop


def _blank(cfg) -> dict:
  return {
    "image": None,
    "label": np.zeros(cfg.classes, np.float32),
    "mask": 0,
  }


def _size(image) -> tuple[int, int]:
  """(width, height)."""
  if isinstance(image, np.ndarray):
    return image.shape[1], image.shape[0]
  return image.size


def _labels(source, example) -> list[int]:
  label = example["label"]
  labels = [label] if isinstance(label, int) else label
  count = len(source.classes)
  if not all(0 <= x < count for x in labels):
    raise ValueError(
      f"labels must be from 0 to {count - 1}, got {label} of {example['id']}"
    )
  return labels


def _look(source, read, skipped) -> None:
  """Reads some examples, so that what is wrong with all is said at once."""
  count = len(source)
  for index in range(0, count, max(1, count // _LOOKED_AT)):
    try:
      _labels(source, read(index))
    except BadImage as error:
      skipped.add(error)


def _check(source, cfg) -> None:
  if not len(source):
    raise ValueError("the data has no examples")
  if cfg.classes != len(source.classes):
    raise ValueError(
      f"cfg must have classes={len(source.classes)} for this data, got "
      f"classes={cfg.classes}"
    )
  if cfg.channels not in (1, 3):
    raise ValueError(
      f"cfg must have channels=1 or channels=3, got channels={cfg.channels}"
    )
