"""What the reliability commands share: a model's answers to images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from scipy import special

from examples.data.folder import Folder
from examples.data.source import Source
from examples.eval import command, demo
from examples.eval.tasks import read_features
from examples.usage import UsageError
from models.vit_config import ViTConfig

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class Images:
  """A source of images that are at hand, shown as they are.

  Attributes:
    classes: names of the labels.
  """

  def __init__(
    self,
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    classes: Sequence[str],
  ):
    """Args:
    images: each `[H, W, C]` float32 in [-1, 1], of the model's size.
    labels: one of each.
    classes: names of the labels.
    """
    self._images, self._labels = images, labels
    self.classes = tuple(classes)

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> dict:
    return {
      "image": self._images[index],
      "label": int(self._labels[index]),
      "id": self.name(index),
    }

  def name(self, index: int) -> str:
    return f"image {index}"

  def view(self, image: np.ndarray, size: int, rng) -> np.ndarray:
    del size, rng
    return image


class Some:
  """Some examples of a source, shown as it shows them.

  Attributes:
    classes: the source's.
  """

  def __init__(self, source: Source, indices: Sequence[int]):
    """Args:
    source: what to draw from.
    indices: which examples, in order.
    """
    self._source, self._indices = source, indices
    self.classes = source.classes
    if hasattr(source, "view"):
      self.view = source.view
    if hasattr(source, "encoded"):
      self.encoded = lambda index: source.encoded(indices[index])

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict:
    return self._source[self._indices[index]]

  def name(self, index: int) -> str:
    return self._source.name(self._indices[index])


class Model(NamedTuple):
  """A model on its devices.

  Attributes:
    cfg: its shape.
    params: its parameters.
    mesh: the devices.
    batch: images at a time.
    cache: folder of features, or None.
  """

  cfg: ViTConfig
  params: dict
  mesh: jax.sharding.Mesh
  batch: int
  cache: Path | None

  def probabilities(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Returns the softmax of the logits `[N, K]`, and the labels `[N]`.

    Images that cannot be read are left out.
    """
    part = self.features(source, ("logits",))
    return special.softmax(part.x.astype(np.float64), axis=1), part.classes

  def features(self, source: Source, layers=("pre_logits",)):
    """Returns pooled features; see `examples.eval.tasks.read_features`."""
    return read_features(
      self.cfg,
      self.params,
      self.mesh,
      source,
      layers=layers,
      batch=self.batch,
      cache=self.cache,
    )


def open_model(given, out: Path) -> Model:
  """Opens the model of `--checkpoint`, or trains that of `--demo`."""
  mesh = command.mesh_of(given)
  cfg, params = demo.digits() if given.demo else command.model_of(given, mesh)
  return Model(cfg, params, mesh, given.batch, out / "features")


def open_classes(path: Path) -> Folder:
  """Opens images by class, `PATH/class/image`, all of them, whole.

  Raises:
    UsageError: if the folder or its images are not there.
  """
  root = Path(path)
  if not root.is_dir():
    raise UsageError(f"{root} is not a folder")
  classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir()))
  files = [
    (f"{name}/{file.name}", [label])
    for label, name in enumerate(classes)
    for file in sorted((root / name).iterdir())
    if file.suffix.lower() in IMAGE_SUFFIXES
  ]
  if not files:
    raise UsageError(f"{root} must hold a folder of images for each class")
  return Folder(root, *map(list, zip(*files, strict=True)), classes)


def open_files(root: Path, files: Sequence[str]) -> Folder:
  """Opens images without a class, by their paths below `root`.

  Raises:
    UsageError: naming the first that is not there.
  """
  missing = [file for file in files if not (root / file).is_file()]
  if missing or not files:
    raise UsageError(
      f"{root} must hold the images: {len(missing)} of {len(files)} are not "
      f"there, the first {missing[0] if missing else 'none asked for'}"
    )
  return Folder(root, list(files), [[0]] * len(files), ("image",))
