"""LayerNorm in float32; without a bias it does not centre either.

ViT-22B's norms have a scale alone (paper, section "Model Architecture").
"""

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm.mesh import psum

EPSILON = 1e-6  # flax LayerNorm's default, which big_vision keeps


def layer_norm(x: jax.Array, norm: dict[str, jax.Array]) -> jax.Array:
  """Returns `x[..., D]` normalised over its last dim, in float32.

  Args:
    x: any float dtype.
    norm: "scale" `[D]`, and a "bias" `[D]` where the norm centres.
  """
  x = x.astype(jnp.float32)
  if "bias" in norm:
    x = x - x.mean(axis=-1, keepdims=True)
  variance = jnp.square(x).mean(axis=-1, keepdims=True)
  y = x * lax.rsqrt(variance + EPSILON) * norm["scale"]
  return y + norm["bias"] if "bias" in norm else y


def layer_norm_features(x: jax.Array, norm: dict[str, jax.Array]) -> jax.Array:
  """`layer_norm` of `x[..., D_m]`, whose features lie on all of "model".

  Args:
    x: this device's features.
    norm: as in `layer_norm`, whole on every device.
  """
  x = x.astype(jnp.float32)
  if "bias" in norm:
    x = x - _mean_of_devices(x.mean(axis=-1, keepdims=True))
  variance = jnp.square(x).mean(axis=-1, keepdims=True)
  variance = _mean_of_devices(variance)
  y = x * lax.rsqrt(variance + EPSILON) * local_features(norm["scale"])
  return y + local_features(norm["bias"]) if "bias" in norm else y


def _mean_of_devices(x: jax.Array) -> jax.Array:
  return psum(x, "model") / lax.axis_size("model")


def local_features(x: jax.Array) -> jax.Array:
  """This device's features of `x[..., D]`, which lies whole on every device."""
  width = x.shape[-1] // lax.axis_size("model")
  start = lax.axis_index("model") * width
  return lax.dynamic_slice_in_dim(x, start, width, axis=-1)
