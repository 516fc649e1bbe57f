"""Corruptions in the manner of ImageNet-C, for the small images of demos.

Fifteen of the same names and five severities (Hendrycks & Dietterich 2019),
drawn with SciPy and Pillow at strengths for 32 pixels: to try the evaluation
with, not to compare with published numbers.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

Draw = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def corrupt(
  image: np.ndarray, name: str, severity: int, rng: np.random.Generator
) -> np.ndarray:
  """Returns a corrupted image.

  Args:
    image: `[H, W, C]` float32 in [-1, 1].
    name: a key of `CORRUPTIONS`.
    severity: from 1 to 5.
    rng: of what is random.

  Raises:
    ValueError: if the name or the severity is unknown.
  """
  if name not in CORRUPTIONS or severity not in range(1, 6):
    raise ValueError(
      f"corruption must be one of {', '.join(CORRUPTIONS)} at 1 to 5, got "
      f"{name!r} at {severity}"
    )
  drawn = CORRUPTIONS[name]((image + 1) / 2, severity / 5, rng)
  return (2 * np.clip(drawn, 0, 1) - 1).astype(np.float32)


# Each draws x[H, W, C] in [0, 1] at a strength s in (0, 1].


def _gaussian_noise(x, s, rng):
  return x + rng.normal(size=x.shape) * 0.4 * s


def _shot_noise(x, s, rng):
  photons = 3 / s
  return rng.poisson(np.clip(x, 0, 1) * photons) / photons


def _impulse_noise(x, s, rng):
  hit = rng.random(x.shape) < 0.3 * s
  return np.where(hit, rng.integers(0, 2, x.shape), x)


def _blurred(x, sigma):
  return ndimage.gaussian_filter(x, (sigma, sigma, 0))


def _defocus_blur(x, s, rng):
  radius = 0.5 + 3 * s
  y, z = np.mgrid[-4:5, -4:5]
  disk = np.clip(radius + 0.5 - np.hypot(y, z), 0, 1)
  return ndimage.convolve(x, (disk / disk.sum())[..., None])


def _glass_blur(x, s, rng):
  return _moved(_blurred(x, s), rng.normal(size=(2, *x.shape[:2])) * 2 * s)


def _motion_blur(x, s, rng):
  length = 1 + round(8 * s)
  return ndimage.uniform_filter1d(x, length, axis=int(rng.integers(2)))


def _zoom_blur(x, s, rng):
  zooms = np.linspace(1, 1 + 0.6 * s, 5)
  return np.mean([_zoomed(x, zoom) for zoom in zooms], axis=0)


def _snow(x, s, rng):
  flakes = (rng.random(x.shape[:2]) < 0.15 * s).astype(float)
  flakes = ndimage.uniform_filter1d(flakes, 3, axis=0)[..., None] * 2
  return np.maximum(x * (1 - 0.2 * s) + 0.2 * s, np.clip(flakes, 0, 1))


def _frost(x, s, rng):
  ice = np.abs(_blurred(rng.normal(size=(*x.shape[:2], 1)), 1.5))
  return (1 - 0.5 * s) * x + 0.9 * s * ice / ice.max()


def _fog(x, s, rng):
  fog = sum(
    width * _blurred(rng.normal(size=(*x.shape[:2], 1)), width)
    for width in (2, 4, 8)
  )
  fog = (fog - fog.min()) / np.ptp(fog)
  return (x + 1.5 * s * fog) / (1 + 1.5 * s)


def _brightness(x, s, rng):
  return x + 0.6 * s


def _contrast(x, s, rng):
  return (x - x.mean()) * (1 - 0.85 * s) + x.mean()


def _elastic_transform(x, s, rng):
  field = rng.normal(size=(2, *x.shape[:2]))
  field = ndimage.gaussian_filter(field, (0, 3, 3))
  return _moved(x, field / np.abs(field).max() * 6 * s)


def _pixelate(x, s, rng):
  side = max(2, round(x.shape[0] * (1 - 0.85 * s)))
  return _resized(_resized(x, side, Image.Resampling.BOX), x.shape[0])


def _jpeg_compression(x, s, rng):
  pixels = np.uint8(np.clip(x, 0, 1) * 255).squeeze()
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=max(1, round(25 - 24 * s)))
  return np.asarray(Image.open(file)).reshape(x.shape) / 255


def _moved(x, field):
  rows, columns = np.mgrid[: x.shape[0], : x.shape[1]] + field
  channels = [
    ndimage.map_coordinates(x[..., c], (rows, columns), order=1, mode="nearest")
    for c in range(x.shape[2])
  ]
  return np.stack(channels, axis=-1)


def _zoomed(x, zoom):
  height, width = x.shape[:2]
  rows = (np.arange(height) - height / 2) / zoom + height / 2
  columns = (np.arange(width) - width / 2) / zoom + width / 2
  field = np.stack(np.meshgrid(rows, columns, indexing="ij"))
  return _moved(x, field - np.mgrid[:height, :width])


def _resized(x, side, how=Image.Resampling.NEAREST):
  channels = [
    Image.fromarray(x[..., c].astype(np.float32)).resize((side, side), how)
    for c in range(x.shape[2])
  ]
  return np.stack([np.asarray(c) for c in channels], axis=-1)


CORRUPTIONS: dict[str, Draw] = {
  "gaussian_noise": _gaussian_noise,
  "shot_noise": _shot_noise,
  "impulse_noise": _impulse_noise,
  "defocus_blur": _defocus_blur,
  "glass_blur": _glass_blur,
  "motion_blur": _motion_blur,
  "zoom_blur": _zoom_blur,
  "snow": _snow,
  "frost": _frost,
  "fog": _fog,
  "brightness": _brightness,
  "contrast": _contrast,
  "elastic_transform": _elastic_transform,
  "pixelate": _pixelate,
  "jpeg_compression": _jpeg_compression,
}
