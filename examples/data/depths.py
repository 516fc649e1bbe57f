"""Frames with sparse depth, as a LiDAR's points give it."""

import dataclasses
from pathlib import Path

import numpy as np

from examples.data.crops import cut
from examples.data.decode import Encoded
from examples.data.scenes import draw_scene

_HELD_OUT_SEED = 1_000_000  # of drawn scenes: those of "val" start here


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthFrames:
  """A source of frames and points: `NAME.jpg` beside `NAME.npz`.

  The points are an array `points [N, 3]`: column, row, both in pixels of the
  frame from its upper left corner, and metres along the camera's axis.
  """

  frames: tuple[Path, ...]

  def __len__(self) -> int:
    return len(self.frames)

  def sized(self, index: int, size: int) -> dict:
    """Returns a frame's middle square at `size`, and its points laid on it.

    The paper projects points after the crop, so that none is smeared; where
    several fall on a pixel, the nearest is seen.

    Returns:
      `{"image": float32 [size, size, 3] in [-1, 1], "depth": float32
      [size, size], "valid": bool [size, size], "id": str}`.

    Raises:
      ValueError: if a file cannot be read, or no point lies on the square.
    """
    path = self.frames[index]
    image = Encoded(path.read_bytes(), str(path))
    points = self._points(path.with_suffix(".npz"))
    side = min(image.size)
    left, top = ((n - side) / 2 for n in image.size)
    square = cut(image, (left, top, left + side, top + side), size, 3)
    columns, rows = (
      np.floor((points[:, i] - corner) * size / side).astype(int)
      for i, corner in ((0, left), (1, top))
    )
    seen = (np.minimum(columns, rows) >= 0) & (np.maximum(columns, rows) < size)
    depth = np.full((size, size), np.inf, np.float32)
    np.minimum.at(depth, (rows[seen], columns[seen]), points[seen, 2])
    valid = np.isfinite(depth)
    if not valid.any():
      raise ValueError(
        f"{path.with_suffix('.npz')}: none of {len(points)} points lies on the "
        "frame's middle square"
      )
    return {
      "image": square.astype(np.float32) / 127.5 - 1,
      "depth": np.where(valid, depth, 0),
      "valid": valid,
      "id": path.stem,
    }

  def _points(self, path):
    try:
      with np.load(path, allow_pickle=False) as file:
        points = file["points"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
      raise ValueError(f"{path}: has no array 'points'") from error
    if points.ndim != 2 or points.shape[1] != 3:
      raise ValueError(f"{path}: points must be [N, 3], got {points.shape}")
    if len(points) and not points[:, 2].min() > 0:
      raise ValueError(
        f"{path}: depths must be above 0, got {points[:, 2].min()}"
      )
    return points


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnDepths:
  """A source of drawn scenes, as `DepthFrames` gives them."""

  count: int
  first_seed: int

  def __len__(self) -> int:
    return self.count

  def sized(self, index: int, size: int) -> dict:
    scene = draw_scene(self.first_seed + index, size)
    return {
      "image": scene.image,
      "depth": np.where(scene.valid, scene.depth, 0),
      "valid": scene.valid,
      "id": f"scene {index}",
    }


def open_depths(spec: str, split: str) -> DepthFrames | DrawnDepths:
  """Opens a data set of depths; reads names alone.

      frames:PATH  PATH/{train,val}/NAME.jpg, each beside NAME.npz
      scenes:N     N drawn scenes (`examples.data.scenes`)

  Args:
    spec: one of these.
    split: "train" or "val".

  Raises:
    ValueError: if the spec is none of these, or files are missing.
  """
  kind, _, path = spec.partition(":")
  if split not in ("train", "val"):
    raise ValueError(f"split must be train or val, got {split!r}")
  if kind == "scenes" and path.isdigit() and int(path):
    first = 0 if split == "train" else _HELD_OUT_SEED
    return DrawnDepths(count=int(path), first_seed=first)
  if kind != "frames" or not path:
    raise ValueError(f"must be frames:PATH or scenes:N, got {spec!r}")
  folder = Path(path) / split
  frames = tuple(sorted(folder.glob("*.jpg")))
  if not frames:
    raise ValueError(f"{folder} must hold frames NAME.jpg, and has none")
  missing = [f for f in frames if not f.with_suffix(".npz").is_file()]
  if missing:
    raise ValueError(
      f"{len(missing)} frames of {folder} have no points, the first "
      f"{missing[0].with_suffix('.npz')}"
    )
  return DepthFrames(frames=frames)
