"""Gathers one layer's weights over an axis, and reduces their gradients.

Each way has two backends: the compiler's own collective, and rings of permutes
along the dims of the torus, one after the other. A weight has one dim that is
cut over the axis, or none: then every device holds it whole and nothing is
sent. Small weights of a dtype share one send.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm import float_trees, ring
from collective_mm.mesh import (
  AxisName,
  all_gather,
  empty_like_varying,
  psum_scatter,
  varying_axes,
)

# Bytes of a shard, a tenth of the latency of a hop at 45 GB/s. To put together
# what is larger, and to take it apart again, costs more than it saves.
SMALL = 1 << 14
# The longest ring of which each share goes straight to its owner. A link then
# carries size / 8 of the whole in the dtype of the gradients; passed on it is
# 1 / 2 in the dtype of sums, each of which waits for the one before, and which
# have to be read and written at every hop.
EXCHANGE = 16


def rounded(x: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
  """`x` in `dtype`, if it is floating and there is one."""
  if dtype is None or not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  return x.astype(dtype)


def _rounded_by_fusion(x: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
  """`rounded`, as a fusion of the TPU compiler, which a cast alone is not.

  On v5e only fusions carry gathers. The step before the cast changes no value
  where both dtypes have as many bits of exponent.
  """
  if rounded(x, dtype) is x:
    return x
  wide, narrow = jnp.finfo(x.dtype), jnp.finfo(dtype)
  if wide.nexp == narrow.nexp:
    x = lax.reduce_precision(x, narrow.nexp, narrow.nmant)
  return rounded(x, dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wire:
  """How the weights of a layer travel; known at trace time.

  Attributes:
    axis_name: mesh axis, or axes in mesh order, that cuts the weights.
    shapes: of each shard of a layer.
    dims: of each weight the dim that is cut, None for one that lies whole.
    groups: the cut weights that travel together.
    reduced_groups: those of them that have gradients.
    gather_dtype: floating weights are rounded to it before they travel; None
      leaves them as they are.
    reduce_dtype: gradients are summed in it.
    gather_by: "native" or "ring".
    reduce_by: "native" or "ring".
    parts: the rings that the axis is made of, outermost first.
  """

  axis_name: AxisName
  shapes: tuple[tuple[int, ...], ...]
  dims: tuple[int | None, ...]
  groups: tuple[tuple[int, ...], ...]
  reduced_groups: tuple[tuple[int, ...], ...]
  gather_dtype: jnp.dtype | None
  reduce_dtype: jnp.dtype
  gather_by: str
  reduce_by: str
  parts: tuple[ring.Part, ...]

  def gather(self, shards: Sequence[jax.Array]) -> list[jax.Array]:
    """The whole weights, from this device's shards of them."""
    # Without the barrier the compiler may send first and round then.
    whole = list(lax.optimization_barrier(tuple(self._rounded(shards))))
    nbytes = self._nbytes(whole)
    order = sorted(self.groups, key=nbytes.get, reverse=True)
    # One travels at a time: the large ones first, as the compiler finds the
    # least to hide the last ones behind (docs/prefetch.md). The largest go in
    # turns, smaller ones of a size as it likes.
    for n, group in enumerate(order):
      rows = [whole[i] for i in group]
      larger = [g for g in order[:n] if nbytes[g] > nbytes[group]]
      for i, *_ in (larger or order[:n])[-1:]:
        rows, [whole[i]] = float_trees.barrier((rows, [whole[i]]))
      for i, y in zip(group, self._gather_group(group, rows), strict=True):
        whole[i] = y
    return whole

  def gather_first(
    self, stacked: Sequence[jax.Array]
  ) -> tuple[list[jax.Array], list[jax.Array]]:
    """The first layer's whole weights, and all shards as they travel.

    Nothing has been computed yet that these gathers could hide behind but the
    rounding of the stacks: one is rounded beside each.
    """
    first = [lax.index_in_dim(x, 0, keepdims=False) for x in stacked]
    # Without the barrier the compiler cuts them from the rounded stacks.
    first, stacked = float_trees.barrier((first, list(stacked)))
    whole = list(lax.optimization_barrier(tuple(self._rounded(first))))
    sent = self._rounded(stacked, _rounded_by_fusion)
    nbytes, last = self._nbytes(whole), ()
    for group in sorted(self.groups, key=nbytes.get, reverse=True):
      tied = [[x[i] for i in last] for x in (whole, sent)]
      rows, *tied = float_trees.barrier(([whole[i] for i in group], *tied))
      for i, *of_leaf in zip(last, *tied, strict=True):
        whole[i], sent[i] = of_leaf
      for i, y in zip(group, self._gather_group(group, rows), strict=True):
        whole[i] = y
      last = group
    return whole, sent

  @property
  def stages(self) -> int:
    """How many sends a reduction is, one after the other."""
    return 1 if self.reduce_by == "native" else max(len(self.parts), 1)

  def pack(self, grads: Sequence[jax.Array | None]) -> list[jax.Array]:
    """What goes into the first stage: one array[t * rows, ...] a group.

    Gradients of weights that lie whole are not summed here and do not go in.
    """
    packed = []
    for group in self.reduced_groups:
      rows = [jnp.moveaxis(grads[i], self.dims[i], 0) for i in group]
      if len(group) > 1:
        size = lax.axis_size(self.axis_name)
        rows = [jnp.concatenate([x.reshape(size, -1) for x in rows], axis=1)]
      packed += rows
    return packed

  def send(self, number: int, packed: list[jax.Array]) -> list[list]:
    """What comes of `packed` along one ring: the shares of this device."""
    if self.reduce_by == "native":
      return [
        [psum_scatter(x.astype(self.reduce_dtype), self.axis_name, 0)]
        for x in packed
      ]
    if not self.parts:
      return [[] for _ in packed]
    (part, outer), dtype = self._stage(number), self.reduce_dtype
    arrived = []
    sent = {1: 0, -1: 0}  # bytes that go half way round, by direction
    for x in packed:
      x = _by_owner(x, part, outer)
      if part.size <= EXCHANGE:
        way = min(sent, key=sent.get)
        sent[way] += x.nbytes
        arrived.append(_exchanged(x, self.axis_name, part, way))
      else:
        arrived.append([_passed_on(x, self.axis_name, part, dtype)])
    return arrived

  def add(
    self, number: int, packed: list[jax.Array], arrived: list[list]
  ) -> list[jax.Array]:
    """The sums over one ring's devices; the last stage leaves our shards."""
    dtype = self.reduce_dtype
    if self.reduce_by == "native":
      return [y for (y,) in arrived]
    if not self.parts:
      return [x.astype(dtype) for x in packed]
    part, outer = self._stage(number)
    if part.size > EXCHANGE:
      return [y for (y,) in arrived]
    index = part.index(self.axis_name)
    sums = []
    for x, shares in zip(packed, arrived, strict=True):
      x = _by_owner(x, part, outer)
      total = lax.dynamic_index_in_dim(x, index, 1, keepdims=False)
      total = total.astype(dtype)
      for share in shares:
        total = total + share.astype(dtype)
      sums.append(total.reshape(-1, *total.shape[2:]))
    return sums

  def _stage(self, number: int) -> tuple[ring.Part, int]:
    """The ring of a stage, and over how many owners outside it sums are open.

    What is sent gets less from stage to stage: the short ways go first. Of
    rings of neighbours the outermost do, whose shares lie in one piece; of
    others the innermost, as the dims of a torus then take turns.
    """
    order = sorted(
      self.parts,
      key=lambda p: (p.hops, -p.stride if p.hops == 1 else p.stride),
    )
    part = order[number]
    later = (p.size for p in order[number:] if p.stride > part.stride)
    return part, math.prod(later)

  def unpack(
    self, packed: list[jax.Array], grads: Sequence[jax.Array | None]
  ) -> list[jax.Array | None]:
    """This device's shards of the sums; the rest is that of `grads`."""
    reduced = list(grads)
    for group, y in zip(self.reduced_groups, packed, strict=True):
      shapes = [self._rows_first(i) for i in group]
      pieces = _split(y, shapes) if len(group) > 1 else [y]
      for i, piece, shape in zip(group, pieces, shapes, strict=True):
        reduced[i] = jnp.moveaxis(piece.reshape(shape), 0, self.dims[i])
    return reduced

  def _rows_first(self, i: int) -> tuple[int, ...]:
    shape = list(self.shapes[i])
    return (shape.pop(self.dims[i]), *shape)

  def _rounded(
    self, shards: Sequence[jax.Array], by: Callable = rounded
  ) -> list[jax.Array]:
    """What travels of them, and what lies whole as it is."""
    return [
      x if dim is None else by(x, self.gather_dtype)
      for x, dim in zip(shards, self.dims, strict=True)
    ]

  def _nbytes(self, shards: Sequence[jax.Array]) -> dict[tuple[int, ...], int]:
    return {g: sum(shards[i].nbytes for i in g) for g in self.groups}

  def _gather_group(
    self, group: tuple[int, ...], shards: list[jax.Array]
  ) -> list[jax.Array]:
    """The whole weights of a group, which travel in one gather."""
    dims = [self.dims[i] for i in group]
    rows = [jnp.moveaxis(x, d, 0) for x, d in zip(shards, dims, strict=True)]
    if len(group) == 1:
      whole = [self._gather(rows[0])]
    else:
      flat = jnp.concatenate([x.reshape(1, -1) for x in rows], axis=1)
      whole = _split(self._gather(flat), [x.shape for x in rows])
      whole = [
        y.reshape(-1, *x.shape[1:]) for y, x in zip(whole, rows, strict=True)
      ]
    return [jnp.moveaxis(y, 0, d) for y, d in zip(whole, dims, strict=True)]

  def _gather(self, x: jax.Array) -> jax.Array:
    """x[rows, ...] of all devices, [t * rows, ...]."""
    if self.gather_by == "native":
      return all_gather(x, self.axis_name, 0)
    for part in reversed(self.parts):
      dim = _lane_dim(x)
      lanes = _lanes(x.shape[dim], part)
      whole = empty_like_varying((part.size, *x.shape), x.dtype, like=x)
      for owner, lane, piece in ring.gathered(
        x, lanes, self.axis_name, dim, part
      ):
        at = [owner, *(0 for _ in x.shape)]
        at[dim + 1] = lane.start
        whole = lax.dynamic_update_slice(whole, piece[None], at)
      x = whole.reshape(-1, *x.shape[1:])
    return x


