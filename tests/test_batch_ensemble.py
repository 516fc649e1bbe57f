import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collective_mm import ColumnDense, RowDense, make_mesh
from models.batch_ensemble import (
  BatchEnsemble,
  draw_vectors,
  member_mean,
  perturbed_product,
  tile_members,
)

IN, OUT, MEMBERS, IMAGES = 8, 16, 2, 4
noisy = jax.nn.initializers.normal(1.0)


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(data=2, model=2, devices=jax.devices()[:4])


def draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def layers(mesh):
  options = {"mesh": mesh, "bias_init": noisy}
  return {
    "column": ColumnDense(OUT, gather_dim=-1, **options),
    "column by rows": ColumnDense(OUT, gather_dim=0, **options),
    "row": RowDense(OUT, scatter_dim=-1, **options),
    "row by rows": RowDense(OUT, scatter_dim=0, **options),
  }


def members_apart(params, x):
  """Each member as a Dense layer whose kernel is changed by rank one."""
  groups = x.reshape(MEMBERS, -1, *x.shape[1:])
  return np.concatenate(
    [
      group @ (np.diag(alpha) @ params["kernel"] @ np.diag(gamma)) + bias
      for group, alpha, gamma, bias in zip(
        groups, params["alpha"], params["gamma"], params["bias"], strict=True
      )
    ]
  )


@pytest.mark.parametrize(
  "name", ["column", "column by rows", "row", "row by rows"]
)
def test_members_are_dense_layers_of_their_own(mesh, name):
  layer = BatchEnsemble(layers(mesh)[name], members=MEMBERS)
  params = layer.init(jax.random.key(0), IN)
  x, dy = draw(1, MEMBERS * IMAGES, 3, IN), draw(2, MEMBERS * IMAGES, 3, OUT)
  for leaf, spec in layer.specs.items():
    sharding = jax.NamedSharding(mesh, spec)
    assert params[leaf].sharding.is_equivalent_to(sharding, 2), leaf

  def step(apply, params, x):
    y, gradient = jax.vjp(apply, params, x)
    return y, gradient(dy)

  y, gradients = jax.jit(lambda p, x: step(layer, p, x))(params, x)
  np.testing.assert_allclose(
    y, members_apart(jax.device_get(params), x), rtol=0, atol=2e-5
  )
  _, want = step(perturbed_product, jax.device_get(params), jnp.asarray(x))
  # Sums of up to 24 products of unit normals.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4),
    gradients,
    want,
  )


def test_unit_vectors_are_a_dense_layer(mesh):
  dense = layers(mesh)["column"]
  layer = BatchEnsemble(dense, members=MEMBERS, sign=0)
  params = layer.init(jax.random.key(0), IN)
  for name in ("alpha", "gamma"):
    assert set(np.unique(params[name])) == {1}
  plain = {"kernel": params["kernel"], "bias": params["bias"][0]}
  x = draw(1, IMAGES, IN)
  y = jax.jit(layer)(params, tile_members(jnp.asarray(x), MEMBERS))
  want = jax.jit(dense)(plain, x)
  # The same sums; under jax 0.12 they differ in the last bit.
  np.testing.assert_allclose(y[:IMAGES], want, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(y[IMAGES:], y[:IMAGES])


@pytest.mark.parametrize("name", ["column", "row"])
def test_members_share_one_ring(mesh, name):
  def sends(layer):
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), IN))
    jaxpr = jax.make_jaxpr(layer)(params, jnp.ones((MEMBERS * IMAGES, IN)))
    return str(jaxpr).count("ppermute")

  dense = dataclasses.replace(layers(mesh)[name], schedule="two_way")
  alone = sends(dense)
  assert alone > 0
  assert sends(BatchEnsemble(dense, members=MEMBERS)) == alone


def test_members_begin_apart_and_with_the_same_bias(mesh):
  layer = BatchEnsemble(layers(mesh)["row"], members=3)
  params = layer.init(jax.random.key(0), IN)
  assert len(np.unique(params["alpha"], axis=0)) == 3
  assert len(np.unique(params["bias"], axis=0)) == 1
  bare = RowDense(OUT, mesh=mesh, use_bias=False)
  assert "bias" not in BatchEnsemble(bare, members=3).init(
    jax.random.key(0), IN
  )


def test_first_vectors():
  normal = draw_vectors(jax.random.key(0), (100, 100), -0.5)
  # Standard errors: 0.005 of the mean, 0.0035 of the deviation.
  assert float(normal.mean()) == pytest.approx(1, abs=0.02)
  assert float(normal.std()) == pytest.approx(0.5, abs=0.015)
  signs = draw_vectors(jax.random.key(0), (100, 100), 0.75)
  assert set(np.unique(signs)) == {-1, 1}
  assert float((signs > 0).mean()) == pytest.approx(0.75, abs=0.02)


def test_tiles_and_means_are_inverse():
  x = jnp.asarray(draw(0, IMAGES, 3))
  tiled = tile_members(x, MEMBERS)
  np.testing.assert_array_equal(tiled[:IMAGES], tiled[IMAGES:])
  np.testing.assert_array_equal(member_mean(tiled, MEMBERS), x)


def test_bad_layers_are_named(mesh):
  dense = layers(mesh)["row"]
  with pytest.raises(ValueError, match="members must be at least 1, got 0"):
    BatchEnsemble(dense, members=0)
  with pytest.raises(ValueError, match="sign must be at most 1, got 2"):
    BatchEnsemble(dense, members=1, sign=2)
  with pytest.raises(ValueError, match="dense must have a mesh, got None"):
    BatchEnsemble(RowDense(OUT), members=1)
  layer = BatchEnsemble(dense, members=3)
  params = jax.eval_shape(lambda: perturbed(3))
  with pytest.raises(ValueError, match="each of the 3 members, got 4 rows"):
    jax.eval_shape(layer, params, jnp.ones((4, IN)))


def perturbed(members):
  return {
    "kernel": jnp.ones((IN, OUT)),
    "alpha": jnp.ones((members, IN)),
    "gamma": jnp.ones((members, OUT)),
    "bias": jnp.ones((members, OUT)),
  }
