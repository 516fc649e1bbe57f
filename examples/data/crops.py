"""Which part of an image is shown, and how it gets the model's size.

A part is a box (left, top, right, bottom) in pixels of the upright image; it
need not lie on whole pixels.
"""

import math
import threading

import cykooz_resizer as resizer
import numpy as np

from examples.data.decode import Encoded

# Pillow's own takes as long as decoding does.
_BILINEAR = resizer.ResizeAlg.convolution(resizer.FilterType.bilinear)
_PIXELS = {1: resizer.PixelType.U8, 3: resizer.PixelType.U8x3}
# Each thread's: a resizer serves one call at a time, and fresh memory costs as
# much as a twentieth of decoding into it.
_OWN = threading.local()

_ATTEMPTS = 10
# A JPEG may be decoded smaller while the box keeps this many pixels for each
# one of the output: what is left out then would be smoothed away anyway.
_PIXELS_KEPT = 2

Box = tuple[float, float, float, float]


def inception_box(
  size: tuple[int, int],
  rng: np.random.Generator,
  *,
  area: tuple[float, float] = (0.05, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
  """Draws the part that a training step sees (Szegedy et al. 2015).

  Its share of the image's area is uniform, its width over height uniform in
  the logarithm, its place uniform among whole pixels. If ten draws do not fit
  into the image, it is the largest part in the middle with such a ratio.

  Args:
    size: (width, height) of the image.
    rng: to draw from.
    area: smallest and largest share of the image's area.
    ratio: smallest and largest width over height.
  """
  width, height = size
  low, high = math.log(ratio[0]), math.log(ratio[1])
  for _ in range(_ATTEMPTS):
    share, log_ratio, x, y = rng.random(4).tolist()
    pixels = width * height * (area[0] + share * (area[1] - area[0]))
    shape = math.exp(low + log_ratio * (high - low))
    w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
    if 0 < w <= width and 0 < h <= height:
      left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
      return (left, top, left + w, top + h)
  w = min(width, height * ratio[1])
  h = min(height, width / ratio[0])
  return _middle(size, w, h)


def central_box(
  size: tuple[int, int], *, share: float = 0.875, keep_aspect: bool = True
) -> Box:
  """Returns the part that an evaluation sees.

  As if the image were resized to `1 / share` of the model's size and cropped in
  the middle: its shorter side if `keep_aspect`, otherwise both sides, which
  makes it square. The paper's two protocols are `share=0.75` (ObjectNet,
  ImageNet-A) and `share=0.875, keep_aspect=False` (the others).

  Example:
    >>> central_box((400, 200), share=0.75)
    (125.0, 25.0, 275.0, 175.0)
    >>> central_box((400, 200), share=0.75, keep_aspect=False)
    (50.0, 25.0, 350.0, 175.0)
  """
  width, height = size
  if keep_aspect:
    width = height = min(size)
  return _middle(size, width * share, height * share)


def cut(
  image: Encoded | np.ndarray,
  box: Box,
  size: int,
  channels: int,
  *,
  behind: bool = False,
) -> np.ndarray:
  """Decodes an image and returns the part in `box` at the model's size.

  Bilinear, smoothed where it shrinks (antialiased), as Pillow does it, within
  one level of 255. Pixels outside of the box are not smoothed into it.

  Args:
    image: an encoded image, or uint8 `[H, W, C]`.
    box: the part to show.
    size: height and width of the result.
    channels: of the result, 1 or 3; an array has as many, or 1.
    behind: show it as seen from behind, left and right exchanged.

  Returns:
    uint8 `[size, size, channels]`.

  Raises:
    BadImage: if the image cannot be decoded.
  """
  if isinstance(image, Encoded):
    full = image.size
    smallest = _PIXELS_KEPT * size / min(box[2] - box[0], box[3] - box[1])
    image = image.decode(channels, smallest, _buffer, backward=behind)
    x, y = image.shape[1] / full[0], image.shape[0] / full[1]
    box = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
  elif behind:
    image = image[..., ::-1]
  part = _resize(image, box, size)
  if behind:
    part = _read_backward(part)
  return part if part.shape[2] == channels else part.repeat(channels, axis=2)


def _buffer(size: int) -> np.ndarray:
  if getattr(_OWN, "buffer", np.empty(0)).size < size:
    _OWN.buffer = np.empty(size, np.uint8)
  return _OWN.buffer


def _resize(image: np.ndarray, box: Box, size: int) -> np.ndarray:
  left, top = int(box[0]), int(box[1])
  part = image[top : math.ceil(box[3]), left : math.ceil(box[2])]
  height, width, channels = part.shape
  kind = _PIXELS[channels]
  options = resizer.ResizeOptions(_BILINEAR)
  if (width, height) != (box[2] - box[0], box[3] - box[1]):
    options.crop_box = resizer.CropBox(
      box[0] - left, box[1] - top, box[2] - box[0], box[3] - box[1]
    )
  if not hasattr(_OWN, "resizer"):
    _OWN.resizer = resizer.Resizer()
  result = resizer.ImageData(size, size, kind)
  _OWN.resizer.resize(
    resizer.ImageData(width, height, kind, part.tobytes()), result, options
  )
  pixels = np.frombuffer(result.get_buffer(), np.uint8)
  return pixels.reshape(size, size, channels)


def _read_backward(part: np.ndarray) -> np.ndarray:
  """Reverses the bytes of each row, and so its pixels and their colours.

  By words of up to 8 bytes: ten times as fast as pixel by pixel.
  """
  rows = part.reshape(len(part), -1)
  words = rows.view(f"u{math.gcd(rows.shape[1], 8)}")
  return words[:, ::-1].byteswap().view(np.uint8).reshape(part.shape)


def _middle(size, w: float, h: float) -> Box:
  left, top = (size[0] - w) / 2, (size[1] - h) / 2
  return (left, top, left + w, top + h)
