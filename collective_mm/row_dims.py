"""Row dims of an array merged into one round an op, where that is free."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm.mesh import axis_size


@dataclasses.dataclass(frozen=True)
class Rows:
  """Merges the row dims of an op into one, where that is free.

  Of a chunk `[B, S/t, D]` come rows in its own order; of what is gathered from
  such chunks rows in the order `[t, B, S/t]`, as chunk stands behind chunk.
  Between a column and a row layer one undoes the other, for nothing.

  Attributes:
    shape: the row dims of a chunk, or of the whole where features travel; None
      where nothing is merged.
    dim: the dim that travels, of what is merged.
    at: the row dim that travels; None for features.
    count: chunks, `t`.
  """

  shape: tuple[int, ...] | None
  dim: int
  at: int | None = None
  count: int = 1

  @classmethod
  def of(cls, x: jax.Array, dim: int, axis_name: str, nested: bool) -> "Rows":
    """For an `x` of one device, whose dim `dim` travels."""
    mesh = jax.sharding.get_abstract_mesh()
    left = {mesh.shape[n] for n in set(mesh.shape) - {*mesh.manual_axes}}
    if nested or x.ndim < 3 or left - {1} or not -x.ndim <= dim < x.ndim:
      return cls(None, dim)
    if dim % x.ndim == x.ndim - 1:
      return cls(x.shape[:-1], -1)
    return cls(x.shape[:-1], 0, dim % x.ndim, axis_size(axis_name))

  def merge_chunk(self, x: jax.Array) -> jax.Array:
    """`[B, S/t, D]` to `[rows, D]`; `shape` is that of a chunk."""
    if self.shape is None:
      return x
    # Backward the compiler would else widen the gradient before it splits the
    # rows, in a pass of its own.
    return lax.optimization_barrier(x).reshape(-1, x.shape[-1])

  def split_whole(self, y: jax.Array) -> jax.Array:
    """`[t * rows, F]` to `[B, S, F]`; `shape` is that of a chunk."""
    if self.shape is None:
      return y
    if self.at is None:
      return y.reshape(*self.shape, y.shape[-1])
    y = y.reshape(self.count, *self.shape, y.shape[-1])
    return _join_dims(jnp.moveaxis(y, 0, self.at), self.at)

  def merge_whole(self, x: jax.Array) -> jax.Array:
    """`[B, S, F]` to `[t * rows, F]`; `shape` is that of the whole."""
    if self.shape is None:
      return x
    if self.at is not None:
      shape = list(x.shape)
      shape[self.at : self.at + 1] = self.count, -1
      x = jnp.moveaxis(x.reshape(shape), self.at, 0)
    return x.reshape(-1, x.shape[-1])

  def split_chunk(self, y: jax.Array) -> jax.Array:
    """`[rows, D]` to `[B, S/t, D]`; `shape` is that of the whole."""
    if self.shape is None:
      return y
    shape = list(self.shape)
    if self.at is not None:
      shape[self.at] //= self.count
    return y.reshape(*shape, y.shape[-1])


def _join_dims(y: jax.Array, at: int) -> jax.Array:
  """Dims `at` and the next as one."""
  return y.reshape(*y.shape[:at], -1, *y.shape[at + 2 :])
