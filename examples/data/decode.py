"""Decodes JPEG and PNG files to upright 8-bit images, or says why not.

What is not 8-bit grayscale or RGB is converted: 16-bit values are divided by
257; palettes are looked up; what is transparent is laid over white; CMYK goes
to RGB by the plain formula, without its colour profile.
"""

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

from examples.data.skipped import BadImage

_FORMATS = ("JPEG", "PNG")
_MODES = {1: "L", 3: "RGB"}
_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_KNOWN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", *_16_BIT)
_TRANSPOSE = {  # EXIF orientation: what makes the image upright
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
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
    self._name = name
    try:
      self._image = Image.open(io.BytesIO(data), formats=_FORMATS)
      orientation = self._image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN as error:
      raise BadImage(name, _reason(error, data)) from error
    self._transpose = _TRANSPOSE.get(orientation)
    if self._image.mode not in _KNOWN:
      raise BadImage(name, f"cannot convert Pillow's mode {self._image.mode}")
    self.size = self._upright(self._image.size)

  def decode(self, channels: int, smallest: float = 1.0) -> Image.Image:
    """Returns the image, upright, in mode L or RGB.

    Args:
      channels: 1 or 3.
      smallest: share of its size at which the image would still do. A JPEG is
        then decoded at 1/2, 1/4 or 1/8 if that is no smaller, which leaves out
        its highest frequencies and takes a fraction of the time.

    Raises:
      BadImage: if the file is truncated or broken.
    """
    image = self._image
    try:
      if smallest < 0.5:
        image.draft(
          None, tuple(max(1, int(n * smallest) + 1) for n in image.size)
        )
      image.load()
      image = _converted(image, _MODES[channels])
    except _BROKEN as error:
      raise BadImage(self._name, _reason(error)) from error
    return (
      image if self._transpose is None else image.transpose(self._transpose)
    )

  def _upright(self, size):
    turned = self._transpose in (
      Image.Transpose.TRANSPOSE,
      Image.Transpose.ROTATE_270,
      Image.Transpose.TRANSVERSE,
      Image.Transpose.ROTATE_90,
    )
    return size[::-1] if turned else size


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