def group_small(
  stacked: Sequence[jax.Array], dims: Sequence[int | None], gather_dtype
) -> tuple[tuple[int, ...], ...]:
  """Which weights travel together: small ones of a dtype, large ones alone.

  Those of a group also vary over the same axes.
  """
  groups = collections.defaultdict(list)
  for i, (x, dim) in enumerate(zip(stacked, dims, strict=True)):
    if dim is not None:
      sent = jax.eval_shape(lambda x: rounded(x, gather_dtype), x)
      nbytes = math.prod(x.shape[1:]) * sent.dtype.itemsize
      alike = (str(sent.dtype), varying_axes(x)) if nbytes < SMALL else i
      groups[alike].append(i)
  return tuple(tuple(group) for group in groups.values())


def gathered_size(
  stacked: Sequence[jax.Array],
  dims: Sequence[int | None],
  gather_dtype: jnp.dtype | None,
  axis_name: AxisName,
) -> tuple[int, int]:
  """Numbers and bytes of what is gathered for one layer."""
  count = nbytes = 0
  for x, dim in zip(stacked, dims, strict=True):
    if dim is not None:
      sent = jax.eval_shape(lambda x: rounded(x, gather_dtype), x)
      size = math.prod(x.shape[1:]) * lax.axis_size(axis_name)
      count, nbytes = count + size, nbytes + size * sent.dtype.itemsize
  return count, nbytes


