import functools

import jax
import numpy as np
import pytest

from collective_mm import make_mesh
from models import vit_reference
from models.params import init_params
from models.plex import PlexConfig, PlexViT
from models.vit_config import get_config

SMALL = {"width": 16, "depth": 2, "mlp": 32, "heads": 4, "image": 16}
PARALLEL = get_config("vit_tiny", **SMALL)
SEQUENTIAL = get_config(
  "vit_tiny",
  **SMALL,
  parallel=False,
  qk_norm=False,
  attention_bias=True,
  norm_bias=True,
  pool=False,
)
IMAGES = 4
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(data=2, model=2, devices=jax.devices()[:4])


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (IMAGES, 16, 16, 1)).astype(np.float32)


def trained(cfg):
  """Parameters none of which is zero, as after training.

  Drawn by NumPy: jax would compile a program for every shape.
  """
  shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    scale = path[-1].key == "scale"
    fan_in = leaf.shape[-2] if path[-1].key == "kernel" else 25
    noise = rng.normal(size=leaf.shape) / fan_in**0.5
    return np.float32(scale + noise)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def reference(cfg):
  return jax.jit(functools.partial(vit_reference.forward, cfg=cfg))


def member_of(params, e):
  """Member `e` as a ViT of its own, its vectors multiplied into the kernels."""

  def alone(layer):
    if not isinstance(layer, dict) or "alpha" not in layer:
      return layer
    alpha, gamma = (layer[name][..., e, :] for name in ("alpha", "gamma"))
    kernel = alpha[..., :, None] * layer["kernel"] * gamma[..., None, :]
    bias = {"bias": layer["bias"][..., e, :]} if "bias" in layer else {}
    return {"kernel": kernel, **bias}

  return {
    part: alone(layers)
    if "kernel" in layers
    else {name: alone(layer) for name, layer in layers.items()}
    for part, layers in params.items()
  }


@pytest.mark.parametrize(
  ("cfg", "schedule"), [(PARALLEL, "unoverlapped"), (SEQUENTIAL, "auto")]
)
def test_members_are_vits_of_their_own(mesh, images, cfg, schedule):
  plex = PlexConfig()
  model = PlexViT(cfg, plex, mesh, schedule=schedule)
  params = model.init(KEY, trained(cfg))
  got = jax.jit(model.__call__)(params, images, KEY)
  assert got.shape == (2 * IMAGES, cfg.classes)
  twin = reference(cfg)
  for e in range(2):
    logits, _ = twin(member_of(params, e), images)
    want = jax.nn.log_softmax(logits)
    # The first vectors double some activations; float32 over two blocks.
    np.testing.assert_allclose(
      got[e * IMAGES : (e + 1) * IMAGES], want, rtol=1e-3, atol=1e-3
    )
  assert np.abs(got[:IMAGES] - got[IMAGES:]).max() > 0.1


def test_unit_vectors_leave_the_vit_as_it_is(mesh, images):
  plex = PlexConfig(sign=0, head="dense")
  model = PlexViT(PARALLEL, plex, mesh, schedule="unoverlapped")
  params = trained(PARALLEL)
  got = jax.jit(model.probabilities)(model.init(KEY, params), images, KEY)
  logits, _ = reference(PARALLEL)(params, images)
  np.testing.assert_allclose(got, jax.nn.softmax(logits), atol=1e-5)


def test_one_member_is_the_dense_layer_itself(mesh):
  plex = PlexConfig(head="heteroscedastic", members=1)
  params = PlexViT(PARALLEL, plex, mesh).init(KEY, trained(PARALLEL))
  for name in ("alpha", "gamma"):
    assert set(np.unique(params["blocks"]["q"][name])) == {1.0}


def test_bad_models_are_named(mesh):
  with pytest.raises(ValueError, match=r"dense, batch_ensemble, .* got 'gp'"):
    PlexConfig(head="gp")
  with pytest.raises(ValueError, match="cfg must have classes, got 0"):
    PlexViT(get_config("vit_tiny", classes=0), PlexConfig(), mesh)
  with pytest.raises(NotImplementedError, match="got cls=True"):
    PlexViT(get_config("vit_tiny", pool=False, cls=True), PlexConfig(), mesh)
  with pytest.raises(ValueError, match=r"2 does not divide 3 and 256"):
    PlexViT(get_config("vit_tiny", width=66, heads=3), PlexConfig(), mesh)
