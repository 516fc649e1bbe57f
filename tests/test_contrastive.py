import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collective_mm import make_mesh
from models.contrastive import contrastive_loss, dense_contrastive_loss

P = jax.P
PAIRS, WIDTH = 24, 8


def pairs(seed=0):
  rng = np.random.default_rng(seed)
  image, text = rng.standard_normal((2, PAIRS, WIDTH)).astype(np.float32)
  mask = np.ones(PAIRS, np.float32)
  mask[[3, 10, 11, 12]] = 0  # 9 to 11 are all of one device
  mask[9] = 0
  return image, text, mask


def over_the_mesh(image, text, log_t, mask):
  mesh = make_mesh(data=2, model=4)
  rows = P(("data", "model"))
  return jax.shard_map(
    contrastive_loss,
    mesh=mesh,
    in_specs=(rows, rows, P(), rows),
    out_specs=P(),
  )(image, text, log_t, mask)


@pytest.fixture(scope="module")
def both():
  def graded(loss):
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))

  return graded(over_the_mesh), graded(dense_contrastive_loss)


@pytest.mark.parametrize("log_t", [np.log(10.0), np.log(300.0)])
def test_the_ring_equals_the_dense_loss(both, log_t):
  image, text, mask = pairs()
  args = image, text, jnp.float32(log_t), mask
  (loss, grads), (want, want_grads) = (f(*args) for f in both)
  # Float32 sums in another order; gradients have the size of t / (pairs kept).
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  for got, expected in zip(grads, want_grads, strict=True):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=2e-6 * scale, rtol=1e-5)
  assert not np.asarray(grads[0])[mask == 0].any()


def test_masked_pairs_change_nothing(both):
  image, text, mask = pairs()
  other = np.where(mask[:, None] > 0, text, 7 - text)
  log_t = jnp.float32(1.0)
  loss = both[0](image, text, log_t, mask)[0]
  assert float(both[0](image, other, log_t, mask)[0]) == float(loss)


def test_hand_computed():
  # Two pairs at right angles, t = 1: each row and column is (1, 0).
  x = jnp.eye(2)
  loss = dense_contrastive_loss(x, x, jnp.float32(0), jnp.ones(2))
  assert float(loss) == pytest.approx(np.log(1 + np.exp(-1.0)), rel=1e-6)
