"""Integrated gradients of the sharded ViT, through its rings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_plex import trained

from collective_mm import make_mesh
from examples.eval.attribution import logit_gradient
from examples.eval.metrics.attribution import integrated_gradients
from examples.eval.predict import Model
from models.vit_config import get_config
from models.vit_reference import forward

CFG = get_config(
  "vit_tiny", width=16, depth=1, mlp=16, heads=2, image=8, patch=4, classes=3
)


@pytest.fixture(scope="module")
def model():
  params = trained(CFG)
  mesh = make_mesh(data=1, model=2, devices=jax.devices()[:2])
  return Model(CFG, params, mesh, 8, None)


@pytest.fixture(scope="module")
def gradient(model):
  return logit_gradient(model)


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32)


def test_gradients_are_the_references(model, gradient, images):
  got, slope = gradient(images, 2)

  @jax.jit
  @jax.value_and_grad
  def reference(images):
    return forward(model.params, images, CFG)[0][:, 2].sum()

  value, want = reference(jnp.asarray(images))
  # Sums of 16 products in float32, twice.
  np.testing.assert_allclose(got.sum(), value, rtol=1e-4)
  np.testing.assert_allclose(slope, want, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(gradient.logits(images[3])[2], got[3], rtol=1e-5)


def test_attributions_are_complete_to_a_thousandth(gradient, images):
  parts, gap = integrated_gradients(
    lambda points: gradient(points, 1),
    images[0],
    np.zeros_like(images[0]),
    steps=1024,
    batch=8,
  )
  assert np.abs(parts).sum() > 0.1
  assert abs(gap) < 1e-3
