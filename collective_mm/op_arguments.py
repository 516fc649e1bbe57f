"""The public edge of the ops: what arguments must be, and what they mean."""

import jax
import jax.numpy as jnp
import numpy as np

from collective_mm import gate
from collective_mm.mesh import AxisName, axis_size, device_kind, explicit_axes
from collective_mm.pass_times import sums_everywhere
from collective_mm.ring_matmul import Route

SCHEDULES = ("auto", "unoverlapped", "async", "one_way", "two_way")


def pad(x: jax.Array, dim: int, size: int) -> jax.Array:
  """`x` with zeros after its end in `dim`, up to `size`."""
  missing = size - x.shape[dim]
  if not missing:
    return x
  return jnp.pad(x, [(0, missing if i == dim else 0) for i in range(x.ndim)])


def arrays(name: str, argument) -> tuple[jax.Array, ...]:
  """The array, or the tuple of them, that an argument must be, as a tuple."""
  given = argument if isinstance(argument, tuple) else (argument,)
  for array in given:
    if not isinstance(array, jax.Array | np.ndarray):
      raise ValueError(
        f"{name} must be an array or a tuple of arrays, got "
        f"{'a tuple with ' * (given is argument)}{type(array).__name__}"
      )
  return given


def pairs(x, w) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
  """The tuples `xs` and `ws` of which an op sums the products."""
  xs, ws = arrays("x", x), arrays("w", w)
  if len(xs) != len(ws) or not xs:
    raise ValueError(
      f"x and w must be tuples of one length, not 0, got {len(xs)} and "
      f"{len(ws)}"
    )
  if not all(xi.ndim for xi in xs):
    raise ValueError("x must have features as its last dim, got x.shape=()")
  return xs, ws


def check_types(xs: tuple, ws: tuple) -> None:
  """Refuses dtypes that the output, which has that of `x`, cannot hold."""
  for x, w in zip(xs, ws, strict=True):
    if not x.size or not w.size:
      raise ValueError(
        f"x and w must not be empty, got x.shape={x.shape}, w.shape={w.shape}"
      )
    w_is_integer = jnp.issubdtype(w.dtype, jnp.integer)
    w_is_real = jnp.issubdtype(w.dtype, jnp.floating) or w_is_integer
    if not jnp.issubdtype(x.dtype, jnp.floating) or not w_is_real:
      raise ValueError(
        f"x must have a floating dtype and w a floating or integer one, got "
        f"x.dtype={x.dtype}, w.dtype={w.dtype}"
      )


def check_explicit(
  x: jax.Array, w: jax.Array, *, x_travels: int | None, w_travels: int | None
) -> None:
  """Refuses Explicit axes where only a reshard, which is not asked for, helps.

  Args:
    x, w: the two factors of a product.
    x_travels, w_travels: the dim that the ring gathers or scatters, if it is
      one of theirs.
  """
  for name, array, *whole in (
    ("x", x, x.ndim - 1, x_travels),
    ("w", w, 0, w_travels),
  ):
    if explicit_axes(array).keys() & whole:
      raise ValueError(
        f"Explicit mesh axes must not shard dims of {name} that are contracted "
        f"or travel, {sorted({d for d in whole if d is not None})}: use "
        f"jax.reshard before, got {name}: {jax.typeof(array)}"
      )
  rows, columns = (
    frozenset().union(*explicit_axes(array).values()) for array in (x, w)
  )
  if rows & columns:
    raise ValueError(
      f"Explicit mesh axes must not shard rows of x and columns of w alike: "
      f"use jax.reshard before, got x: {jax.typeof(x)}, w: {jax.typeof(w)}"
    )


def find_dim(name: str, dim: int, of: str, x: jax.Array) -> int:
  """`dim` counted from the front, checked."""
  if not _is_whole_number(dim) or x.ndim < 1 or not -x.ndim <= dim < x.ndim:
    raise ValueError(
      f"{name} must be a dim of {of}, from {-x.ndim} to {x.ndim - 1}, got "
      f"{dim!r}"
    )
  return dim % x.ndim


