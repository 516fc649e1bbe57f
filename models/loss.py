"""The training losses: each class a yes-or-no question, or one of all right."""

import jax
import jax.numpy as jnp


def sigmoid_xent(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns each example's sigmoid cross-entropy, summed over the classes.

      -sum_v (z_v log sigmoid(x_v) + (1 - z_v) log sigmoid(-x_v))

  with logits `x[B, V]` and labels `z[B, V]`. An example may have several
  labels, as the flattened label hierarchy of JFT does (paper, section on the
  training data; big_vision `utils.sigmoid_xent`). Finite, with a finite
  gradient, at any finite logit.

  Args:
    logits: `[B, V]`, of any float dtype.
    labels: `[B, V]`, 1 where the class applies and 0 elsewhere, or a
      probability between.

  Returns:
    `[B]` float32, in nats.

  Raises:
    ValueError: if the shapes of `logits` and `labels` differ.

  Example:
    >>> nats = sigmoid_xent(jnp.zeros((1, 4)), jnp.array([[1, 0, 0, 1]]))
    >>> round(float(nats[0] / jnp.log(2)), 5)  # four coin tosses
    4.0
  """
  _check(logits, labels)
  x, z = logits.astype(jnp.float32), labels.astype(jnp.float32)
  # log(1 - sigmoid(x)) would round to log(0) from x = 17 on.
  log_yes, log_no = jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)
  return -jnp.sum(z * log_yes + (1 - z) * log_no, axis=-1)


def softmax_xent(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns each example's softmax cross-entropy.

      -sum_v t_v log softmax(x)_v,    t = z / sum_v z_v

  with logits `x[B, V]` and labels `z[B, V]`. The labels of an example share its
  weight equally, as in Mahajan et al. 2018 ("Exploring the limits of weakly
  supervised pretraining"); one without labels has the loss 0.

  Args:
    logits: `[B, V]`, of any float dtype.
    labels: `[B, V]`, 1 where the class applies and 0 elsewhere, or weights.

  Returns:
    `[B]` float32, in nats.

  Raises:
    ValueError: if the shapes of `logits` and `labels` differ.

  Example:
    >>> nats = softmax_xent(jnp.zeros((1, 4)), jnp.array([[1, 0, 0, 1]]))
    >>> round(float(nats[0] / jnp.log(2)), 5)  # one of four
    2.0
  """
  _check(logits, labels)
  z = labels.astype(jnp.float32)
  total = z.sum(axis=-1)
  nats = -jnp.sum(z * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
  return nats / jnp.where(total > 0, total, 1)


LOSSES = {"sigmoid": sigmoid_xent, "softmax": softmax_xent}


def _check(logits, labels):
  if logits.shape != labels.shape:
    raise ValueError(
      f"labels must have the shape of logits, {logits.shape}, "
      f"got labels.shape={labels.shape}"
    )


def loss_fn(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the mean of `sigmoid_xent` over the examples that `mask` keeps.

  Args:
    logits: `[B, V]`.
    labels: `[B, V]`.
    mask: `[B]`, nonzero or true for real examples, zero for padding.

  Returns:
    A float32 scalar, in nats per example; 0 if the mask keeps none.

  Raises:
    ValueError: if the shapes of `logits` and `labels` differ, or `mask` is not
      `[B]`.
  """
  if mask.shape != logits.shape[:1]:
    raise ValueError(
      f"mask must have one entry for each of the {logits.shape[0]} examples, "
      f"got mask.shape={mask.shape}"
    )
  keep = mask.astype(bool)
  total = jnp.sum(sigmoid_xent(logits, labels), where=keep)
  return total / jnp.maximum(jnp.sum(keep), 1)
