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
  data = _batched(data, cfg, batch, rows)
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
  return _batched(data, cfg, batch, range(batch) if rows is None else rows)


class _Rows(grain.MapDataset):
  """Some rows of each batch of its parent, whose items are single examples."""

  def __init__(self, parent, batch, rows):
    super().__init__(parent)
    self._batch, self._rows = batch, tuple(rows)

  def __len__(self):
    return len(self.parents[0]) // self._batch * len(self._rows)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    step, row = divmod(index, len(self._rows))
    return self.parents[0][step * self._batch + self._rows[row]]


def _order(source, seed) -> grain.MapDataset:
  """Indices of examples, endlessly, each epoch in its own order."""
  return grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()


def _batched(data, cfg, batch, rows) -> grain.MapDataset:
  def stack(examples):
    # Not zeros: the system hands out empty pages in larger pieces.
    images = np.empty(
      (len(examples), cfg.image, cfg.image, cfg.channels), np.float32
    )
    for out, example in zip(images, examples, strict=True):
      _put(out, example["image"])
    return {
      "image": images,
      "label": np.stack([example["label"] for example in examples]),
      "mask": np.array([example["mask"] for example in examples], np.float32),
    }

  return _Rows(data, batch, rows).batch(len(rows), batch_fn=stack)


def _put(out: np.ndarray, image: np.ndarray | None) -> None:
  """Writes an image into its row of a batch, in [-1, 1]."""
  if image is None:
    out[...] = 0
  elif image.dtype != np.uint8:
    out[...] = image
  else:
    # What is seen from behind is copied faster by channels than by pixels.
    if image.strides[1] < 0:
      for channel in range(image.shape[2]):
        out[..., channel] = image[..., channel]
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
    shown = cut(image, box, size, channels)
    return shown[:, ::-1] if augment.flip and rng.random() < 0.5 else shown

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
