import itertools

import jax
import numpy as np
import pytest
from test_plex import trained

from collective_mm import make_mesh
from examples.eval.plex_training import Predictor, fine_tune
from models.plex import PlexConfig, PlexViT
from models.vit_config import get_config

CFG = get_config(
  "vit_tiny",
  width=16,
  depth=2,
  mlp=32,
  heads=4,
  image=16,
  classes=3,
  pool=False,
)
PLEX = PlexConfig(head="heteroscedastic", samples=4, factors=2)


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(data=1, model=1, devices=jax.devices()[:1])


def batch_of(rng):
  """Bright, grey and dark images, and one that could not be read."""
  label = rng.integers(3, size=8)
  image = rng.normal(size=(8, 16, 16, 1)) * 0.1 + label[:, None, None, None] - 1
  image[7] = 1e6  # a row without mask must not count
  return {
    "image": image.astype(np.float32),
    "label": np.eye(3, dtype=np.float32)[label],
    "mask": np.float32([1] * 7 + [0]),
  }


def test_every_part_learns(mesh):
  # Gradients through the rings are tested with the layers.
  model = PlexViT(CFG, PLEX, mesh, schedule="unoverlapped")
  params = model.init(jax.random.key(1), trained(CFG))
  rng = np.random.default_rng(0)
  batches = map(batch_of, itertools.repeat(rng))
  after, losses = fine_tune(model, params, batches, mesh, steps=30, lr=0.1)
  assert losses[-5:].mean() < 0.7 * losses[:5].mean()
  for path, leaf in jax.tree_util.tree_leaves_with_path(after):
    before = params
    for key in path:
      before = before[key.key]
    assert not np.array_equal(leaf, before), jax.tree_util.keystr(path)

  batch = batch_of(rng)
  predict = Predictor(model, after, mesh, batch=4)
  probs = predict(batch["image"][:7])  # a batch that is not full, too
  assert probs.shape == (7, 3)
  np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
  right = probs.argmax(axis=1) == batch["label"][:7].argmax(axis=1)
  assert right.mean() > 0.8


@pytest.mark.long
def test_a_loss_that_is_not_finite_is_said(mesh):
  model = PlexViT(CFG, PLEX, mesh, schedule="unoverlapped")
  params = model.init(jax.random.key(1), trained(CFG))
  batch = batch_of(np.random.default_rng(0))
  batch["image"][:] = np.nan
  with pytest.raises(FloatingPointError, match="the loss is nan at the end"):
    fine_tune(model, params, itertools.repeat(batch), mesh, steps=1, lr=0.1)
