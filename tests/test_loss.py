import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.loss import loss_fn, sigmoid_xent, softmax_xent


def logits_and_labels():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(3 * rng.normal(size=(5, 7)), jnp.float32)
  return logits, jnp.asarray(rng.random((5, 7)) < 0.3)


def test_sum_over_classes_of_the_textbook_formula():
  logits, labels = logits_and_labels()
  yes = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
  nats = -np.where(labels, np.log(yes), np.log(1 - yes)).sum(axis=-1)
  np.testing.assert_allclose(sigmoid_xent(logits, labels), nats, rtol=1e-6)


def test_labels_may_be_probabilities():
  logits = jnp.array([[-1.0, 2.0]])
  halves = sigmoid_xent(logits, jnp.full((1, 2), 0.5))
  ends = [sigmoid_xent(logits, jnp.full((1, 2), z)) for z in (0.0, 1.0)]
  np.testing.assert_allclose(halves, (ends[0] + ends[1]) / 2, rtol=1e-6)


def test_softmax_asks_which_class_is_right():
  logits, _ = logits_and_labels()
  right = jax.nn.one_hot(jnp.array([0, 3, 6, 6, 1]), 7)
  x = np.asarray(logits, np.float64)
  share = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
  nats = -np.log(share[np.asarray(right, bool)])
  np.testing.assert_allclose(softmax_xent(logits, right), nats, rtol=1e-6)
  slope = jax.grad(lambda x: softmax_xent(x, right).sum())(logits)
  np.testing.assert_allclose(slope, share - right, atol=1e-6)


def test_labels_share_the_weight_of_a_softmax():
  logits, _ = logits_and_labels()
  each = [softmax_xent(logits[:1], jnp.eye(7)[i : i + 1]) for i in (2, 5)]
  both = softmax_xent(logits[:1], jnp.eye(7)[2:3] + jnp.eye(7)[5:6])
  np.testing.assert_allclose(both, (each[0] + each[1]) / 2, rtol=1e-6)
  mixed = softmax_xent(
    logits[:1], 0.7 * jnp.eye(7)[2:3] + 0.3 * jnp.eye(7)[5:6]
  )
  np.testing.assert_allclose(mixed, 0.7 * each[0] + 0.3 * each[1], rtol=1e-6)


def test_no_label_is_no_loss_of_a_softmax():
  def total(x):
    return softmax_xent(x, jnp.zeros((1, 3))).sum()

  value, slope = jax.value_and_grad(total)(jnp.array([[1e30, -1e30, 0]]))
  assert value == 0 and not slope.any()


def test_extreme_logits_keep_value_and_gradient():
  # log(1 + e^-20) = e^-20 to first order; a wrong answer costs the logit.
  logits = jnp.array([[20.0], [20.0], [1e4], [-1e4], [1e30]])
  labels = jnp.array([[1], [0], [0], [1], [1]])
  nats = sigmoid_xent(logits, labels)
  expected = [np.exp(-20.0), 20 + np.exp(-20.0), 1e4, 1e4, 0.0]
  np.testing.assert_allclose(nats, expected, rtol=1e-6)

  slope = jax.grad(lambda x: sigmoid_xent(x, labels).sum())(logits)
  expected = [[-np.exp(-20.0)], [1.0], [1.0], [-1.0], [0.0]]
  np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=0)


def test_gradient_is_probability_minus_label():
  logits, labels = logits_and_labels()
  slope = jax.grad(lambda x: sigmoid_xent(x, labels).sum())(logits)
  np.testing.assert_allclose(slope, jax.nn.sigmoid(logits) - labels, atol=1e-6)


def test_low_precision_logits_are_summed_in_float32():
  # In bfloat16 the sum of 4096 halves would stop growing long before.
  nats = sigmoid_xent(
    jnp.zeros((1, 4096), jnp.bfloat16), jnp.zeros((1, 4096), jnp.bfloat16)
  )
  assert nats.dtype == jnp.float32
  np.testing.assert_allclose(nats, 4096 * np.log(2), rtol=1e-5)


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.float32])
def test_mean_over_the_examples_of_the_mask(dtype):
  logits, labels = logits_and_labels()
  mask = jnp.array([1, 0, 1, 1, 0], dtype)
  kept = sigmoid_xent(logits, labels)[jnp.array([0, 2, 3])]
  np.testing.assert_allclose(
    loss_fn(logits, labels, mask), kept.mean(), rtol=1e-6
  )


def test_padding_does_not_reach_value_or_gradient():
  logits, labels = logits_and_labels()
  mask = jnp.array([1, 1, 1, 1, 0])
  padded = logits.at[4].set(jnp.nan)
  loss, slope = jax.value_and_grad(loss_fn)(padded, labels, mask)
  np.testing.assert_array_equal(loss, loss_fn(logits, labels, mask))
  np.testing.assert_array_equal(slope[:4] != 0, True)


def test_an_empty_mask_gives_zero():
  logits, labels = logits_and_labels()
  assert loss_fn(logits, labels, jnp.zeros(5)) == 0.0


def test_shapes_that_would_broadcast_are_refused():
  logits, labels = logits_and_labels()
  with pytest.raises(ValueError, match=r"\(5, 7\), got labels.shape=\(7,\)"):
    sigmoid_xent(logits, labels[0])
  with pytest.raises(ValueError, match=r"\(5, 7\), got labels.shape=\(7,\)"):
    softmax_xent(logits, labels[0])
  with pytest.raises(ValueError, match=r"5 examples, got mask.shape=\(5, 1\)"):
    loss_fn(logits, labels, jnp.ones((5, 1)))
