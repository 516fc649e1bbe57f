"""Each op unoverlapped, in three lines: the oracle that the rings must equal.

Same arguments as the ops of `collective_mm.collective`; those that only choose
how to overlap are accepted and do nothing. Autodiff is jax's own.
"""

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm.mesh import AxisName


def _tuple(x) -> tuple:
  return tuple(x) if isinstance(x, tuple | list) else (x,)


def all_gather_matmul(
  x: jax.Array,
  w: jax.Array | tuple[jax.Array, ...],
  *,
  axis_name: AxisName,
  gather_dim: int,
  accum_dtype: jax.typing.DTypeLike = jnp.float32,
  **_,
) -> jax.Array | tuple[jax.Array, ...]:
  """Returns `all_gather(x, gather_dim) @ w`, the gather before the product."""
  full = lax.all_gather(x, axis_name, axis=gather_dim % x.ndim, tiled=True)
  ys = tuple(
    jnp.matmul(full, wi, preferred_element_type=accum_dtype).astype(x.dtype)
    for wi in _tuple(w)
  )
  return ys if isinstance(w, tuple | list) else ys[0]


def matmul_reduce_scatter(
  x: jax.Array | tuple[jax.Array, ...],
  w: jax.Array | tuple[jax.Array, ...],
  *,
  axis_name: AxisName,
  scatter_dim: int,
  accum_dtype: jax.typing.DTypeLike = jnp.float32,
  wire_dtype: jax.typing.DTypeLike | None = None,
  **_,
) -> jax.Array:
  """Returns `reduce_scatter(x @ w, scatter_dim)`, the product first."""
  xs, ws = _tuple(x), _tuple(w)
  y = sum(
    jnp.matmul(xi, wi, preferred_element_type=accum_dtype)
    for xi, wi in zip(xs, ws, strict=True)
  ).astype(wire_dtype or xs[0].dtype)
  dim = scatter_dim % y.ndim
  y = lax.psum_scatter(y, axis_name, scatter_dimension=dim, tiled=True)
  return y.astype(xs[0].dtype)
