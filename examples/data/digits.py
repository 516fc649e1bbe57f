"""The digits that scikit-learn carries, and how they are drawn."""

import dataclasses
import functools

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

_SIDE, _INK, _CLASSES = 8, 16, 10  # of scikit-learn's digits

# Largest random changes of a training image. More shift than this would push
# strokes out of the scan, which they fill from edge to edge.
_ROTATION = 0.2  # radians
_SCALE = 0.1  # of the size
_SHIFT = 0.8  # scan pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
  """A source of scans `[N, 8, 8]` in [-1, 1] with labels `[N]`."""

  scans: np.ndarray
  labels: np.ndarray

  classes = tuple(map(str, range(_CLASSES)))

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict:
    return {
      "image": self.scans[index][..., None],
      "label": int(self.labels[index]),
      "id": self.name(index),
    }

  def name(self, index: int) -> str:
    """The id of an example, without its image."""
    return f"digit {index}"

  def view(
    self, image: np.ndarray, size: int, rng: np.random.Generator | None
  ) -> np.ndarray:
    """Draws a scan at `size`; `rng` turns, scales and shifts it."""
    scan = image[..., 0]
    if rng is None:
      return render(scan, size)
    return render(
      scan,
      size,
      angle=rng.uniform(-_ROTATION, _ROTATION),
      scale=rng.uniform(1 - _SCALE, 1 + _SCALE),
      shift=rng.uniform(-_SHIFT, _SHIFT, 2),
    )


def load(split: str) -> Digits:
  """Returns the training part of the digits, or the held-out fifth.

  They are the 1,797 scans that scikit-learn carries (UCI optdigits, Alpaydin &
  Kaynak 1998). Each class gives a fifth; which scans are held out does not
  depend on the seed of a run.

  Args:
    split: "train" or "val".
  """
  return _splits()[split]


@functools.cache
def _splits() -> dict[str, Digits]:
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
  return {
    "train": Digits(scans=train_scans, labels=train_labels),
    "val": Digits(scans=test_scans, labels=test_labels),
  }


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
