import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.patches import patchify


def test_tokens_and_pixels_run_in_row_major_order():
  images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  patches = patchify(jnp.asarray(images), 2)
  assert patches.shape == (2, 6, 12)
  for row in range(2):
    for column in range(3):
      cut = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
      token = patches[:, 3 * row + column]
      np.testing.assert_array_equal(token, cut.reshape(2, -1))


def test_a_matmul_on_patches_is_the_strided_convolution():
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 8, 12, 3)).astype(np.float32)
  kernel = rng.normal(size=(4, 4, 3, 5)).astype(np.float32)
  convolved = jax.lax.conv_general_dilated(
    images,
    kernel,
    window_strides=(4, 4),
    padding="VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  tokens = patchify(images, 4) @ kernel.reshape(-1, 5)
  # 48 float32 products of order 1 each: about 48 * 2^-24.
  np.testing.assert_allclose(tokens, convolved.reshape(2, 6, 5), atol=1e-5)


def test_dtype_is_kept():
  assert patchify(jnp.zeros((1, 4, 4, 1), jnp.uint8), 4).dtype == jnp.uint8


def test_pixels_beyond_the_last_whole_patch_are_left_out():
  images = np.random.default_rng(0).normal(size=(1, 11, 9, 2))
  np.testing.assert_array_equal(
    patchify(images, 4), patchify(images[:, :8, :8], 4)
  )


@pytest.mark.parametrize("patch", [0, -2, 7, 12])
def test_patches_that_do_not_fit_are_refused(patch):
  with pytest.raises(
    ValueError, match=rf"height 8 and width 6, got patch={patch}"
  ):
    patchify(jnp.zeros((1, 8, 6, 3)), patch)


def test_a_single_image_is_refused():
  with pytest.raises(ValueError, match=r"4 dims .* images.shape=\(8, 8, 3\)"):
    patchify(jnp.zeros((8, 8, 3)), 4)
