import numpy as np
import pytest

from examples.data import digits


@pytest.fixture(scope="module")
def splits():
  return [digits.load(name) for name in ("train", "val")]


def test_a_fifth_of_every_class_is_held_out(splits):
  train, test = splits
  assert (len(train), len(test)) == (1437, 360)
  held = np.bincount(test.labels, minlength=10)
  every = held + np.bincount(train.labels, minlength=10)
  assert np.all(np.abs(held - every / 5) <= 1)


def test_no_scan_is_in_both_parts(splits):
  seen = {scan.tobytes() for scan in splits[0].scans}
  assert not any(scan.tobytes() in seen for scan in splits[1].scans)


def test_the_split_is_always_the_same(splits):
  for once, again in zip(
    splits, map(digits.load, ("train", "val")), strict=True
  ):
    np.testing.assert_array_equal(once.scans, again.scans)
    np.testing.assert_array_equal(once.labels, again.labels)


def test_an_example_has_its_image_label_and_name(splits):
  example = splits[1][7]
  assert example["image"].shape == (8, 8, 1)
  assert (example["label"], example["id"]) == (splits[1].labels[7], "digit 7")
  assert splits[0].classes == tuple("0123456789")


def test_render_at_the_scans_own_size_is_the_scan(splits):
  scan = splits[0].scans[0]
  np.testing.assert_array_equal(digits.render(scan, 8)[..., 0], scan)


def test_render_interpolates_between_pixel_centres():
  ramp = np.tile(np.linspace(-0.7, 0.7, 8, dtype=np.float32), (8, 1))
  image = digits.render(ramp, 32)[..., 0]
  # Pixel u of the image lies at (u + 0.5) / 4 - 0.5 of the scan; outermost
  # pixels lie beyond the scan's outermost centres.
  inside = slice(2, 30)
  expected = -0.7 + 0.2 * ((np.arange(32) + 0.5) / 4 - 0.5)
  np.testing.assert_allclose(image[5, inside], expected[inside], atol=1e-6)


def test_render_turns_scales_and_shifts(splits):
  scan = splits[0].scans[0]
  shifted = digits.render(scan, 8, shift=(2, -1))[..., 0]
  np.testing.assert_array_equal(shifted[1:, :6], scan[:-1, 2:])
  np.testing.assert_array_equal(shifted[0], -1)  # no ink from outside

  turned = digits.render(scan, 8, angle=np.pi / 2)[..., 0]
  np.testing.assert_allclose(turned, np.rot90(scan, -1), atol=1e-5)

  # Twice the size shows the middle half.
  np.testing.assert_allclose(
    digits.render(scan, 16, scale=2.0),
    digits.render(scan, 32)[8:24, 8:24],
    atol=1e-6,
  )
