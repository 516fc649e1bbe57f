"""Training of decoders: on any mesh the same, frozen or with the ViT."""

import jax
import numpy as np
import pytest

from collective_mm import make_mesh
from examples.eval.dense_decoders import segmenter
from examples.eval.dense_training import (
  Recipe,
  block_names,
  fit_frozen,
  fit_whole,
  predict,
)
from examples.eval.features import extract
from models.params import init_params
from models.vit_config import get_config

CFG = get_config(
  "vit_tiny", depth=1, width=16, mlp=32, image=16, channels=3, classes=2
)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (16, 16, 16, 3)).astype(np.float32)
# Bright or dark: what a token of random weights can tell.
MASKS = (IMAGES.mean(-1) > 0).astype(np.uint8)
MASKS[:, :2] = 255
RECIPE = Recipe(steps=4, batch=8, lr=0.05, warmup=1, clip=1.0)


@pytest.fixture(scope="module")
def params():
  return jax.device_get(init_params(jax.random.key(0), CFG))


@pytest.fixture(scope="module")
def decoder():
  return segmenter("linear", jax.random.key(1), CFG, classes=2, ignore=255)


def whole(decoder, params, data, model):
  mesh = make_mesh(
    data=data, model=model, devices=jax.devices()[: data * model]
  )
  trained = fit_whole(
    decoder, CFG, params, IMAGES, {"mask": MASKS}, mesh, RECIPE
  )
  return jax.device_get(trained)


def test_the_mesh_does_not_change_what_is_learned(decoder, params):
  one, eight = (whole(decoder, params, *mesh) for mesh in ((1, 1), (2, 4)))
  # Four steps of Adam on gradients that differ by the order of float32 sums.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    one,
    eight,
  )
  vit = eight[0]
  assert not np.allclose(
    vit["blocks"]["q"]["kernel"][0], params["blocks"]["q"]["kernel"][0]
  )
  # What the last tap does not see stays as it was.
  np.testing.assert_array_equal(vit["head"]["bias"], params["head"]["bias"])


def test_a_frozen_vit_is_only_read(decoder, params):
  mesh = make_mesh(data=2, model=4)
  kept = extract(
    CFG, params, mesh, IMAGES, layers=("norm",), pooled=False, batch=8
  )
  targets = {"mask": MASKS}
  trained = fit_frozen(decoder, kept, targets, mesh, RECIPE)

  def loss(values):
    tokens = [kept["norm"]]
    total, count = decoder.loss(values, tokens, targets, jax.random.key(0))
    return float(total / count)

  assert loss(trained) < loss(decoder.params)
  found = predict(decoder, trained, kept, batch=5)
  assert found.shape == (16, 16, 16, 2)
  # 16 images in batches of 5: the last one is filled up, and cut again.
  np.testing.assert_allclose(
    found, decoder.predict(trained, [kept["norm"]]), atol=1e-5
  )


def test_ignored_pixels_have_no_gradient(decoder):
  tokens = [RNG.normal(size=(1, 4, 16)).astype(np.float32)]
  nothing = {"mask": np.full((1, 16, 16), 255, np.uint8)}
  total, count = decoder.loss(decoder.params, tokens, nothing, None)
  assert (float(total), int(count)) == (0, 0)


def test_names_and_bad_recipes():
  assert block_names((0, 11)) == ("block_00", "block_11")
  with pytest.raises(ValueError, match="steps must be above 0, got 0"):
    Recipe(steps=0)
  with pytest.raises(
    ValueError, match=r"warmup must be in \[0, 5\), the steps"
  ):
    Recipe(steps=5, warmup=5)
