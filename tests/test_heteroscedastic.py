import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.heteroscedastic import HeteroscedasticHead

WIDTH, CLASSES, IMAGES = 6, 5, 3
X = np.random.default_rng(0).standard_normal((IMAGES, WIDTH), np.float32)


def make(**options):
  head = HeteroscedasticHead(CLASSES, **options)
  return head, head.init(jax.random.key(0), WIDTH)


def still(params):
  """The same head without any covariance: `V = 0`, `d` at its floor."""
  params = dict(params)
  params["factors"] = jax.tree.map(jnp.zeros_like, params["factors"])
  diagonal = jax.tree.map(jnp.zeros_like, params["diagonal"])
  params["diagonal"] = diagonal | {"bias": diagonal["bias"] - 1e4}
  return params


def mean_logits(params):
  return X @ params["mean"]["kernel"] + params["mean"]["bias"]


def test_without_covariance_it_is_a_softmax():
  head, params = make(samples=7, temperature=2.0, floor=0.0)
  got = head(still(params), X, jax.random.key(1))
  want = jax.nn.log_softmax(mean_logits(params) / 2)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_floor_keeps_a_little_noise():
  head, params = make(samples=1, temperature=1.0)
  got = head(still(params), X, jax.random.key(1))
  want = jax.nn.log_softmax(mean_logits(params))
  gap = np.abs(got - want).max()
  assert 0 < gap < 1e-2  # ten standard deviations of 1e-3


def test_samples_average_to_the_expected_softmax():
  head, params = make(samples=4000, factors=2, temperature=1.5)
  apply = jax.jit(head.__call__)
  got = np.exp(apply(params, X, jax.random.key(1)))
  np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-5)
  # The same mean by draws from the whole covariance, V V^T + diag(d^2).
  rng = np.random.default_rng(2)
  low, diagonal = (
    np.asarray(X @ params[name]["kernel"]) for name in ("factors", "diagonal")
  )
  low = low.reshape(IMAGES, CLASSES, 2)
  deviation = np.log1p(np.exp(diagonal)) + 1e-3
  for i, mean in enumerate(np.asarray(mean_logits(params))):
    covariance = low[i] @ low[i].T + np.diag(deviation[i] ** 2)
    drawn = rng.multivariate_normal(mean, covariance, 20_000) / 1.5
    want = np.exp(drawn) / np.exp(drawn).sum(axis=1, keepdims=True)
    # Standard errors below 0.3 / sqrt(4000) = 0.005.
    np.testing.assert_allclose(got[i], want.mean(axis=0), atol=0.02)


def test_shared_noise_moves_all_logits_alike():
  head, params = make(samples=1, temperature=1.0, shared_noise=True)
  quiet = still(params)
  # With one deviation for all classes the shared noise cancels out.
  quiet["diagonal"] = quiet["diagonal"] | {"bias": jnp.full(CLASSES, 3.0)}
  got = head(quiet, X, jax.random.key(1))
  np.testing.assert_allclose(
    got, jax.nn.log_softmax(mean_logits(params)), atol=1e-5
  )
  own, _ = make(samples=1, temperature=1.0)
  assert np.abs(own(quiet, X, jax.random.key(1)) - got).max() > 0.1


def test_gradients_reach_every_layer():
  head, params = make(samples=3)

  @jax.jit
  @jax.grad
  def gradient(params):
    return -head(params, X, jax.random.key(1))[:, 0].mean()

  for name, layer in gradient(params).items():
    assert float(jnp.abs(layer["kernel"]).max()) > 0, name


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"factors": 0}, "factors must be at least 1, got 0"),
    ({"samples": 0}, "samples must be at least 1, got 0"),
    ({"temperature": 0}, "temperature must be positive, got 0"),
  ],
)
def test_bad_heads_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    functools.partial(HeteroscedasticHead, CLASSES)(**options)
