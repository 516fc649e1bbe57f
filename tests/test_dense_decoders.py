"""The dense decoders: their counts, their shapes, and that they can learn."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.eval.dense_decoders import depth_decoder, segmenter
from models import dpt, linear_decoder, temporal, upernet
from models.vit_config import get_config

KEY = jax.random.key(0)
CFG = get_config("vit_tiny", image=24, channels=3, width=16, mlp=16)  # 3 x 3


def count(init):
  shapes = jax.eval_shape(init, KEY)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_parameter_counts_of_the_paper():
  assert count(lambda k: linear_decoder.init_segmenter(k, 6144, 150)) == 921_750
  frames = temporal.TemporalConfig(features=6144)
  assert count(lambda k: temporal.init(k, frames)) == 63_711_571


def test_upernet_counts_what_its_docstring_lists():
  cfg = upernet.UperNetConfig(width=8, classes=3, features=4, auxiliary=2)
  neck = 4 * (8 * 8 + 8 + 9 * 8 * 8 + 8)
  pools = 4 * (8 * 4 + 3 * 4)
  bottleneck = 9 * (8 + 16) * 4 + 3 * 4
  lateral, smooth = 3 * (8 * 4 + 3 * 4), 3 * (9 * 4 * 4 + 3 * 4)
  fuse, out = 9 * 16 * 4 + 3 * 4, 4 * 3 + 3
  auxiliary = 9 * 8 * 2 + 3 * 2 + 2 * 3 + 3
  expected = neck + pools + bottleneck + lateral + smooth + fuse + out
  assert count(lambda k: upernet.init(k, cfg)) == expected + auxiliary
  bare = dataclasses.replace(cfg, auxiliary=0)
  assert count(lambda k: upernet.init(k, bare)) == expected


@pytest.mark.parametrize("kind", ["linear", "upernet"])
def test_a_segmenter_fits_one_image(kind):
  decoder = segmenter(kind, KEY, CFG, classes=3, ignore=255, features=8, neck=8)
  rng = np.random.default_rng(0)
  tokens = [
    rng.normal(size=(1, 9, CFG.width)).astype(np.float32)
    for _ in decoder.layers
  ]
  # A class for each token, so that the linear decoder can have it right.
  mask = np.repeat(np.repeat(rng.integers(0, 3, (3, 3)), 8, 0), 8, 1)[None]
  params = _fit(decoder, tokens, {"mask": mask}, lr=0.03)
  found = decoder.predict(params, tokens).argmax(-1)
  assert found.shape == (1, 24, 24)
  # Bilinear upsampling blurs what lies between two tokens.
  middles = np.s_[:, 4::8, 4::8]
  np.testing.assert_array_equal(found[middles], mask[middles])


@pytest.mark.parametrize(
  ("kind", "maps", "lr"), [("linear", 1, 0.02), ("dpt", 4, 0.004)]
)
def test_a_depth_decoder_fits_one_image(kind, maps, lr):
  decoder = depth_decoder(kind, KEY, CFG, maps=maps, features=8)
  rng = np.random.default_rng(0)
  tokens = [
    rng.normal(size=(1, 9, CFG.width)).astype(np.float32)
    for _ in decoder.layers
  ]
  depth = np.repeat(np.repeat(rng.uniform(2, 9, (3, 3)), 8, 0), 8, 1)[None]
  valid = rng.uniform(size=depth.shape) < 0.5
  targets = {"depth": np.where(valid, depth, 0), "valid": valid}
  params = _fit(decoder, tokens, targets, lr, steps=150)
  total, pixels = decoder.loss(params, tokens, targets, KEY)
  assert pixels == valid.sum()
  assert total / pixels < 0.5 * np.log1p(depth[valid]).var()


def test_dpt_reads_one_map_at_every_stage():
  params = dpt.init(KEY, dpt.DPTConfig(width=16, features=8, head=4))
  tokens = jnp.ones((2, 9, 16))
  place = {"grid": (3, 3), "size": (20, 28)}
  one = dpt.depth(params, [tokens], **place)
  assert one.shape == (2, 20, 28)
  np.testing.assert_array_equal(one, dpt.depth(params, [tokens] * 4, **place))
  with pytest.raises(ValueError, match="layers must be 1 or 4, got 2"):
    dpt.depth(params, [tokens] * 2, **place)


def test_the_linear_depth_decoder_is_linear():
  params = linear_decoder.init_depth(KEY, 16, hidden=8)
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 1, 4, 16)).astype(np.float32)
  place = {"grid": (2, 2), "size": (28, 28)}
  f = lambda x: linear_decoder.depth(params, x, **place)  # noqa: E731
  # Affine: the biases stand in each term.
  np.testing.assert_allclose(f(a) + f(b), f(a + b) + f(0 * a), atol=1e-5)


def test_upernet_drops_in_training_alone():
  cfg = upernet.UperNetConfig(width=8, classes=3, features=8, auxiliary=4)
  params = upernet.init(KEY, cfg)
  layers = [jax.random.normal(k, (1, 16, 8)) for k in jax.random.split(KEY, 4)]
  place = {"grid": (4, 4), "size": (8, 8)}
  plain, none = upernet.segment(params, layers, cfg, **place)
  assert none is None
  dropped, auxiliary = upernet.segment(
    params, layers, dataclasses.replace(cfg, dropout=0.5), dropout_key=KEY,
    **place,
  )  # fmt: skip
  assert auxiliary.shape == plain.shape == (1, 8, 8, 3)
  assert not np.allclose(plain, dropped)
  with pytest.raises(ValueError, match="layers must be 4, got 3"):
    upernet.segment(params, layers[:3], cfg, **place)


def test_bad_input():
  with pytest.raises(ValueError, match="must be linear or upernet, got 'x'"):
    segmenter("x", KEY, CFG, classes=2, ignore=255)
  with pytest.raises(ValueError, match="depth must be at least 4, got 3"):
    upernet.layers_of(3)
  with pytest.raises(ValueError, match="maps must be 1 or 4, got 2"):
    depth_decoder("dpt", KEY, CFG, maps=2)
  with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
    upernet.UperNetConfig(width=8, classes=3, dropout=1)
  with pytest.raises(ValueError, match="features must be at least 1, got 0"):
    dpt.DPTConfig(width=8, features=0)


def _fit(decoder, tokens, targets, lr, steps=60):
  optimizer = optax.adam(lr)

  @jax.jit
  def fit(params):
    def step(carry, key):
      params, state = carry

      def loss(params):
        total, count = decoder.loss(params, tokens, targets, key)
        return total / count

      updates, state = optimizer.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(KEY, steps)
    return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

  return fit(decoder.params)
