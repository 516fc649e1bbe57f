import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from examples.data.decode import Encoded
from examples.data.skipped import BadImage
from tests.image_files import encode, smooth

PIXELS = smooth(48, 32)


def decoded(data, channels=3):
  return Encoded(data, "x.png").decode(channels)


def refusal(data):
  with pytest.raises(BadImage) as caught:
    decoded(data)
  return str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_come_upright(kind, orientation):
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  data = encode(PIXELS, kind, exif=exif)
  upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  ours = decoded(data)
  assert ours.shape[1::-1] == Encoded(data, "x").size == upright.size
  # Two builds of one JPEG library may round a level apart.
  np.testing.assert_allclose(ours.astype(int), upright, atol=1)


def test_an_orientation_that_does_not_exist_is_none():
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 77
  data = encode(PIXELS, "PNG", exif=exif)
  np.testing.assert_array_equal(decoded(data), PIXELS)


def test_16_bits_keep_their_range():
  values = np.array([[0, 128, 129, 257, 65535]], np.uint16)
  image = decoded(encode(values, "PNG"))
  assert image[0, :, 0].tolist() == [0, 0, 1, 1, 255]
  assert image.shape == (1, 5, 3)


def test_transparency_lies_on_white():
  rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 128]]])
  image = decoded(encode(rgba.astype(np.uint8), "PNG"))
  assert image.tolist() == [[[255] * 3, [10, 20, 30], [127] * 3]]


def test_palettes_are_looked_up():
  image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
  image.putpalette([255, 0, 0, 0, 0, 255])
  for options, first in (({}, [255, 0, 0]), ({"transparency": 0}, [255] * 3)):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    assert decoded(file.getvalue()).tolist() == [[first, [0, 0, 255]]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_gray_and_colour_are_made_of_each_other(kind):
  gray = encode(PIXELS, kind, mode="L")
  np.testing.assert_array_equal(
    decoded(gray), np.repeat(decoded(gray, 1), 3, axis=2)
  )
  luma = np.asarray(Image.fromarray(PIXELS).convert("L"))
  ours = decoded(encode(PIXELS, kind), 1)[..., 0]
  # JPEG stores the luma of its own rounding and at quality 75.
  np.testing.assert_allclose(ours.astype(int), luma, atol=5)


def test_cmyk_becomes_rgb():
  data = encode(PIXELS, mode="CMYK", quality=95)
  assert Image.open(io.BytesIO(data)).mode == "CMYK"
  assert np.abs(decoded(data).astype(int) - PIXELS).mean() < 3


def test_a_smaller_jpeg_is_at_least_as_large_as_asked():
  file = Encoded(encode(smooth(320, 240)), "x")
  assert file.decode(3, 0.51).shape == (240, 320, 3)
  assert file.decode(3, 0.5).shape == (120, 160, 3)
  assert file.decode(3, 0.26).shape == (90, 120, 3)
  assert file.decode(3, 0.01).shape == (30, 40, 3)


def test_a_png_is_always_whole():
  file = Encoded(encode(PIXELS, "PNG"), "x")
  assert file.decode(3, 0.01).shape == PIXELS.shape


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_files_are_named(kind):
  data = encode(smooth(200, 200), kind, quality=95)
  for size in (len(data) // 2, len(data) - 40):
    assert refusal(data[:size]).startswith("x.png: cannot be decoded: ")


def test_a_flawed_jpeg_that_has_every_pixel_is_read():
  data = encode(PIXELS)
  flawed = data[:-2] + b"junk" + data[-2:]
  np.testing.assert_allclose(decoded(flawed).astype(int), decoded(data), atol=1)


def test_other_files_are_named():
  assert refusal(b"") == "x.png: the file is empty"
  assert refusal(b"<html>404</html>") == "x.png: not a JPEG or PNG file"
  assert refusal(encode(PIXELS, "BMP")) == "x.png: not a JPEG or PNG file"


def test_a_bomb_is_not_unpacked():
  def chunk(kind, data):
    sealed = kind + data
    return (
      struct.pack(">I", len(data))
      + sealed
      + struct.pack(">I", zlib.crc32(sealed))
    )

  huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
  data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", huge) + chunk(b"IDAT", b"")
  assert "exceeds limit" in refusal(data)
  jpeg = encode(PIXELS)
  sides = jpeg.index(b"\xff\xc0") + 5  # of the frame header
  data = jpeg[:sides] + struct.pack(">HH", 60_000, 60_000) + jpeg[sides + 4 :]
  assert "exceeds limit" in refusal(data)
