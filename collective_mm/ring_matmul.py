"""The overlapped loops, without autodiff.

Arrays are `x[..., D]` and `w[D, F]`. Each function works for the two kinds of
dim that can travel the ring:

    rows      dim 0 is gathered or scattered (sequence parallel): chunks are
              products of their own.
    features  the last dim is (the paper's scheme): gathered chunks meet their
              own rows of `w` and add up; scattered ones take its columns.

`transpose` reads every `w` as `w.T` without a copy: the same loops then serve
as each other's gradients. No two dims of `x` are merged, because the compiler
cannot keep a sharding over another mesh axis through that.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm import ring
from collective_mm.mesh import (
  AxisName,
  all_gather,
  empty_like_varying,
  explicit_sharding,
  psum_scatter,
)


@dataclasses.dataclass(frozen=True)
class Route:
  """How one pass over the ring goes; hashable, known at trace time.

  Attributes:
    axis_name: mesh axis, or axes in mesh order, of the ring.
    by_rows: whether rows travel, else features.
    split_dim: the dim of a chunk that is dealt to lanes.
    schedule: "unoverlapped", "async", "one_way" or "two_way".
    chunks: lanes for each direction.
    accum_dtype: local products and sums are accumulated in it.
    wire_dtype: partial sums travel in it.
  """

  axis_name: AxisName
  by_rows: bool
  split_dim: int
  schedule: str
  chunks: int
  accum_dtype: jnp.dtype
  wire_dtype: jnp.dtype | None

  @property
  def rings_gather(self) -> bool:
    """Whether a gather is a ring, not the compiler's own collective."""
    return self.schedule in ("one_way", "two_way") and self.size > 1

  @property
  def rings_scatter(self) -> bool:
    """Whether a reduction is a ring; "async" has no native form of it."""
    return self.schedule != "unoverlapped" and self.size > 1

  @property
  def size(self) -> int:
    """Devices on the ring, `t`."""
    return lax.axis_size(self.axis_name)

  def lanes(
    self, chunk: tuple[int, ...], least: int = 1
  ) -> tuple[ring.Lane, ...]:
    """The lanes that share a chunk of the given shape."""
    return ring.split_lanes(
      chunk[self.split_dim],
      size=self.size,
      two_way=self.schedule != "one_way",
      chunks=self.chunks,
      least=least,
    )

  def start(self, ndim: int, lane: ring.Lane) -> list[int | jax.Array]:
    """Where `lane` begins in a chunk of `ndim` dims."""
    start: list[int | jax.Array] = [0] * ndim
    start[self.split_dim] = lane.start
    return start


def dot(
  x: jax.Array, w: jax.Array, accum_dtype: jnp.dtype, *, transpose: bool = False
) -> jax.Array:
  """`x @ w`, or `x @ w.T`, in the accumulation dtype."""
  contracted = 1 if transpose else 0
  sharding = explicit_sharding(x)
  if sharding is not None:
    sharding = jax.P(*sharding[:-1], explicit_sharding(w)[1 - contracted])
  return lax.dot_general(
    x,
    w,
    (((x.ndim - 1,), (contracted,)), ((), ())),
    preferred_element_type=accum_dtype,
    out_sharding=sharding,
  )


def outer(
  x: jax.Array, dy: jax.Array, w: jax.Array, accum_dtype: jnp.dtype
) -> jax.Array:
  """`x.T @ dy` over all rows: the gradient of `w`, in its dtype."""
  rows = tuple(range(x.ndim - 1))
  dw = lax.dot_general(
    x,
    dy,
    ((rows, rows), ((), ())),
    preferred_element_type=accum_dtype,
    # Rows may be sharded over Explicit axes: the sum over them is asked for.
    out_sharding=explicit_sharding(w),
  )
  return dw.astype(w.dtype)


def gather(x: jax.Array, route: Route) -> jax.Array:
  """The whole of `x`, gathered over rows or features."""
  return gather_matmul(x, (), route, keep=True)[1]


def gather_matmul(
  x: jax.Array,
  ws: tuple[jax.Array, ...],
  route: Route,
  *,
  transpose: bool = False,
  keep: bool = False,
  finish: Callable[[tuple[jax.Array, ...]], Any] = tuple,
) -> tuple[Any, jax.Array | None]:
  """Returns `finish` of the products `gather(x) @ w`; `gather(x)` if `keep`.

  On each ring step the products of the pieces at hand run beside the shift
  that brings the next ones. `finish` takes the products of any run of rows, in
  the dtype of `x`, to a pytree whose leaves begin with the same row dims.
  """
  if route.rings_gather:
    loop = _gather_rows if route.by_rows else _gather_features
    return loop(x, ws, route, transpose, keep, finish)
  dim = 0 if route.by_rows else x.ndim - 1
  full = all_gather(x, route.axis_name, dim)
  ys = [
    dot(full, w, route.accum_dtype, transpose=transpose).astype(x.dtype)
    for w in ws
  ]
  return finish(tuple(ys)), full if keep else None


def _gather_rows(x, ws, route, transpose, keep, finish):
  outs = full = None
  lanes = route.lanes(x.shape)
  for owner, lane, piece in ring.gathered(
    x, lanes, route.axis_name, route.split_dim
  ):
    ys = [
      dot(piece, w, route.accum_dtype, transpose=transpose).astype(x.dtype)
      for w in ws
    ]
    done = finish(tuple(ys))
    if outs is None:
      outs = jax.tree.map(lambda leaf: _chunk_buffer(x, leaf, route), done)
    at = (owner, *route.start(x.ndim - 1, lane))
    outs = jax.tree.map(functools.partial(_write, at=at), outs, done)
    if keep:
      full = _chunk_buffer(x, x, route) if full is None else full
      full = _write(full, piece, at)
  whole = jax.tree.map(lambda out: out.reshape(-1, *out.shape[2:]), outs)
  return whole, full.reshape(-1, *full.shape[2:]) if keep else None


