"""Decodes JPEG and PNG files to upright 8-bit images, or says why not.

What is not 8-bit grayscale or RGB is converted: 16-bit values are divided by
257; palettes are looked up; what is transparent is laid over white; CMYK goes
to RGB by the plain formula, without its colour profile.
"""

import io
import math
import struct
import zlib

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
    try:
      self._image = Image.open(io.BytesIO(data), formats=_FORMATS)
      orientation = self._image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN as error:
      raise BadImage(name, _reason(error, data)) from error
    if self._image.mode not in _KNOWN:
      raise BadImage(name, f"cannot convert Pillow's mode {self._image.mode}")
    self._orientation = orientation if orientation in range(2, 9) else 1
    turned = self._orientation >= 5
    self.size = self._image.size[::-1] if turned else self._image.size

  def decode(self, channels: int, smallest: float = 1.0) -> np.ndarray:
    """Returns the image, upright: uint8 `[H, W, channels]`.

    Args:
      channels: 1 or 3.
      smallest: share of its size at which the image would still do. If that is
        half or less, a JPEG is decoded at the next multiple of 1/8, which
        leaves out its highest frequencies and takes a fraction of the time.

    Raises:
      BadImage: if the file is truncated or broken.
    """
    pixels = self._fast(channels, smallest)
    if pixels is None:
      try:
        self._image.load()
        pixels = np.asarray(_converted(self._image, _MODES[channels]))
      except _BROKEN as error:
        raise BadImage(self._name, _reason(error)) from error
      pixels = pixels.reshape(*pixels.shape[:2], channels)
    return _upright(pixels, self._orientation)

  def _fast(self, channels, smallest):
    """Decodes a plain JPEG; None if this is none, or not a flawless one.

    Pillow, which takes half as long again, then says what is wrong, or that
    nothing is: junk between a JPEG's parts, say.
    """
    if self._image.format == "PNG" or self._image.mode not in ("L", "RGB"):
      return None
    width, height = self._image.size if smallest <= 0.5 else (0, 0)
    try:
      return simplejpeg.decode_jpeg(
        self._data,
        {1: "GRAY", 3: "RGB"}[channels],
        min_width=math.ceil(width * smallest),
        min_height=math.ceil(height * smallest),
      )
    except ValueError:
      return None


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


def _reason(error: Exception, data: bytes | None = None) -> str:
  if data is not None and not data:
    return "the file is empty"
  if isinstance(error, Image.UnidentifiedImageError):
    return "not a JPEG or PNG file"
  return f"cannot be decoded: {error}"
