"""The public edge of the ops: what arguments must be, and what they mean."""

import jax
import jax.numpy as jnp

from collective_mm import gate
from collective_mm.mesh import AxisName, axis_size, device_kind
from collective_mm.ring_matmul import Route

SCHEDULES = ("auto", "unoverlapped", "async", "one_way", "two_way")


def pad(x: jax.Array, dim: int, size: int) -> jax.Array:
  """`x` with zeros after its end in `dim`, up to `size`."""
  missing = size - x.shape[dim]
  if not missing:
    return x
  return jnp.pad(x, [(0, missing if i == dim else 0) for i in range(x.ndim)])


def check_types(xs: tuple, ws: tuple) -> None:
  """Refuses dtypes that the output, which has that of `x`, cannot hold."""
  for x, w in zip(xs, ws, strict=True):
    w_is_integer = jnp.issubdtype(w.dtype, jnp.integer)
    w_is_real = jnp.issubdtype(w.dtype, jnp.floating) or w_is_integer
    if not jnp.issubdtype(x.dtype, jnp.floating) or not w_is_real:
      raise ValueError(
        f"x must have a floating dtype and w a floating or integer one, got "
        f"x.dtype={x.dtype}, w.dtype={w.dtype}"
      )
    if any(any(jax.typeof(a).sharding.spec) for a in (x, w)):
      raise NotImplementedError(
        f"x and w may be sharded over mesh axes that are manual or "
        f"AxisType.Auto, not yet Explicit, got x: {jax.typeof(x)}, w: "
        f"{jax.typeof(w)}"
      )


def find_dim(name: str, dim: int, of: str, x: jax.Array) -> int:
  """`dim` counted from the front, checked."""
  if x.ndim < 1 or not -x.ndim <= dim < x.ndim:
    raise ValueError(
      f"{name} must be a dim of {of}, from {-x.ndim} to {x.ndim - 1}, got {dim}"
    )
  return dim % x.ndim


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
  if not isinstance(chunks, int) or chunks < 1:
    raise ValueError(f"chunks must be a whole number from 1, got {chunks!r}")
  wire_dtype = None if wire_dtype is None else jnp.dtype(wire_dtype)
  by_rows = dim != like.ndim - 1

  def chosen(i: int) -> str:
    if pair[i] != "auto":
      return pair[i]
    decision = gate.choose(
      op,
      rows=rows,
      inner=inner,
      outer=outer,
      size=axis_size(axis_name),
      by_rows=by_rows,
      dtype=like.dtype,
      wire_dtype=wire_dtype,
      chunks=chunks,
      device_kind=device_kind(),
    )
    return decision.schedule[i]

  # Lanes divide the innermost row dim: outer ones may be sharded over other
  # mesh axes, and a cut through those would make the compiler reshard.
  innermost_row_dim = max(like.ndim - 2, 0)
  return tuple(
    Route(
      axis_name=axis_name,
      by_rows=by_rows,
      split_dim=0 if dim == innermost_row_dim else innermost_row_dim,
      schedule=chosen(i),
      chunks=chunks,
      accum_dtype=jnp.dtype(accum_dtype),
      wire_dtype=wire_dtype,
    )
    for i in (0, 1)
  )


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
