"""Two distorted images and their original, with people's preference or not."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from examples.data import digits

_JUDGES = 5  # of each pair, in BAPPS and here


class Triplets(NamedTuple):
  """Pairs of distortions of one kind.

  Attributes:
    kind: what it is called.
    ref, p0, p1: `[N, H, W, C]` in [-1, 1].
    preference: `[N]`, the share of judges who find `p1` nearer to `ref`.
  """

  kind: str
  ref: np.ndarray
  p0: np.ndarray
  p1: np.ndarray
  preference: np.ndarray


def read_bapps(
  root: Path, size: int, count: int | None = None
) -> Iterator[Triplets]:
  """Reads `KIND/{ref,p0,p1}/NAME.png` and `KIND/judge/NAME.npy`.

  The layout of the 2AFC part of BAPPS (Zhang et al. 2018), `2afc/val`. Kinds
  are read one at a time.

  Args:
    root: folder of the kinds.
    size: side to show them at, bilinearly.
    count: of each kind at most; None for all.

  Raises:
    ValueError: if there is no kind, or naming images that not all four have.
  """
  kinds = sorted(p.name for p in root.iterdir() if (p / "judge").is_dir())
  if not kinds:
    raise ValueError(f"{root} must hold KIND/judge folders, got none")
  for kind in kinds:
    names = {
      part: {p.stem for p in (root / kind / part).glob("*")}
      for part in ("ref", "p0", "p1", "judge")
    }
    common = set.intersection(*names.values())
    alone = sorted(set.union(*names.values()) - common)
    if alone or not common:
      raise ValueError(
        f"{root / kind} must have each image in ref, p0, p1 and judge: "
        f"{len(alone)} are not, the first {alone[0] if alone else 'of none'}"
      )
    chosen = sorted(common)[:count]
    images = (
      np.stack([_open(root / kind / part / f"{n}.png", size) for n in chosen])
      for part in ("ref", "p0", "p1")
    )
    judged = [np.load(root / kind / "judge" / f"{n}.npy") for n in chosen]
    yield Triplets(kind, *images, np.array(judged).reshape(-1))


def draw_pairs(size: int, count: int, seed: int) -> Iterator[Triplets]:
  """Draws distorted digits, judged by a rule in place of people.

  A judge compares what is left of both at a quarter of the size, with an error
  of his own; the rule knows nothing of the model.

  Args:
    size: of the images.
    count: pairs of each kind.
    seed: of everything random.
  """
  rng = np.random.default_rng(seed)
  scans = digits.load("val").scans
  kinds = {
    "noise": lambda x, s: x + rng.normal(size=x.shape) * 0.8 * s,
    "blur": lambda x, s: ndimage.gaussian_filter(x, (3 * s, 3 * s, 0)),
    "shift": lambda x, s: ndimage.shift(
      x, (*rng.uniform(-6, 6, 2) * s, 0), order=1, mode="nearest"
    ),
    "contrast": lambda x, s: x * (1 - 0.9 * s) - 0.3 * s,
  }
  pick = list(kinds.values())
  mixed = lambda x, s: pick[rng.integers(len(pick))](x, s)  # noqa: E731
  for kind, draw in {**kinds, "mixed": mixed}.items():
    chosen = rng.choice(len(scans), count, replace=count > len(scans))
    ref = np.stack([digits.render(scans[i], size) for i in chosen])
    p0, p1 = (
      np.clip([draw(x, rng.uniform(0.1, 1)) for x in ref], -1, 1).astype(
        np.float32
      )
      for _ in range(2)
    )
    gap = _coarse(ref, p0) - _coarse(ref, p1)
    error = rng.logistic(size=(count, _JUDGES)) * 0.3 * gap.std()
    preference = (gap[:, None] + error > 0).mean(axis=1)
    yield Triplets(kind, ref, p0, p1, preference)


def _coarse(a, b):
  """The distance of two batches at a quarter of their size."""
  small = [ndimage.zoom(x, (1, 0.25, 0.25, 1), order=1) for x in (a, b)]
  return np.sqrt(((small[0] - small[1]) ** 2).mean(axis=(1, 2, 3)))


def _open(path, size):
  with Image.open(path) as image:
    shown = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
  return np.asarray(shown, np.float32) / 127.5 - 1
