"""Drawn scenes with exact masks and depth, and clips with a known motion.

A camera looks over a floor to a wall; balls, boxes and cones stand between. All
is drawn from a seed, so that nothing needs to be downloaded.
"""

import dataclasses

import numpy as np

CLASSES = ("wall", "floor", "ball", "box", "cone")
MOTIONS = ("right", "left", "down", "up")

_CAMERA_HEIGHT = 1.5  # metres
_HAZE = 30.0  # metres after which 1/e of the colour is left
_NOISE = 0.05  # deviation of a pixel, of a range of 2
_BEAMS = 4  # every fourth row has depth, as a LiDAR's beams give it
_RETURNS = 0.5  # share of the pixels of such a row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """One drawn scene.

  Attributes:
    image: `[H, W, 3]` float32 in [-1, 1].
    mask: `[H, W]` uint8, indices of `CLASSES`.
    depth: `[H, W]` float32, metres along the camera's axis.
    valid: `[H, W]` bool, where a sensor would know the depth.
  """

  image: np.ndarray
  mask: np.ndarray
  depth: np.ndarray
  valid: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """One drawn clip.

  Attributes:
    frames: `[T, H, W, 3]` float32 in [-1, 1].
    inside: `[T, H, W]` bool, where the thing is.
    motion: an index of `MOTIONS`.
  """

  frames: np.ndarray
  inside: np.ndarray
  motion: int


def draw_scene(seed: int, size: int) -> Scene:
  """Draws the scene of a seed: up to five things on a floor before a wall.

  The colour of a thing does not depend on its class. Its depth shows in its
  size, in where it stands on the floor, and in the haze.

  Args:
    seed: of everything; any integer from 0.
    size: height and width, in pixels.

  Raises:
    ValueError: if `size` is less than 8.
  """
  if size < 8:
    raise ValueError(f"size must be at least 8 pixels, got {size}")
  rng = np.random.default_rng(seed)
  rows, columns = (np.indices((size, size)) + 0.5) / size  # in heights
  horizon, wall = rng.uniform(0.3, 0.5), rng.uniform(15, 30)

  below = np.maximum(rows - horizon, 1e-6)
  depth = np.minimum(_CAMERA_HEIGHT / below, wall)
  mask = (depth < wall).astype(np.uint8)
  colour = rng.uniform(-1, 1, (2, 3))[mask]

  things = rng.integers(2, 6)
  # Far to near: what is near hides what is far.
  for distance in sorted(rng.uniform(3, 14, things), reverse=True):
    inside, kind = _thing(rng, rows, columns, horizon, distance)
    mask[inside] = 2 + kind
    depth[inside] = distance
    colour[inside] = rng.uniform(-1, 1, 3)

  clear = np.exp(-depth / _HAZE)[..., None]
  image = clear * colour + rng.normal(0, _NOISE, colour.shape)
  beam = np.arange(size)[:, None] % _BEAMS == rng.integers(_BEAMS)
  return Scene(
    image=np.clip(image, -1, 1).astype(np.float32),
    mask=mask,
    depth=depth.astype(np.float32),
    valid=beam & (rng.uniform(size=depth.shape) < _RETURNS),
  )


def draw_clip(seed: int, size: int, frames: int) -> Clip:
  """Draws a clip of one thing that moves.

  A motion to the left is one to the right played backwards, and one upward one
  downward so: frames without their order cannot tell the two apart.

  Args:
    seed: of everything; any integer from 0.
    size: height and width, in pixels.
    frames: `T`, at least two.

  Raises:
    ValueError: if there are fewer than two frames.
  """
  if frames < 2:
    raise ValueError(f"frames must be at least 2, got {frames}")
  rng = np.random.default_rng(seed)
  motion = int(rng.integers(len(MOTIONS)))
  ground, colour = rng.uniform(-1, 1, (2, 3))
  kind, radius = rng.integers(3), rng.uniform(0.1, 0.2)
  across = rng.uniform(0.3, 0.7)
  start = rng.uniform(radius, 0.4)
  along = np.linspace(start, start + rng.uniform(0.3, 0.5), frames)
  if motion % 2:
    along = along[::-1]
  rows, columns = (np.indices((size, size)) + 0.5) / size
  places = [
    (across, place) if motion < 2 else (place, across) for place in along
  ]
  inside = np.stack(
    [_shape(kind, columns - x, y - rows, radius) for y, x in places]
  )
  clip = np.where(inside[..., None], colour, ground)
  clip = clip + rng.normal(0, _NOISE, clip.shape)
  return Clip(
    frames=np.clip(clip, -1, 1).astype(np.float32),
    inside=inside,
    motion=motion,
  )


def _thing(rng, rows, columns, horizon, distance):
  """The pixels of one thing that stands on the floor, and its kind."""
  kind = int(rng.integers(3))
  radius = rng.uniform(0.5, 1.0) / distance
  foot = horizon + _CAMERA_HEIGHT / distance
  middle = rng.uniform(0, 1)
  up = foot - radius - rows  # from the middle of the thing
  return _shape(kind, columns - middle, up, radius), kind


def _shape(kind, right, up, radius):
  """Which points lie in a ball, a box or a cone, seen from the side."""
  if kind == 0:
    return right**2 + up**2 <= radius**2
  if kind == 1:
    return np.maximum(np.abs(right), np.abs(up)) <= radius
  return (np.abs(up) <= radius) & (np.abs(right) <= (radius - up) / 2)
