"""Decodes JPEG and PNG files to upright 8-bit images, or says why not.

What is not 8-bit grayscale or RGB is converted: 16-bit values are divided by
257; palettes are looked up; what is transparent is laid over white; CMYK goes
to RGB by the plain formula, without its colour profile.
"""

import io
import math
import struct
import zlib
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from examples.data.skipped import BadImage

_FORMATS = ("JPEG", "PNG")
_MODES = {1: "L", 3: "RGB"}
_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_KNOWN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", *_16_BIT)
# What Pillow's readers raise on files that are broken or made to do harm.
_BROKEN = (
  OSError,
  ValueError,
  SyntaxError,
  EOFError,
  IndexError,
  KeyError,
  struct.error,
  zlib.error,
  OverflowError,
  Image.DecompressionBombError,
  Image.DecompressionBombWarning,
)


class Encoded:
  """A JPEG or PNG file of which only the header has been read.

  Attributes:
    size: (width, height) of the upright image.

  Raises:
    BadImage: if it is not a JPEG or PNG file, or not one that can be converted.
  """

  def __init__(self, data: bytes, name: str):
    self._data, self._name = data, name
    self._orientation = 1
    size = _plain_jpeg(data)
    self._is_jpeg = size is not None
    if size is None:
      image = self._open()
      size = image.size
      self._is_jpeg = image.format != "PNG" and image.mode in ("L", "RGB")
      orientation = image.getexif().get(ExifTags.Base.Orientation)
      if orientation in range(2, 9):
        self._orientation = orientation
    self._stored = size
    self.size = size[::-1] if self._orientation >= 5 else size

  def decode(
    self,
    channels: int,
    smallest: float = 1.0,
    buffer: Callable[[int], np.ndarray] = lambda _: None,
    *,
    backward: bool = False,
  ) -> np.ndarray:
    """Returns the image, upright: uint8 `[H, W, channels]`.

    Args:
      channels: 1 or 3.
      smallest: share of its size at which the image would still do. If that is
        half or less, a JPEG is decoded at the next multiple of 1/8, which
        leaves out its highest frequencies and takes a fraction of the time.
      buffer: gives the bytes to decode into, as many as it is asked for; fresh
        ones if left out.
      backward: give blue, green, red instead of red, green, blue.

    Raises:
      BadImage: if the file is truncated or broken.
    """
    pixels = None
    if self._is_jpeg:
      colours = "BGR" if backward else "RGB"
      pixels = self._fast(channels, smallest, buffer, colours)
    if pixels is None:
      pixels = self._by_pillow(_MODES[channels])
      pixels = pixels.reshape(*pixels.shape[:2], channels)
      pixels = pixels[..., ::-1] if backward else pixels
    return _upright(pixels, self._orientation)

  def _fast(self, channels, smallest, buffer, colours):
    """Decodes a flawless JPEG in two thirds of Pillow's time, others not.

    Pillow then says what is wrong, or that nothing is: junk between its parts.
    """
    width, height = self._stored if smallest <= 0.5 else (0, 0)
    try:
      return simplejpeg.decode_jpeg(
        self._data,
        {1: "GRAY", 3: colours}[channels],
        min_width=math.ceil(width * smallest),
        min_height=math.ceil(height * smallest),
        buffer=buffer(math.prod(self._stored) * channels),
      )
    except ValueError:
      return None

  def _by_pillow(self, mode):
    try:
      return np.asarray(_converted(self._open(), mode))
    except _BROKEN as error:
      raise BadImage(self._name, f"cannot be decoded: {error}") from error

  def _open(self):
    """Reads the header by Pillow."""
    if not self._data:
      raise BadImage(self._name, "the file is empty")
    try:
      image = Image.open(io.BytesIO(self._data), formats=_FORMATS)
      image.getexif()
    except Image.UnidentifiedImageError as error:
      raise BadImage(self._name, "not a JPEG or PNG file") from error
    except _BROKEN as error:
      raise BadImage(self._name, f"cannot be decoded: {error}") from error
    if image.mode not in _KNOWN:
      raise BadImage(self._name, f"cannot convert Pillow's mode {image.mode}")
    return image


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
  """(width, height) of a JPEG without EXIF; None for what needs a look."""
  if data[:2] != b"\xff\xd8":
    return None
  at = 2  # the segments of applications come first: EXIF's is APP1
  while data[at : at + 1] == b"\xff" and data[at + 1] >= 0xE0:
    if data[at + 1] == 0xE1:
      return None
    at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
  try:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
  except ValueError:
    return None
  if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
    return None
  return (width, height) if colours in ("Gray", "YCbCr") else None


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """Undoes an EXIF orientation, which says where row 0 and column 0 belong."""
  if orientation >= 5:
    pixels = pixels.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    pixels = pixels[::-1]
  if orientation in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  return pixels


def _converted(image: Image.Image, mode: str) -> Image.Image:
  if image.mode in _16_BIT:
    values = np.asarray(image).astype(np.float32) / 257
    image = Image.fromarray(np.round(values).astype(np.uint8))
  elif image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image if image.mode == mode else image.convert(mode)
