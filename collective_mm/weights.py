"""Gathers one layer's weights over an axis, and reduces their gradients.

Each way has two backends: the compiler's own collective, and a ring of
permutes. A weight has one dim that is cut over the axis, or none: then every
device holds it whole and nothing is sent. What is smaller than `SMALL` shares
one send with all that is small and of its dtype.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm import ring
from collective_mm.mesh import AxisName, empty_like_varying

# Bytes of a shard. On the wire it takes about as long as the latency of a hop,
# some 5 us at 45 GB/s.
SMALL = 1 << 18
# The longest ring of which each share goes straight to its owner. A link then
# carries size / 8 of the whole in the dtype of the gradients; passed on it is
# 1 / 2 in the dtype of sums, which have to be read and written at every hop.
EXCHANGE = 8


@dataclasses.dataclass(frozen=True)
class Wire:
  """How the weights of a layer travel; hashable, known at trace time.

  Attributes:
    axis_name: mesh axis, or axes in mesh order, that cuts the weights.
    dims: of each weight the dim that is cut, None for one that lies whole.
    gather_dtype: floating weights are rounded to it before they travel; None
      leaves them as they are.
    reduce_dtype: gradients travel and are summed in it.
    gather_by: "native" or "ring".
    reduce_by: "native" or "ring".
    parts: the rings that the axis is made of, outermost first.
  """

  axis_name: AxisName
  dims: tuple[int | None, ...]
  gather_dtype: jnp.dtype | None
  reduce_dtype: jnp.dtype
  gather_by: str
  reduce_by: str
  parts: tuple[ring.Part, ...]

  def gather(self, shards: Sequence[jax.Array]) -> list[jax.Array]:
    """The whole weights, from this device's shards of them."""
    whole = [
      shard if dim is None else self._rounded(shard)
      for shard, dim in zip(shards, self.dims, strict=True)
    ]
    # Without the barrier the compiler may send first and round then.
    whole = list(lax.optimization_barrier(tuple(whole)))
    rows = {
      i: jnp.moveaxis(whole[i], dim, 0)
      for i, dim in enumerate(self.dims)
      if dim is not None
    }
    for group in _groups(rows):
      if len(group) == 1:
        gathered = [self._gather(rows[i]) for i in group]
      else:
        flat = jnp.concatenate([rows[i].reshape(1, -1) for i in group], axis=1)
        gathered = _split(self._gather(flat), [rows[i] for i in group])
      for i, y in zip(group, gathered, strict=True):
        y = y.reshape(-1, *rows[i].shape[1:])
        whole[i] = jnp.moveaxis(y, 0, self.dims[i])
    return whole

  def reduce(self, grads: Sequence[jax.Array | None]) -> list:
    """This device's shards of the gradients, summed over devices.

    The gradient of a weight that lies whole is not summed here; None stays.
    """
    size = lax.axis_size(self.axis_name)
    reduced = list(grads)
    chunks = {}
    for i, dim in enumerate(self.dims):
      if dim is not None and grads[i] is not None:
        g = jnp.moveaxis(grads[i], dim, 0)
        chunks[i] = g.reshape(size, g.shape[0] // size, *g.shape[1:])
    for group in _groups({i: c[0] for i, c in chunks.items()}):
      if len(group) == 1:
        sums = [self._reduce(chunks[i]) for i in group]
      else:
        flat = [chunks[i].reshape(size, 1, -1) for i in group]
        total = self._reduce(jnp.concatenate(flat, axis=2))
        sums = _split(total, [chunks[i][0] for i in group])
      for i, y in zip(group, sums, strict=True):
        y = y.reshape(chunks[i].shape[1:])
        reduced[i] = jnp.moveaxis(y, 0, self.dims[i])
    return reduced

  def _rounded(self, x: jax.Array) -> jax.Array:
    if self.gather_dtype is None or not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    return x.astype(self.gather_dtype)

  def _gather(self, x: jax.Array) -> jax.Array:
    """x[rows, ...] of all devices, [t * rows, ...]."""
    if self.gather_by == "native":
      return lax.all_gather(x, self.axis_name, axis=0, tiled=True)
    shape = x.shape[1:]
    x = x.reshape(x.shape[0], -1)
    for part in reversed(self.parts):
      dim = _lane_dim(x)
      lanes = _lanes(x.shape[dim], part)
      whole = empty_like_varying((part.size, *x.shape), x.dtype, like=x)
      for owner, lane, piece in ring.gathered(
        x, lanes, self.axis_name, dim, part
      ):
        at = [owner, 0, 0]
        at[dim + 1] = lane.start
        whole = lax.dynamic_update_slice(whole, piece[None], at)
      x = whole.reshape(-1, x.shape[1])
    return x.reshape(-1, *shape)

  def _reduce(self, chunks: jax.Array) -> jax.Array:
    """This device's chunk of the sum of all devices' chunks[t, rows, ...]."""
    if self.reduce_by == "native":
      chunks = chunks.astype(self.reduce_dtype)
      return lax.psum_scatter(chunks, self.axis_name, scatter_dimension=0)
    shape = chunks.shape[1:]
    x = chunks.reshape(chunks.shape[0] * shape[0], -1)
    for part in self.parts:
      x = x.reshape(part.size, x.shape[0] // part.size, x.shape[1])
      by = _exchanged if part.size <= EXCHANGE else _passed_on
      x = by(x, self.axis_name, part, self.reduce_dtype)
    return x.reshape(shape)


def _exchanged(x, axis_name, part, dtype):
  """Every share of x[f, rows, columns] goes straight to its owner."""
  index = part.index(axis_name)
  total = None
  for distance in range(part.size):
    to = (index + distance) % part.size
    share = lax.dynamic_index_in_dim(x, to, keepdims=False)
    if distance:
      share = ring.shift(share, axis_name, distance, part)
    share = share.astype(dtype)
    total = share if total is None else total + share
  return total


def _passed_on(x, axis_name, part, dtype):
  """Sums of x[f, rows, columns] go round the ring, growing on the way."""
  dim = _lane_dim(x[0])
  lanes = _lanes(x.shape[dim + 1], part)

  def add_share(owner, lane, arrived):
    start, size = [owner, 0, 0], [1, *x.shape[1:]]
    start[dim + 1], size[dim + 1] = lane.start, lane.stop - lane.start
    share = lax.dynamic_slice(x, start, size)[0].astype(dtype)
    return share if arrived is None else share + arrived

  sums = ring.scattered(
    add_share, lanes, axis_name, wire_dtype=dtype, part=part
  )
  return jnp.concatenate(sums, axis=dim)


def _lane_dim(x: jax.Array) -> int:
  """The dim of x[rows, columns] that is cut into lanes."""
  return 0 if x.shape[0] > 1 else 1


def _lanes(rows: int, part: ring.Part) -> tuple[ring.Lane, ...]:
  return ring.split_lanes(rows, size=part.size, two_way=True, chunks=1)


def _groups(rows: dict[int, jax.Array]) -> list[list[int]]:
  """Which shards travel together: small ones of a dtype, large ones alone."""
  groups = collections.defaultdict(list)
  for i, x in rows.items():
    groups[str(x.dtype) if x.nbytes < SMALL else i].append(i)
  return list(groups.values())


def _split(joined: jax.Array, like: list[jax.Array]) -> list[jax.Array]:
  """`joined`, cut in its last dim to pieces with as many elements as `like`."""
  ends, end = [], 0
  for x in like[:-1]:
    end += math.prod(x.shape)
    ends.append(end)
  return jnp.split(joined, ends, axis=-1)
