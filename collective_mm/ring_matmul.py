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

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm import ring
from collective_mm.mesh import AxisName, empty_like_varying


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
  def native(self) -> bool:
    """Whether the compiler's own collectives are used, not a ring."""
    return self.schedule in ("unoverlapped", "async") or self.size == 1

  @property
  def size(self) -> int:
    """Devices on the ring, `t`."""
    return lax.axis_size(self.axis_name)

  def lanes(self, chunk: tuple[int, ...]) -> tuple[ring.Lane, ...]:
    """The lanes that share a chunk of the given shape."""
    return ring.split_lanes(
      chunk[self.split_dim],
      size=self.size,
      two_way=self.schedule == "two_way",
      chunks=self.chunks,
    )

  def start(self, ndim: int, lane: ring.Lane) -> list[int | jax.Array]:
    """Where `lane` begins in a chunk of `ndim` dims."""
    start: list[int | jax.Array] = [0] * ndim
    start[self.split_dim] = lane.start
    return start


def dot(
  x: jax.Array, w: jax.Array, route: Route, *, transpose: bool = False
) -> jax.Array:
  """`x @ w`, or `x @ w.T`, in the accumulation dtype."""
  dims = (((x.ndim - 1,), (1 if transpose else 0,)), ((), ()))
  return lax.dot_general(x, w, dims, preferred_element_type=route.accum_dtype)


def outer(x: jax.Array, dy: jax.Array, route: Route) -> jax.Array:
  """`x.T @ dy` over all rows, in the accumulation dtype, a gradient of `w`."""
  rows = tuple(range(x.ndim - 1))
  dims = ((rows, rows), ((), ()))
  return lax.dot_general(x, dy, dims, preferred_element_type=route.accum_dtype)


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
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
  """Returns `gather(x) @ w` for each `w`, and `gather(x)` itself if `keep`.

  On each ring step the products of the pieces at hand run beside the shift
  that brings the next ones.
  """
  if not route.native:
    loop = _gather_rows if route.by_rows else _gather_features
    return loop(x, ws, route, transpose=transpose, keep=keep)
  dim = 0 if route.by_rows else x.ndim - 1
  full = lax.all_gather(x, route.axis_name, axis=dim, tiled=True)
  ys = [dot(full, w, route, transpose=transpose).astype(x.dtype) for w in ws]
  return tuple(ys), full if keep else None


def _gather_rows(x, ws, route, *, transpose, keep):
  # The chunks get a leading dim of their own: the compiler then writes each
  # product in place, as part of the product.
  def empty(width):
    shape = (route.size, *x.shape[:-1], width)
    return empty_like_varying(shape, x.dtype, like=x)

  outs = [empty(_columns(w, transpose)) for w in ws]
  full = empty(x.shape[-1]) if keep else None
  lanes = route.lanes(x.shape)
  for owner, lane, piece in ring.gathered(
    x, lanes, route.axis_name, route.split_dim
  ):
    at = (owner, *route.start(x.ndim, lane))
    for k, w in enumerate(ws):
      product = dot(piece, w, route, transpose=transpose).astype(x.dtype)
      outs[k] = lax.dynamic_update_slice(outs[k], product[None], at)
    if keep:
      full = lax.dynamic_update_slice(full, piece[None], at)
  ys = tuple(out.reshape(-1, *out.shape[2:]) for out in outs)
  return ys, full.reshape(-1, *full.shape[2:]) if keep else None


def _gather_features(x, ws, route, *, transpose, keep):
  width = x.shape[-1]
  lanes = route.lanes(x.shape)
  sums: dict[tuple[int, ring.Lane], jax.Array] = {}
  full = None
  if keep:
    shape = (*x.shape[:-1], route.size * width)
    full = empty_like_varying(shape, x.dtype, like=x)
  for owner, lane, piece in ring.gathered(
    x, lanes, route.axis_name, route.split_dim
  ):
    for k, w in enumerate(ws):
      w = lax.dynamic_slice_in_dim(
        w, owner * width, width, axis=1 if transpose else 0
      )
      product = dot(piece, w, route, transpose=transpose)
      if (k, lane) in sums:
        product = sums[k, lane] + product
      sums[k, lane] = product
    if keep:
      at = (*route.start(x.ndim, lane)[:-1], owner * width)
      full = lax.dynamic_update_slice(full, piece, at)
  ys = tuple(
    _join([sums[k, lane].astype(x.dtype) for lane in lanes], route)
    for k in range(len(ws))
  )
  return ys, full


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
  if route.native:
    y = sum(
      dot(x, w, route, transpose=transpose) for x, w in zip(xs, ws, strict=True)
    ).astype(wire_dtype)
    dim = 0 if route.by_rows else y.ndim - 1
    y = lax.psum_scatter(y, route.axis_name, scatter_dimension=dim, tiled=True)
    return y.astype(dtype)

  chunk = xs[0].shape
  if route.by_rows:
    chunk = (chunk[0] // route.size, *chunk[1:])
    xs = tuple(x.reshape(route.size, *chunk[:-1], x.shape[-1]) for x in xs)
  width = _columns(ws[0], transpose) // route.size

  def share(owner: jax.Array, lane: ring.Lane) -> jax.Array:
    total = None
    for x, w in zip(xs, ws, strict=True):
      if route.by_rows:
        x = lax.dynamic_index_in_dim(x, owner, keepdims=False)
      else:
        axis = 0 if transpose else 1
        w = lax.dynamic_slice_in_dim(w, owner * width, width, axis=axis)
      x = lax.slice_in_dim(x, lane.start, lane.stop, axis=route.split_dim)
      product = dot(x, w, route, transpose=transpose)
      total = product if total is None else total + product
    return total

  sums = ring.scattered(
    share, route.lanes(chunk), route.axis_name, wire_dtype=wire_dtype
  )
  return _join([s.astype(dtype) for s in sums], route)


def _columns(w: jax.Array, transpose: bool) -> int:
  return w.shape[0] if transpose else w.shape[1]


def _join(pieces: list[jax.Array], route: Route) -> jax.Array:
  """The lanes' pieces side by side."""
  return (
    pieces[0]
    if len(pieces) == 1
    else jnp.concatenate(pieces, axis=route.split_dim)
  )
