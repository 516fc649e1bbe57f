"""The transformer over frames: what it must tell apart, and what it may not."""

import dataclasses

import jax
import numpy as np
import pytest

from models import temporal

CFG = temporal.TemporalConfig(
  features=6, frames=5, classes=3, width=16, mlp=32, heads=2
)
PARAMS = temporal.init(jax.random.key(0), CFG)
# The head starts at zero: give it something to say.
PARAMS["head"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 3))
FRAMES = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
classify = jax.jit(lambda params, x: temporal.classify(params, x, CFG))


def test_the_order_of_frames_counts():
  forward, back = classify(PARAMS, FRAMES), classify(PARAMS, FRAMES[:, ::-1])
  assert np.abs(forward - back).max() > 1e-2


def test_without_positions_the_order_does_not_count():
  params = PARAMS | {"position": 0 * PARAMS["position"]}
  # Sums over frames in another order.
  np.testing.assert_allclose(
    classify(params, FRAMES), classify(params, FRAMES[:, ::-1]), atol=1e-5
  )


def test_clips_do_not_see_each_other():
  np.testing.assert_allclose(
    classify(PARAMS, FRAMES)[:1], classify(PARAMS, FRAMES[:1]), atol=1e-5
  )


def test_the_head_starts_at_zero():
  params = temporal.init(jax.random.key(0), CFG)
  np.testing.assert_array_equal(classify(params, FRAMES), np.zeros((2, 3)))


def test_bad_input():
  with pytest.raises(ValueError, match=r"\[B, 5, 6\], got .*\(2, 4, 6\)"):
    temporal.classify(PARAMS, FRAMES[:, :4], CFG)
  with pytest.raises(ValueError, match="width=16 is not a multiple of heads=3"):
    dataclasses.replace(CFG, heads=3)
  with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
    dataclasses.replace(CFG, depth=0)
