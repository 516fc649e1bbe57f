import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.patch_resize import resize_patch_kernel

CHANNELS, WIDTH = 2, 3


def draw(patch, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(patch**2 * CHANNELS, WIDTH))


def resized(patches, size):
  """`[N, p, p, C]` images, bilinearly."""
  shape = (len(patches), size, size, CHANNELS)
  return np.asarray(jax.image.resize(patches, shape, "bilinear"))


def embedded(patches, kernel):
  return patches.reshape(len(patches), -1) @ kernel


@pytest.mark.parametrize(("patch_from", "patch_to"), [(4, 7), (3, 6)])
def test_larger_patches_embed_to_the_same(patch_from, patch_to):
  patches = np.random.default_rng(1).normal(
    size=(9, *[patch_from] * 2, CHANNELS)
  )
  kernel = draw(patch_from)
  got = embedded(
    resized(patches, patch_to),
    resize_patch_kernel(kernel, patch_from, patch_to),
  )
  # jax resizes in float32.
  np.testing.assert_allclose(got, embedded(patches, kernel), atol=1e-4)


def test_from_14_to_8_it_is_the_nearest_kernel():
  patches = np.random.default_rng(1).normal(size=(4000, 14, 14, CHANNELS))
  kernel = draw(14)
  want = embedded(patches, kernel)
  small = resized(patches, 8)

  def error(kernel):
    return ((embedded(small, kernel) - want) ** 2).mean()

  nearest = resize_patch_kernel(kernel, 14, 8)
  fitted, *_ = np.linalg.lstsq(small.reshape(4000, -1), want)
  # 128 unknowns fitted to 4,000 patches come 3 % nearer to these.
  assert error(fitted) <= error(nearest) < 1.07 * error(fitted)
  bilinear = resize_patch_kernel(kernel, 14, 8, method="bilinear")
  assert error(bilinear) > error(nearest)


@given(st.integers(1, 6))
def test_the_same_size_changes_nothing(patch):
  for method in ("pseudo_inverse", "bilinear"):
    got = resize_patch_kernel(draw(patch), patch, patch, method=method)
    np.testing.assert_allclose(got, draw(patch), atol=1e-6)


def test_channels_and_features_do_not_mix():
  kernel = np.zeros((14 * 14, CHANNELS, WIDTH))
  kernel[:, 1, 2] = 1
  got = resize_patch_kernel(kernel.reshape(-1, WIDTH), 14, 8)
  got = got.reshape(8 * 8, CHANNELS, WIDTH)
  assert np.abs(got[:, 1, 2]).min() > 0
  got[:, 1, 2] = 0
  assert np.abs(got).max() == 0


def test_bad_kernels_are_named():
  with pytest.raises(ValueError, match=r"\[14 \* 14 \* C, D\], got \(50, 3\)"):
    resize_patch_kernel(draw(5), 14, 8)
  with pytest.raises(ValueError, match="must have pixels, got 5 and 0"):
    resize_patch_kernel(draw(5), 5, 0)
  with pytest.raises(ValueError, match="or bilinear, got 'cubic'"):
    resize_patch_kernel(draw(5), 5, 4, method="cubic")
