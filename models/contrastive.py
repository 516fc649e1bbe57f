"""The contrastive loss of two towers over a whole mesh, a chunk at a time.

Radford et al. 2021, Zhai et al. 2022 (LiT). With `B` pairs over `P` devices the
logits are `[B, B]`; here a device holds `[B/P, B/P]` of them. Texts travel
round a ring of all devices. On ring step i device d has the texts of device
d - i (mod P): it adds them to the log-sum-exponentials of its images, and its
images to those of the texts, which travel with them and are home, whole, after
P steps.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-8  # below the norm; big_vision utils.py
AXES = ("data", "model")
_NOTHING = (
  -1e30
)  # the logarithm of an empty sum; minus infinity has no gradient


def normalise(x: jax.Array) -> jax.Array:
  """Returns `x[..., E]` at unit length, in float32."""
  x = x.astype(jnp.float32)
  # The square root has no gradient at zero.
  norm = jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True) + EPSILON**2)
  return x / (norm + EPSILON)


def contrastive_loss(
  image: jax.Array, text: jax.Array, log_t: jax.Array, mask: jax.Array
) -> jax.Array:
  """Returns the loss of all pairs; call inside `jax.shard_map`.

      z[i, j] = exp(log_t) <image_i, text_j>
      loss    = mean_i 0.5 (xent(z[i, :], i) + xent(z[:, i], i))

  over the pairs that the mask keeps; the others are no wrong answers either.

  Args:
    image: `[B_dm, E]`, any length: normalised here.
    text: `[B_dm, E]`, row by row the texts of the images.
    log_t: scalar, the logarithm of the inverse temperature.
    mask: `[B_dm]`, 0 for padding.

  Returns:
    A float32 scalar in nats, the same on every device.

  Cost: `P` sends of `[B/P, E]` forward, twice that backward, which computes the
    logits again; kept are the texts of each step, `[B, E]`.
  """
  image, text = normalise(image), normalise(text)
  keep = mask.astype(jnp.float32)
  size = lax.axis_size(AXES)
  t = jnp.exp(log_t.astype(jnp.float32))
  diagonal = t * (image * text).sum(axis=-1)
  send = functools.partial(
    lax.ppermute,
    axis_name=AXES,
    perm=[(i, (i + 1) % size) for i in range(size)],
  )

  def step(carry, _):
    rows, (text, text_keep, columns) = carry
    z = t * (image @ text.T)
    in_row = jnp.where(text_keep[None] > 0, z, _NOTHING)
    in_column = jnp.where(keep[:, None] > 0, z, _NOTHING)
    rows = jnp.logaddexp(rows, jax.nn.logsumexp(in_row, axis=1))
    columns = jnp.logaddexp(columns, jax.nn.logsumexp(in_column, axis=0))
    return (rows, jax.tree.map(send, (text, text_keep, columns))), None

  nothing = jnp.full_like(diagonal, _NOTHING)
  with jax.default_matmul_precision("highest"):
    (rows, (_, _, columns)), _ = lax.scan(
      jax.checkpoint(step), (nothing, (text, keep, nothing)), length=size
    )
  nats = (rows + columns) / 2 - diagonal
  total = lax.psum((nats * keep).sum(), AXES)
  return total / jnp.maximum(lax.psum(keep.sum(), AXES), 1)


def dense_contrastive_loss(
  image: jax.Array, text: jax.Array, log_t: jax.Array, mask: jax.Array
) -> jax.Array:
  """Returns the same from whole arrays, on one device: the twin."""
  z = jnp.exp(log_t) * normalise(image) @ normalise(text).T
  keep = mask > 0
  rows = jax.nn.logsumexp(jnp.where(keep[None], z, -jnp.inf), axis=1)
  columns = jax.nn.logsumexp(jnp.where(keep[:, None], z, -jnp.inf), axis=0)
  nats = (rows + columns) / 2 - jnp.diagonal(z)
  return jnp.where(keep, nats, 0).sum() / jnp.maximum(keep.sum(), 1)