def _by_owner(x, part, outer):
  """x[outer * f * rows, ...] as [outer, f, rows, ...]."""
  return x.reshape(outer, part.size, -1, *x.shape[1:])


def _exchanged(x, axis_name, part, way):
  """The shares of x[outer, f, rows, ...] that come straight from each device.

  In a ring of four the one that goes half way round goes `way`, in two sends:
  which way one send would take is not ours to say, and if all go the same, that
  direction carries three times what the other does. Larger rings have less to
  gain, and lose more by another send (docs/prefetch.md).
  """
  index = part.index(axis_name)
  arrived = []
  for distance in range(1, part.size):
    to = lax.rem(index + distance, part.size)
    share = lax.dynamic_index_in_dim(x, to, 1, keepdims=False)
    hops = (distance,)
    if part.size == 4 and distance == 2:
      hops = (way, way)
    for hop in hops:
      share = ring.shift(share, axis_name, hop, part)
    arrived.append(share)
  return arrived


def _passed_on(x, axis_name, part, dtype):
  """Sums of x[outer, f, rows, ...] go round the ring, growing on the way."""
  x = jnp.moveaxis(x, 1, 0)
  x = x.reshape(part.size, -1, *x.shape[3:])
  dim = _lane_dim(x[0])
  lanes = _lanes(x.shape[dim + 1], part)

  def add_share(owner, lane, arrived):
    start, size = [owner, *(0 for _ in x.shape[1:])], [1, *x.shape[1:]]
    start[dim + 1], size[dim + 1] = lane.start, lane.stop - lane.start
    share = lax.dynamic_slice(x, start, size)[0].astype(dtype)
    return share if arrived is None else share + arrived

  sums = ring.scattered(
    add_share, lanes, axis_name, wire_dtype=dtype, part=part
  )
  return jnp.concatenate(sums, axis=dim)


def _lane_dim(x: jax.Array) -> int:
  """The dim of x[rows, ...] that is cut into lanes."""
  return 0 if x.shape[0] > 1 or x.ndim == 1 else 1


def _lanes(rows: int, part: ring.Part) -> tuple[ring.Lane, ...]:
  return ring.split_lanes(rows, size=part.size, two_way=True, chunks=1)


def _split(joined: jax.Array, shapes: Sequence[tuple]) -> list[jax.Array]:
  """`joined`, cut in its last dim to pieces with the elements of `shapes`."""
  ends, end = [], 0
  for shape in shapes[:-1]:
    end += math.prod(shape)
    ends.append(end)
  return jnp.split(joined, ends, axis=-1)