def _chunk_buffer(x: jax.Array, leaf: jax.Array, route: Route) -> jax.Array:
  """Room for `leaf` of every chunk of the gathered `x`.

  The chunks get a leading dim of their own: the compiler then writes each
  product in place, as part of the product.
  """
  shape = (route.size, *x.shape[:-1], *leaf.shape[x.ndim - 1 :])
  return empty_like_varying(shape, leaf.dtype, like=leaf)


def _write(out: jax.Array, piece: jax.Array, at: tuple) -> jax.Array:
  """`out` with `piece` as part of one chunk, from `at` on."""
  at = (*at, *(0,) * (out.ndim - len(at)))
  return lax.dynamic_update_slice(out, piece[None], at)


def _gather_features(x, ws, route, transpose, keep, finish):
  width = x.shape[-1]
  lanes = route.lanes(x.shape)
  sums: dict[ring.Lane, list[jax.Array]] = {}
  full = None
  if keep:
    shape = (*x.shape[:-1], route.size * width)
    full = empty_like_varying(shape, x.dtype, like=x)
  for owner, lane, piece in ring.gathered(
    x, lanes, route.axis_name, route.split_dim
  ):
    products = []
    for w in ws:
      axis = 1 if transpose else 0
      w = lax.dynamic_slice_in_dim(w, owner * width, width, axis=axis)
      products.append(dot(piece, w, route.accum_dtype, transpose=transpose))
    if lane in sums:
      products = [a + b for a, b in zip(sums[lane], products, strict=True)]
    sums[lane] = products
    if keep:
      at = (*route.start(x.ndim - 1, lane), owner * width)
      full = lax.dynamic_update_slice(full, piece, at)
  done = [finish(tuple(y.astype(x.dtype) for y in sums[ln])) for ln in lanes]
  whole = jax.tree.map(lambda *pieces: _join(pieces, lanes, route), *done)
  return whole, full


def matmul_scatter(
  xs: tuple[jax.Array, ...],
  ws: tuple[jax.Array, ...],
  route: Route,
  *,
  transpose: bool = False,
) -> jax.Array:
  """Returns this device's chunk of the sum over devices of `sum_k x_k @ w_k`.

  On each ring step the products for one chunk run beside the shift that brings
  the sum of the devices before.
  """
  dtype = xs[0].dtype
  wire_dtype = route.wire_dtype or dtype
  if not route.rings_scatter:
    y = sum(
      dot(x, w, route.accum_dtype, transpose=transpose)
      for x, w in zip(xs, ws, strict=True)
    ).astype(wire_dtype)
    dim = 0 if route.by_rows else y.ndim - 1
    return psum_scatter(y, route.axis_name, dim).astype(dtype)

  chunk = xs[0].shape
  if route.by_rows:
    chunk = (chunk[0] // route.size, *chunk[1:])
    xs = tuple(x.reshape(route.size, *chunk[:-1], x.shape[-1]) for x in xs)
  width = _columns(ws[0], transpose) // route.size

  def add_share(owner, lane, arrived):
    total = None
    terms = xs
    if arrived is not None:
      # The product waits for the sum that it is added to: the compiler then
      # adds as part of the product, not in a pass over memory of its own.
      arrived, *terms = lax.optimization_barrier((arrived, *xs))
      total = arrived.astype(route.accum_dtype)
    for x, w in zip(terms, ws, strict=True):
      if route.by_rows:
        start = (owner, *route.start(x.ndim - 1, lane))
        piece = list(x.shape)
        piece[0], piece[route.split_dim + 1] = 1, lane.stop - lane.start
        x = lax.dynamic_slice(x, start, piece)[0]
      else:
        axis = 0 if transpose else 1
        w = lax.dynamic_slice_in_dim(w, owner * width, width, axis=axis)
        x = lax.slice_in_dim(x, lane.start, lane.stop, axis=route.split_dim)
      product = dot(x, w, route.accum_dtype, transpose=transpose)
      total = product if total is None else total + product
    return total

  # A sum waits for the one that arrives: what hides it is another lane, which
  # a two-way ring of two devices has not of itself.
  lanes = route.lanes(chunk, least=1 if route.schedule == "one_way" else 2)
  sums = ring.scattered(
    add_share, lanes, route.axis_name, wire_dtype=wire_dtype
  )
  return _join([s.astype(dtype) for s in sums], lanes, route)


def _columns(w: jax.Array, transpose: bool) -> int:
  return w.shape[0] if transpose else w.shape[1]


def _join(pieces: Sequence[jax.Array], lanes, route: Route) -> jax.Array:
  """The lanes' pieces side by side, each written where its product ends."""
  if len(pieces) == 1:
    return pieces[0]
  shape = list(pieces[0].shape)
  shape[route.split_dim] = lanes[-1].stop
  joined = empty_like_varying(tuple(shape), pieces[0].dtype, like=pieces[0])
  for piece, lane in zip(pieces, lanes, strict=True):
    at = route.start(piece.ndim, lane)
    joined = lax.dynamic_update_slice(joined, piece, at)
  return joined
