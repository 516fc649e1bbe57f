"""What an evaluation reads: a model, two parts of a data set, features."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from examples.data.crops import cut, inception_box
from examples.data.pipeline import eval_batches
from examples.data.source import Source
from examples.data.sources import open_source
from examples.eval import command, demo
from examples.eval.features import extract
from examples.usage import blame
from models.vit_config import ViTConfig

_PIXELS = 16  # side of the images of the raw-pixel baseline
_READ = 64  # images at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One model on one data set.

  Attributes:
    cfg: the model's shape.
    params: its parameters.
    mesh: the devices.
    train: the part to fit on.
    test: the part to report.
    out: folder of the results.
    batch: images at a time, over all devices.
    data: what the data set is called.
  """

  cfg: ViTConfig
  params: dict
  mesh: jax.sharding.Mesh
  train: Source
  test: Source
  out: Path
  batch: int
  data: str

  @property
  def classes(self) -> int:
    """`V`, classes of the data set."""
    return len(self.train.classes)

  def features(self, split: str, layers: Sequence[str] = ("pre_logits",)):
    """Returns `read_features` of a part, kept in the results' folder."""
    return read_features(
      self.cfg,
      self.params,
      self.mesh,
      getattr(self, split),
      layers=layers,
      batch=self.batch,
      cache=self.out / "features",
    )

  def pixels(self) -> tuple["Part", "Part"]:
    """Returns `read_pixels` of both parts."""
    return read_pixels(self.train, self.cfg), read_pixels(self.test, self.cfg)


class Part(NamedTuple):
  """Features and labels of the images that could be read.

  Attributes:
    features: `[N, D]` by layer.
    labels: `[N, V]` of 0 and 1.
  """

  features: dict[str, np.ndarray]
  labels: np.ndarray

  @property
  def x(self) -> np.ndarray:
    """The features of the only layer."""
    (x,) = self.features.values()
    return x

  @property
  def classes(self) -> np.ndarray:
    """`[N]`, the first label of each image."""
    return self.labels.argmax(axis=1)


def open_task(
  given,
  name: str,
  *,
  data: str | None = None,
  demo_data: str = "shapes:unseen",
  demo_steps: int | None = None,
) -> Task:
  """Opens what the flags name: `--checkpoint` and `--data`, or `--demo`.

  Args:
    given: the flags.
    name: of the evaluation.
    data: the data set; None for that of the flags.
    demo_data: that of `--demo`.
    demo_steps: that its model learns the digits in; None for its own.

  Raises:
    UsageError: if one of them cannot be read.
  """
  mesh = command.mesh_of(given)
  out = command.out_folder(given, name)
  spec = data or (demo_data if given.demo else command.data_of(given))
  with blame(f"--data={spec}"):
    train, test = open_source(spec, "train"), open_source(spec, "val")
  if not given.demo:
    cfg, params = command.model_of(given, mesh)
  elif spec == "digits":
    steps = {} if demo_steps is None else {"steps": demo_steps}
    cfg, params = demo.digits(**steps)
  else:
    cfg, params = demo.shapes()
  return Task(
    cfg=cfg,
    params=params,
    mesh=mesh,
    train=train,
    test=test,
    out=out,
    batch=given.batch,
    data=spec,
  )


class Shown:
  """The images of a source as the model sees them; their labels on the way."""

  def __init__(
    self, source: Source, cfg: ViTConfig, *, share=0.875, keep_aspect=True
  ):
    """Args:
    source: what to show.
    cfg: the model, for the size; its classes do not matter.
    share: as for `examples.data.pipeline.eval_batches`.
    keep_aspect: as there.
    """
    cfg = dataclasses.replace(cfg, classes=len(source.classes))
    self._batches = eval_batches(
      source, cfg, batch=_READ, share=share, keep_aspect=keep_aspect
    )
    self._count = len(source)
    self._labels: list[np.ndarray] = []
    self._mask: list[np.ndarray] = []

  def __len__(self) -> int:
    return self._count

  def __iter__(self):
    self._labels, self._mask = [], []
    for batch in self._batches:
      real = min(_READ, self._count - sum(map(len, self._mask)))
      self._labels.append(batch["label"][:real])
      self._mask.append(batch["mask"][:real])
      yield from batch["image"][:real]

  @property
  def labels(self) -> np.ndarray:
    """`[N, V]`."""
    return np.concatenate(self._labels)

  @property
  def mask(self) -> np.ndarray:
    """`[N]` bool, false for images that could not be read."""
    return np.concatenate(self._mask) > 0


def read_features(
  cfg: ViTConfig,
  params: dict,
  mesh: jax.sharding.Mesh,
  source: Source,
  *,
  layers: Sequence[str] = ("pre_logits",),
  batch: int = 64,
  cache: Path | None = None,
  share: float = 0.875,
  keep_aspect: bool = True,
) -> Part:
  """Returns pooled features of a source, without the images that are broken.

  Args:
    cfg, params, mesh, layers, batch, cache: as for `features.extract`.
    source: what to read.
    share, keep_aspect: as for `examples.data.pipeline.eval_batches`.
  """
  shown = Shown(source, cfg, share=share, keep_aspect=keep_aspect)
  found = extract(
    cfg, params, mesh, shown, layers=layers, batch=batch, cache=cache
  )
  mask = shown.mask
  return Part({k: x[mask] for k, x in found.items()}, shown.labels[mask])


def read_pixels(source: Source, cfg: ViTConfig) -> Part:
  """Returns the pixels themselves as features, which a model must beat.

  Images are shown at a side of 16 pixels, or the model's if that is smaller.
  """
  size = min(_PIXELS, cfg.image)
  small = dataclasses.replace(
    cfg, image=size, patch=size, classes=len(source.classes)
  )
  shown = Shown(source, small)
  x = np.stack([image.ravel() for image in shown])
  return Part({"pixels": x[shown.mask]}, shown.labels[shown.mask])


class Mildly:
  """A source whose images are cropped and flipped a little, one way for good.

  "Mild random cropping and horizontal flipping" of the paper's linear probe: at
  least half of the area. Another `number` is another view of every image.

  Attributes:
    classes: the source's.
  """

  def __init__(self, source: Source, cfg: ViTConfig, number: int):
    self._source, self._cfg, self._number = source, cfg, number
    self.classes = source.classes

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict:
    rng = np.random.default_rng((self._number, index))
    read = getattr(self._source, "encoded", self._source.__getitem__)
    example = read(index)
    image, size = example["image"], self._cfg.image
    if hasattr(self._source, "view"):
      return example | {"image": self._source.view(image, size, rng)}
    if isinstance(image, np.ndarray):
      sides = image.shape[1], image.shape[0]
    else:
      sides = image.size
    box = inception_box(sides, rng, area=(0.5, 1.0))
    shown = cut(image, box, size, self._cfg.channels)
    return example | {"image": shown[:, ::-1] if rng.random() < 0.5 else shown}

  def name(self, index: int) -> str:
    return self._source.name(index)

  def view(self, image: np.ndarray, size: int, rng) -> np.ndarray:
    """The image as it is: it has been cropped already."""
    del size, rng
    return image
