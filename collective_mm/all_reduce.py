"""The row-sharded product whose output every device keeps whole."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm.collective import matmul_reduce_scatter
from collective_mm.mesh import (
  AxisName,
  axis_size,
  explicit_axes,
  vary_alike,
  varying_axes,
)
from collective_mm.op_arguments import (
  check_chunks,
  find_dtype,
  innermost_row_dim,
  pairs,
)
from collective_mm.ring_matmul import dot, outer


def matmul_all_reduce(
  x: jax.Array | tuple[jax.Array, ...],
  w: jax.Array | tuple[jax.Array, ...],
  *,
  axis_name: AxisName,
  schedule: str = "auto",
  chunks: int = 2,
  accum_dtype: jax.typing.DTypeLike = jnp.float32,
  wire_dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
  """Returns `psum(x @ w)`, summing some rows while multiplying the next.

      x[B, S, F_m] @ w[F_m, D] -> y[B, S, D]

  The rows are cut into `chunks`; each is a `matmul_reduce_scatter` and then an
  all-gather, which travels beside the products of the next. Backward sends
  nothing: every device holds all of `dy`, so that `dx = dy @ w.T` and
  `dw = x.T @ dy` are local. Call inside `jax.shard_map`.

  Args:
    x: `[..., F/t]`, or a tuple of inputs whose products are added up.
    w: `[F/t, D]` row shard, or a tuple, one for each `x`.
    axis_name: mesh axis of the ring, or a tuple of axes in mesh order.
    schedule: of the reductions, as in `all_gather_matmul`.
    chunks: runs of rows that are multiplied one after the other.
    accum_dtype: dtype in which local products are summed.
    wire_dtype: dtype in which partial sums travel; the dtype of `x` if not
      given.

  Returns:
    `[..., D]` in the dtype of `x`, the same on all devices of `axis_name`.

  Raises:
    ValueError: as `matmul_reduce_scatter` does, and if `chunks` is below 1.

  Cost: `2 (t - 1)` sends of `y.nbytes / t`, beside `2 * x.size * D` FLOPs; with
    "unoverlapped", one all-reduce after them.

  Example (four devices):
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> dense = jax.shard_map(
    ...     lambda x, w: matmul_all_reduce(x, w, axis_name="model"),
    ...     mesh=mesh, in_specs=(jax.P(None, "model"), jax.P("model", None)),
    ...     out_specs=jax.P())
    >>> y = jax.jit(dense)(jnp.ones((8, 16)), jnp.ones((16, 4)))
    >>> y.shape, float(y.max())
    ((8, 4), 16.0)
  """
  check_chunks(chunks)
  if not isinstance(schedule, str):
    raise ValueError(
      f"schedule must be one name, since backward sends nothing, got "
      f"{schedule!r}"
    )
  xs, ws = pairs(x, w)
  axis_size(axis_name)  # names what is wrong outside `jax.shard_map`
  alike = vary_alike(axis_name, *xs, *ws)
  xs, ws = alike[: len(xs)], alike[len(xs) :]
  reduce = functools.partial(
    matmul_reduce_scatter,
    axis_name=axis_name,
    schedule=schedule,
    accum_dtype=accum_dtype,
    wire_dtype=wire_dtype,
  )
  options = _Options(
    axis_name, chunks, find_dtype("accum_dtype", accum_dtype), reduce
  )
  if xs[0].ndim == 1:
    return _all_reduce_op(options, tuple(xi[None] for xi in xs), ws)[0]
  return _all_reduce_op(options, xs, ws)


class _Options(NamedTuple):
  axis_name: AxisName
  chunks: int
  accum_dtype: jnp.dtype
  reduce: Callable[..., jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _all_reduce_op(options, xs, ws):
  size = axis_size(options.axis_name)
  row_dim = innermost_row_dim(xs[0])
  rows = xs[0].shape[row_dim]
  # Rows too few for the ring would be mostly padding, and rows that Explicit
  # axes shard must stay where they are: features travel then.
  by_rows = rows >= size and row_dim not in explicit_axes(xs[0])
  dim = row_dim if by_rows else xs[0].ndim - 1
  count = min(options.chunks, rows // size) if by_rows else 1
  bounds = [rows * i // count for i in range(count + 1)]
  pieces = []
  for start, stop in itertools.pairwise(bounds):
    some = tuple(lax.slice_in_dim(x, start, stop, axis=row_dim) for x in xs)
    y = options.reduce(some, ws, scatter_dim=dim)
    y = lax.all_gather(
      y, options.axis_name, axis=dim, tiled=True, to="invarying"
    )
    end = stop - start if by_rows else ws[0].shape[1]
    pieces.append(lax.slice_in_dim(y, 0, end, axis=dim))
  return jnp.concatenate(pieces, axis=row_dim) if count > 1 else pieces[0]


def _all_reduce_op_forward(options, xs, ws):
  return _all_reduce_op(options, xs, ws), (xs, ws)


def _all_reduce_op_backward(options, residuals, dy):
  xs, ws = residuals
  if not varying_axes(xs[0]):
    # With check_vma=False the cotangent of what all devices share comes in
    # parts, one from each, as it does for `lax.psum`.
    dy = lax.psum(dy, options.axis_name)
  pairs, dtype = list(zip(xs, ws, strict=True)), options.accum_dtype
  dxs = tuple(
    dot(dy, w, dtype, transpose=True).astype(x.dtype) for x, w in pairs
  )
  dws = tuple(outer(x, dy, w, dtype) for x, w in pairs)
  return dxs, dws


_all_reduce_op.defvjp(_all_reduce_op_forward, _all_reduce_op_backward)
