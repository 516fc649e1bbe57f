import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from examples.data.crops import central_box, cut, inception_box
from examples.data.decode import Encoded
from tests.image_files import encode, smooth

SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_random_part_lies_in_the_image(width, height, seed):
  box = inception_box((width, height), np.random.default_rng(seed))
  left, top, right, bottom = box
  assert 0 <= left < right <= width
  assert 0 <= top < bottom <= height


def test_random_parts_have_the_areas_and_shapes_that_were_asked_for():
  rng = np.random.default_rng(0)
  boxes = np.array([inception_box((1000, 800), rng) for _ in range(2000)])
  width, height = (boxes[:, 2:] - boxes[:, :2]).T
  area, ratio = width * height / 8e5, width / height
  # Sides are rounded to whole pixels, of at least 170.
  assert 0.049 < area.min() < 0.08 and 0.9 < area.max() <= 1
  assert 0.745 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.342
  assert boxes[:, 0].min() == 0 and boxes[:, 2].max() == 1000


def test_an_image_too_narrow_shows_its_middle():
  box = inception_box((100, 10), np.random.default_rng(0), area=(1.0, 1.0))
  np.testing.assert_allclose(box, (50 - 20 / 3, 0, 50 + 20 / 3, 10))


@given(SIDES, SIDES, st.floats(0.1, 1), st.booleans())
@settings(deadline=None)
def test_a_central_part_is_in_the_middle(width, height, share, keep_aspect):
  box = central_box((width, height), share=share, keep_aspect=keep_aspect)
  assert box[0] + box[2] == pytest.approx(width)
  assert box[1] + box[3] == pytest.approx(height)
  assert min(box) >= 0


def by_pillow(image, box, size):
  """What is outside of the box's pixels is not smoothed into it."""
  left, top = int(box[0]), int(box[1])
  part = image.crop((left, top, math.ceil(box[2]), math.ceil(box[3])))
  within = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
  return part.resize((size, size), Image.Resampling.BILINEAR, box=within)


@pytest.mark.parametrize(
  "box", [(0, 0, 60, 40), (10, 5, 30, 25), (7.5, 3.25, 52.5, 33.75)]
)
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_part_is_resized_as_pillow_does(box, size, channels):
  pixels = smooth(60, 40)[..., :channels]
  image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
  theirs = np.asarray(by_pillow(image, box, size)).reshape(size, size, channels)
  ours = cut(pixels, box, size, channels)
  np.testing.assert_allclose(ours.astype(int), theirs, atol=1)


@pytest.mark.parametrize("size", [16, 15, 14])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", None])
def test_from_behind_left_and_right_are_exchanged(size, channels, kind):
  image = smooth(60, 40)
  if kind:
    image = Encoded(encode(image, kind), "x")
  elif channels == 1:
    image = image[..., :1]
  box = (10, 5, 50, 35)
  front = cut(image, box, size, channels)
  behind = cut(image, box, size, channels, behind=True)
  assert not np.array_equal(front, behind)
  np.testing.assert_array_equal(behind, front[:, ::-1])


def test_gray_arrays_fill_three_channels():
  gray = smooth(20, 20)[..., :1]
  ours = cut(gray, (0, 0, 20, 20), 20, 3)
  np.testing.assert_array_equal(ours, np.repeat(gray, 3, axis=2))


@pytest.mark.parametrize(
  "box", [(0, 0, 1200, 900), (100, 50, 700, 850), (3, 7, 90, 100)]
)
def test_a_jpeg_decoded_smaller_shows_the_same(box):
  data = encode(smooth(1200, 900), quality=95)
  theirs = by_pillow(Image.open(io.BytesIO(data)), box, 64)
  ours = cut(Encoded(data, "x"), box, 64, 3)
  # Sizes are rounded up to whole pixels: shifts of under half a pixel.
  np.testing.assert_allclose(ours.astype(int), theirs, atol=3)


def test_the_part_of_a_turned_image_is_that_of_what_is_seen():
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter turn
  pixels = smooth(60, 40)
  turned = Encoded(encode(pixels, "PNG", exif=exif), "x")
  box = (2, 30, 22, 50)
  np.testing.assert_array_equal(
    cut(turned, box, 20, 3), np.rot90(pixels, -1)[30:50, 2:22]
  )
