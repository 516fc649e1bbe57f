"""Layers over maps, against scipy, numpy and what they must leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate2d

from models import maps

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def test_conv_is_a_correlation():
  layer = maps.init_conv(KEY, 3, 2, 1) | {"bias": jnp.array([0.5])}
  x = RNG.normal(size=(1, 5, 7, 2)).astype(np.float32)
  kernel = np.asarray(layer["kernel"])[..., 0]
  expected = 0.5 + sum(
    correlate2d(x[0, ..., i], kernel[..., i], mode="same") for i in range(2)
  )
  # Sums of 18 float32 products.
  np.testing.assert_allclose(
    maps.conv(x, layer)[0, ..., 0], expected, atol=1e-5
  )


def test_conv_transpose_is_lax_s():
  layer = maps.init_conv(KEY, 3, 4, 2)
  flipped = layer["kernel"][::-1, ::-1]  # lax correlates
  x = RNG.normal(size=(2, 3, 5, 4)).astype(np.float32)
  expected = jax.lax.conv_transpose(
    x, flipped, (3, 3), "VALID", dimension_numbers=maps._DIMS
  )
  y = maps.conv_transpose(x, layer)
  assert y.shape == (2, 9, 15, 2)
  np.testing.assert_allclose(y, expected, atol=1e-5)  # sums of 4 products


@pytest.mark.parametrize(("features", "groups"), [(64, 32), (6, 3), (5, 1)])
def test_group_norm_normalises_each_group(features, groups):
  x = RNG.normal(3, 5, (2, 4, 4, features)).astype(np.float32)
  y = maps.group_norm(x, maps.init_group_norm(features), groups=groups)
  by_group = np.asarray(y).reshape(2, 16, groups, -1)
  # The variance is short of one by epsilon / 25.
  np.testing.assert_allclose(by_group.mean((1, 3)), 0, atol=1e-5)
  np.testing.assert_allclose(by_group.var((1, 3)), 1, atol=1e-4)


def test_group_norm_takes_groups_that_divide():
  x = RNG.normal(size=(1, 3, 3, 12)).astype(np.float32)
  norm = maps.init_group_norm(12)
  np.testing.assert_array_equal(
    maps.group_norm(x, norm, groups=5), maps.group_norm(x, norm, groups=4)
  )


@settings(deadline=None, max_examples=12)  # each shape compiles
@given(side=st.integers(1, 9), cells=st.integers(1, 6))
def test_mean_pool_covers_every_pixel(side, cells):
  x = np.arange(side * side, dtype=np.float32).reshape(1, side, side, 1)
  expected = [
    [
      x[
        0,
        i * side // cells : -(-(i + 1) * side // cells),
        j * side // cells : -(-(j + 1) * side // cells),
      ].mean()
      for j in range(cells)
    ]
    for i in range(cells)
  ]
  found = maps.mean_pool(x, cells)[0, ..., 0]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_resize_keeps_constants_and_its_own_size():
  x = RNG.normal(size=(1, 4, 6, 2)).astype(np.float32)
  np.testing.assert_allclose(maps.resize(x, (4, 6)), x, atol=1e-6)
  np.testing.assert_allclose(maps.resize(np.ones_like(x), (9, 5)), 1, atol=1e-6)


def test_tokens_become_rows_of_a_map():
  tokens = jnp.arange(6.0).reshape(1, 6, 1)
  assert maps.to_map(tokens, (2, 3))[0, ..., 0].tolist() == [
    [0, 1, 2],
    [3, 4, 5],
  ]
  with pytest.raises(ValueError, match=r"\[B, 2 \* 2, D\] for a grid of"):
    maps.to_map(tokens, (2, 2))
