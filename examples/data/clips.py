"""Clips of video as folders of frames: `PATH/train/jumping/clip_1/0001.jpg`."""

import dataclasses
from pathlib import Path

import numpy as np

from examples.data.crops import central_box, cut
from examples.data.decode import Encoded
from examples.data.scenes import MOTIONS, draw_clip

_SUFFIXES = (".jpg", ".jpeg", ".png")
_HELD_OUT_SEED = 1_000_000  # of drawn clips: those of "val" start here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
  """A source of clips, read frame by frame.

  Attributes:
    files: of each clip, its frames in order of their names.
    labels: of each clip, an index of `classes`.
    classes: names of the labels.
  """

  files: tuple[tuple[Path, ...], ...]
  labels: tuple[int, ...]
  classes: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.files)

  def name(self, index: int) -> str:
    """The folder of a clip."""
    return str(self.files[index][0].parent)

  def frames(self, index: int, count: int, stride: int, view: int, views: int):
    """Returns the `count` files of one view of a clip.

    View `v` of `V` starts at that share of what the clip has to spare.

    Args:
      index: which clip.
      count: `T`, frames of a view.
      stride: from one to the next, in frames of the clip.
      view: which view, from 0.
      views: how many there are.

    Raises:
      ValueError: if the clip is too short.
    """
    files = self.files[index]
    spare = len(files) - ((count - 1) * stride + 1)
    if spare < 0:
      raise ValueError(
        f"{self.name(index)}: {count} frames at stride {stride} need a clip of "
        f"{(count - 1) * stride + 1}, got {len(files)}"
      )
    start = spare * (2 * view + 1) // (2 * views)
    return files[start : start + (count - 1) * stride + 1 : stride]

  def read(
    self, index: int, size: int, *, count: int, stride: int, view: int = 0,
    views: int = 1,
  ) -> np.ndarray:  # fmt: skip
    """Returns one view, `[T, size, size, 3]` float32 in [-1, 1].

    Raises:
      ValueError: if the clip is too short.
      BadImage: if a frame cannot be read; it names the frame.
    """
    found = []
    for path in self.frames(index, count, stride, view, views):
      image = Encoded(path.read_bytes(), str(path))
      found.append(cut(image, central_box(image.size), size, 3))
    return np.stack(found).astype(np.float32) / 127.5 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnClips:
  """A source of drawn clips, as `Clips` gives them; every view is the same."""

  count: int
  first_seed: int
  classes = MOTIONS

  def __len__(self) -> int:
    return self.count

  @property
  def labels(self) -> tuple[int, ...]:
    return tuple(
      draw_clip(self.first_seed + i, 1, 2).motion for i in range(self.count)
    )

  def name(self, index: int) -> str:
    """Which drawn clip it is."""
    return f"clip {index}"

  def read(
    self, index: int, size: int, *, count: int, stride: int, view: int = 0,
    views: int = 1,
  ) -> np.ndarray:  # fmt: skip
    del stride, view, views  # drawn at the length that is asked for
    return draw_clip(self.first_seed + index, size, count).frames


def open_clips(spec: str, split: str) -> Clips | DrawnClips:
  """Opens a data set of clips; reads names alone.

      frames:PATH  PATH/{train,val}/CLASS/CLIP/FRAME.jpg (or .png), as frames
                   are extracted from Kinetics or Moments in Time
      clips:N      N drawn clips (`examples.data.scenes`)

  Args:
    spec: one of these.
    split: "train" or "val".

  Raises:
    ValueError: if the spec is none of these, a class has no clip, or a clip no
      frame.
  """
  kind, _, path = spec.partition(":")
  if split not in ("train", "val"):
    raise ValueError(f"split must be train or val, got {split!r}")
  if kind == "clips" and path.isdigit() and int(path):
    first = 0 if split == "train" else _HELD_OUT_SEED
    return DrawnClips(count=int(path), first_seed=first)
  if kind != "frames" or not path:
    raise ValueError(f"must be frames:PATH or clips:N, got {spec!r}")
  folder = Path(path) / split
  classes = _folders(folder, "classes")
  files, labels = [], []
  for label, name in enumerate(classes):
    for clip in _folders(folder / name, "clips"):
      inside = (folder / name / clip).iterdir()
      found = tuple(sorted(f for f in inside if f.suffix.lower() in _SUFFIXES))
      if not found:
        raise ValueError(f"{folder / name / clip} must hold frames, has none")
      files.append(found)
      labels.append(label)
  return Clips(files=tuple(files), labels=tuple(labels), classes=classes)


def _folders(folder: Path, what: str) -> tuple[str, ...]:
  """Names of the folders in a folder, in order."""
  found = ()
  if folder.is_dir():
    found = tuple(sorted(f.name for f in folder.iterdir() if f.is_dir()))
  if not found:
    raise ValueError(f"{folder} must hold a folder for each of its {what}")
  return found
