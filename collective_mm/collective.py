"""The differentiable ops: each one's gradient is the other.

We write `y = x @ w`. A *column-sharded* `w[D, F_m]` gathers its input, a
*row-sharded* `w[F_m, D]` reduce-scatters its output. (The paper writes
`y = A x` with `A = w.T` and so has the two words the other way round.)
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from collective_mm import ring_matmul
from collective_mm.mesh import AxisName, axis_size, vary_alike
from collective_mm.op_arguments import (
  arrays,
  check_explicit,
  check_types,
  find_dim,
  pad,
  pairs,
  routes,
  rows_first,
  undo_rows_first,
)
from collective_mm.ring_matmul import Route

SAVED_NAME = "all_gather_matmul_x"
"""`checkpoint_name` of the gathered input that `dw="save"` keeps."""


@dataclasses.dataclass(frozen=True)
class _Plan:
  forward: Route
  backward: Route
  save: bool = False
  epilogue: jax.tree_util.PyTreeDef | None = None

  def finish(self, operands: Sequence[jax.Array], ys: tuple) -> Any:
    """The epilogue of products, or the products themselves."""
    if self.epilogue is None:
      return ys
    out = jax.tree.unflatten(self.epilogue, operands)(*ys)
    rows = ys[0].shape[:-1]
    for leaf in jax.tree.leaves(out):
      if jnp.shape(leaf)[: len(rows)] != rows:
        raise ValueError(
          f"epilogue must map rows to rows: of a piece of shape {ys[0].shape} "
          f"every leaf must begin with {rows}, got a leaf of shape "
          f"{jnp.shape(leaf)}"
        )
    return out


def all_gather_matmul(
  x: jax.Array,
  w: jax.Array | tuple[jax.Array, ...],
  *,
  axis_name: AxisName,
  gather_dim: int,
  schedule: str | tuple[str, str] = "auto",
  chunks: int = 1,
  epilogue: Callable[..., Any] | None = None,
  accum_dtype: jax.typing.DTypeLike = jnp.float32,
  dw: str = "regather",
) -> Any:
  """Returns `all_gather(x, gather_dim) @ w`, sending and multiplying at once.

      x[B_m, S, D] @ w[D, F_m] -> y[B, S, F_m]     gather_dim=0 (or 1: S_m)
      x[B, S, D_m] @ w[D, F_m] -> y[B, S, F_m]     gather_dim=-1

  `m` is `axis_name`, of size `t`. On ring step `i` device `d` multiplies the
  chunk of `x` that began on device `(d - i) % t` and sends that same chunk to
  device `(d + 1) % t`; a two-way ring sends the other half of each chunk the
  other way round. Backward is rings too: `dx` is a `matmul_reduce_scatter` of
  `dy @ w.T`, and `x` is gathered again for `dw = x.T @ dy`. Call inside
  `jax.shard_map`.

  Args:
    x: `[..., D]` with `gather_dim` sharded `t` ways, or `[..., D/t]`; floats.
      Other mesh axes may shard its other row dims, be they Auto or Explicit.
    w: `[D, F/t]` column shard, or a tuple of them that share the one gather;
      floats or integers, int8 and fp8 too: they are multiplied as they are.
      With `gather_dim=-1` the last shard of `x` may reach past the rows of
      `w`; what lies there, finite numbers, is multiplied by zeros.
    axis_name: mesh axis of the ring, or a tuple of axes in mesh order.
    gather_dim: the dim of `x` that is sharded; the last one is contracted.
    schedule: "auto", which `gate.explain` explains: of a program compiled with
      `gate.compiler_options`, never slower in its model than "unoverlapped";
      "unoverlapped", "one_way", "two_way", or "async", which leaves gathers to
      the compiler's asynchronous all-gather (for where other work hides them;
      reductions, which have none, go two-way); or a pair for (forward,
      backward).
    chunks: pieces that each direction of the ring cuts a chunk into.
    epilogue: `epilogue(*ys)` is applied to the products of each piece, inside
      the ring step, where the compiler fuses it with them: bias, activation,
      a norm over features, a split into heads. It maps rows to rows: every
      leaf of its result begins with the row dims of its piece, in which the
      gathered one is outermost. Arrays that need a gradient come in as
      `jax.tree_util.Partial(function, *arrays)`.
    accum_dtype: dtype in which products are summed, whatever `x` and `w` are.
    dw: "regather" keeps only the shard of `x` for backward; "save" keeps the
      gathered `x`, under the checkpoint name "all_gather_matmul_x".

  Returns:
    `[..., F/t]` in the dtype of `x`, or a tuple of them, one for each `w`; the
    result of the epilogue if there is one.

  Raises:
    ValueError: if shapes, dtypes, the dim, the axis or an option do not fit.

  Cost: `t - 1` sends of `x.nbytes` (two-way: `2 (t - 1)` of half of that),
    beside `2 * x.size * t * F / t` FLOPs; backward sends twice as much.

  Example (four devices):
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> dense = jax.shard_map(
    ...     lambda x, w: all_gather_matmul(
    ...         x, w, axis_name="model", gather_dim=-1),
    ...     mesh=mesh, in_specs=(jax.P(None, "model"), jax.P(None, "model")),
    ...     out_specs=jax.P(None, "model"))
    >>> y = jax.jit(dense)(jnp.ones((2, 8)), jnp.ones((8, 16)))
    >>> y.shape, float(y.max())
    ((2, 16), 8.0)
  """
  if isinstance(x, tuple):
    raise ValueError(f"x must be one array, got a tuple of {len(x)}")
  (x,), ws = arrays("x", x), arrays("w", w)
  if not ws:
    raise ValueError("w must be a matrix or a tuple of at least one, got ()")
  size = axis_size(axis_name)
  dim = find_dim("gather_dim", gather_dim, "x", x)
  by_rows = dim != x.ndim - 1
  check_types((x,) * len(ws), ws)
  for i, wi in enumerate(ws):
    name = f"w[{i}]" if isinstance(w, tuple) else "w"
    rows = wi.shape[0] if wi.ndim == 2 else None
    if rows is not None and not by_rows:
      rows = -(-rows // size)  # features of one shard
    if rows != x.shape[-1]:
      width = x.shape[-1]
      want = f"{width}" if by_rows else f"{size} x {width} = {size * width}"
      raise ValueError(
        f"{name} must be a matrix of {want} rows for gather_dim={gather_dim} "
        f"(axis {axis_name!r} has size {size}), got {name}.shape={wi.shape}, "
        f"x.shape={x.shape}"
      )
    check_explicit(x, wi, x_travels=dim, w_travels=None)
  if dw not in ("regather", "save"):
    raise ValueError(f'dw must be "regather" or "save", got {dw!r}')
  forward, backward = routes(
    "all_gather_matmul",
    rows=math.prod(x.shape[:-1]) * (size if by_rows else 1),
    inner=ws[0].shape[0],
    outer=sum(wi.shape[1] for wi in ws),
    like=x,
    dim=dim,
    axis_name=axis_name,
    schedule=schedule,
    chunks=chunks,
    accum_dtype=accum_dtype,
    wire_dtype=None,
  )
  if not by_rows:
    ws = tuple(pad(wi, 0, size * x.shape[-1]) for wi in ws)
  operands: list[jax.Array] = []
  treedef = None
  if epilogue is not None:
    if not callable(epilogue):
      raise ValueError(f"epilogue must be a function, got {epilogue!r}")
    # A Partial is a pytree: its arrays are leaves and get gradients.
    if not isinstance(epilogue, jax.tree_util.Partial):
      epilogue = jax.tree_util.Partial(epilogue)
    operands, treedef = jax.tree.flatten(epilogue)
  plan = _Plan(forward, backward, save=dw == "save", epilogue=treedef)
  x, *alike = vary_alike(axis_name, x, *ws, *operands)
  ws, operands = tuple(alike[: len(ws)]), tuple(alike[len(ws) :])
  ys = _gather_op(plan, rows_first(x, dim), ws, operands)
  ys = jax.tree.map(lambda y: undo_rows_first(y, dim, x.ndim), ys)
  return ys if isinstance(w, tuple) or epilogue is not None else ys[0]


def matmul_reduce_scatter(
  x: jax.Array | tuple[jax.Array, ...],
  w: jax.Array | tuple[jax.Array, ...],
  *,
  axis_name: AxisName,
  scatter_dim: int,
  schedule: str | tuple[str, str] = "auto",
  chunks: int = 1,
  accum_dtype: jax.typing.DTypeLike = jnp.float32,
  wire_dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
  """Returns `reduce_scatter(x @ w, scatter_dim)`, multiplying while summing.

      x[B, S, F_m] @ w[F_m, D] -> y[B_m, S, D]     scatter_dim=0 (or 1: S_m)
      x[B, S, F_m] @ w[F_m, D] -> y[B, S, D_m]     scatter_dim=-1

  `m` is `axis_name`, of size `t`. On ring step `i` device `d` multiplies its
  share of the chunk that will end on device `(d - i - 1) % t`, adds the sum
  that came from device `(d - 1) % t` and sends the result on. Backward is a
  ring too: `dy` is gathered once and feeds both `dx = dy @ w.T` and
  `dw = x.T @ dy`. Call inside `jax.shard_map`.

  Args:
    x: `[..., F/t]`, or a tuple of inputs whose products are added up; floats,
      row dims as in `all_gather_matmul`.
    w: `[F/t, D]` row shard, or a tuple, one for each `x`; dtypes as in
      `all_gather_matmul`.
    axis_name: mesh axis of the ring, or a tuple of axes in mesh order.
    scatter_dim: the dim of `y` that comes out sharded. Where `t` does not
      divide it, shards have the size rounded up and the last ones end in zeros.
    schedule: as in `all_gather_matmul`.
    chunks: pieces that each direction of the ring cuts a chunk into.
    accum_dtype: dtype in which products are summed, whatever `x` and `w` are.
    wire_dtype: dtype in which partial sums travel; the dtype of `x` if not
      given, which rounds `t - 1` times.

  Returns:
    `[..., D]` with `scatter_dim` cut by `t`, rounded up, in the dtype of `x`.

  Raises:
    ValueError: if shapes, dtypes, the dim, the axis or an option do not fit.

  Cost: `t - 1` sends of `y.nbytes` in `wire_dtype` (two-way: `2 (t - 1)` of
    half of that) beside `2 * x.size * D` FLOPs; backward sends as much.

  Example (four devices):
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> dense = jax.shard_map(
    ...     lambda x, w: matmul_reduce_scatter(
    ...         x, w, axis_name="model", scatter_dim=0),
    ...     mesh=mesh, in_specs=(jax.P(None, "model"), jax.P("model", None)),
    ...     out_specs=jax.P("model", None))
    >>> y = jax.jit(dense)(jnp.ones((8, 16)), jnp.ones((16, 4)))
    >>> y.shape, float(y.max())
    ((8, 4), 16.0)
  """
  xs, ws = pairs(x, w)
  size = axis_size(axis_name)
  dim = find_dim("scatter_dim", scatter_dim, "y", xs[0])
  by_rows = dim != xs[0].ndim - 1
  check_types(xs, ws)
  for i, (xi, wi) in enumerate(zip(xs, ws, strict=True)):
    if wi.ndim != 2 or xi.shape[-1] != wi.shape[0]:
      raise ValueError(
        f"w must be a matrix with a row for each of the {xi.shape[-1]} "
        f"features of x, got w.shape={wi.shape}, x.shape={xi.shape} (pair {i})"
      )
    if xi.shape[:-1] != xs[0].shape[:-1] or wi.shape[1] != ws[0].shape[1]:
      raise ValueError(
        f"every product x @ w must have the shape of the first, "
        f"{(*xs[0].shape[:-1], ws[0].shape[1])}, got "
        f"{(*xi.shape[:-1], wi.shape[1])} (pair {i})"
      )
    check_explicit(
      xi,
      wi,
      x_travels=dim if by_rows else None,
      w_travels=None if by_rows else 1,
    )
  if by_rows:
    rows = -(-xs[0].shape[dim] // size) * size
    xs = tuple(pad(xi, dim, rows) for xi in xs)
  else:
    columns = -(-ws[0].shape[1] // size) * size
    ws = tuple(pad(wi, 1, columns) for wi in ws)
  forward, backward = routes(
    "matmul_reduce_scatter",
    rows=math.prod(xs[0].shape[:-1]),
    inner=sum(wi.shape[0] for wi in ws),
    outer=ws[0].shape[1],
    like=xs[0],
    dim=dim,
    axis_name=axis_name,
    schedule=schedule,
    chunks=chunks,
    accum_dtype=accum_dtype,
    wire_dtype=wire_dtype,
  )
  alike = vary_alike(axis_name, *xs, *ws)
  xs, ws = alike[: len(xs)], alike[len(xs) :]
  xs_first = tuple(rows_first(xi, dim) for xi in xs)
  y = _scatter_op(_Plan(forward, backward), xs_first, ws)
  return undo_rows_first(y, dim, xs[0].ndim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather_op(plan, x, ws, operands):
  finish = functools.partial(plan.finish, operands)
  return ring_matmul.gather_matmul(x, ws, plan.forward, finish=finish)[0]


def _gather_op_forward(plan, x, ws, operands):
  # The gradient of an epilogue needs its inputs.
  def finish(ys):
    return plan.finish(operands, ys), ys if plan.epilogue else ()

  (out, ys), full = ring_matmul.gather_matmul(
    x, ws, plan.forward, keep=plan.save, finish=finish
  )
  kept = checkpoint_name(full, SAVED_NAME) if plan.save else x
  return out, (kept, ws, operands, ys)


def _gather_op_backward(plan, residuals, dout):
  x, ws, operands, ys = residuals
  route = plan.backward
  dys, doperands = dout, ()
  if plan.epilogue:
    # Behind a barrier, or the compiler widens them in a pass of their own.
    ys = lax.optimization_barrier(ys)
    doperands, dys = jax.vjp(plan.finish, operands, ys)[1](dout)
  dx = ring_matmul.matmul_scatter(dys, ws, route, transpose=True)
  # Without the barrier the compiler finds that forward gathered the same `x`,
  # and keeps that copy alive until here.
  full = x if plan.save else ring_matmul.gather(_keep_apart(x), route)
  dws = tuple(
    ring_matmul.outer(full, dy, w, route.accum_dtype)
    for dy, w in zip(dys, ws, strict=True)
  )
  return dx.astype(x.dtype), dws, doperands


_gather_op.defvjp(_gather_op_forward, _gather_op_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scatter_op(plan, xs, ws):
  return ring_matmul.matmul_scatter(xs, ws, plan.forward)


def _scatter_op_forward(plan, xs, ws):
  return _scatter_op(plan, xs, ws), (xs, ws)


def _scatter_op_backward(plan, residuals, dy):
  xs, ws = residuals
  route = plan.backward
  dxs, full = ring_matmul.gather_matmul(
    dy, ws, route, transpose=True, keep=True
  )
  dxs = tuple(dx.astype(x.dtype) for dx, x in zip(dxs, xs, strict=True))
  dws = tuple(
    ring_matmul.outer(x, full, w, route.accum_dtype)
    for x, w in zip(xs, ws, strict=True)
  )
  return dxs, dws


_scatter_op.defvjp(_scatter_op_forward, _scatter_op_backward)


def _keep_apart(x: jax.Array) -> jax.Array:
  """`x`, which the compiler may not know to be the `x` used before."""
  return lax.optimization_barrier(x)