def find_dtype(name: str, dtype: jax.typing.DTypeLike) -> jnp.dtype:
  """The dtype in which an op computes, which must be floating."""
  try:
    found = None if dtype is None else jnp.dtype(dtype)
  except TypeError:
    found = None
  if found is None or not jnp.issubdtype(found, jnp.floating):
    raise ValueError(f"{name} must be a floating dtype, got {dtype!r}")
  return found


def check_chunks(chunks: int) -> None:
  """Refuses what is not a number of pieces."""
  if not _is_whole_number(chunks) or chunks < 1:
    raise ValueError(f"chunks must be a whole number from 1, got {chunks!r}")


def _is_whole_number(n) -> bool:
  return isinstance(n, int | np.integer) and not isinstance(n, bool)


def routes(
  op: gate.Op,
  *,
  rows: int,
  inner: int,
  outer: int,
  like: jax.Array,
  dim: int,
  axis_name: AxisName,
  schedule: str | tuple[str, str],
  chunks: int,
  accum_dtype: jax.typing.DTypeLike,
  wire_dtype: jax.typing.DTypeLike | None,
) -> tuple[Route, Route]:
  """The forward and the backward route of an op's options, checked.

  Args:
    op: the op, whose product on one device is `[rows, inner] @ [inner, outer]`.
    rows, inner, outer: as in `gate.choose`.
    like: an `x` of the op.
    dim: the dim that travels, counted from the front.
    axis_name, schedule, chunks, accum_dtype, wire_dtype: as in the ops.
  """
  pair = schedule if isinstance(schedule, tuple) else (schedule, schedule)
  if len(pair) != 2 or any(s not in SCHEDULES for s in pair):
    raise ValueError(
      f"schedule must be one of {', '.join(SCHEDULES)}, or a pair (forward, "
      f"backward) of them, got {schedule!r}"
    )
  check_chunks(chunks)
  accum_dtype = find_dtype("accum_dtype", accum_dtype)
  if wire_dtype is not None:
    wire_dtype = find_dtype("wire_dtype", wire_dtype)
  by_rows = dim != like.ndim - 1

  def chosen(i: int) -> str:
    if pair[i] != "auto":
      return pair[i]
    kind, size = device_kind(), axis_size(axis_name)
    devices = jax.sharding.get_abstract_mesh().size
    decision = gate.choose(
      op,
      rows=rows,
      inner=inner,
      outer=outer,
      size=size,
      by_rows=by_rows,
      dtype=like.dtype,
      wire_dtype=wire_dtype,
      chunks=chunks,
      device_kind=kind,
      all_reduces=sums_everywhere(kind or "", size, devices),
      gathers_fused=gate.fuses_gathers(kind or ""),
    )
    return decision.schedule[i]

  split_dim = _split_dim(like, dim)
  return tuple(
    Route(
      axis_name=axis_name,
      by_rows=by_rows,
      split_dim=split_dim,
      schedule=chosen(i),
      chunks=chunks,
      accum_dtype=accum_dtype,
      wire_dtype=wire_dtype,
    )
    for i in (0, 1)
  )


def innermost_row_dim(x: jax.Array) -> int:
  """The innermost row dim that no Explicit axis shards, or just the innermost.

  Outer ones may be sharded over other mesh axes too: where those are Auto,
  a cut through them would make the compiler reshard.
  """
  free = set(range(x.ndim - 1)) - explicit_axes(x).keys()
  return max(free, default=x.ndim - 2)


def _split_dim(x: jax.Array, dim: int) -> int:
  """The row dim of `rows_first(x, dim)` that lanes divide."""
  innermost = innermost_row_dim(x)
  is_behind = innermost < dim < x.ndim - 1
  return 0 if innermost == dim else max(innermost + is_behind, 0)


def rows_first(x: jax.Array, dim: int) -> jax.Array:
  """`x` with row dim `dim` outermost; unchanged if `dim` holds features."""
  if x.ndim == 1:
    return x[None]
  return x if dim == x.ndim - 1 else jnp.moveaxis(x, dim, 0)


def undo_rows_first(y: jax.Array, dim: int, ndim: int) -> jax.Array:
  """Undoes `rows_first` on the output of an op; `ndim` is that of `x`."""
  if ndim == 1:
    return y[0]
  return y if dim == ndim - 1 else jnp.moveaxis(y, 0, dim)
