"""The ops on global arrays: what the layers of every framework call.

On a mesh, given or set by `jax.set_mesh`, arrays are global: `jax.shard_map` is
opened over the ring's axis. Inside a `jax.shard_map` over that axis they are
those of one device.

The other mesh axes are left to the types (Explicit) or to the `jax.shard_map`
that is open over them (Manual). Auto ones that divide dim 0 of `x` are taken to
shard it, as they do a batch, and are opened too; where they do not, they are
left to the compiler. Rows can be merged where no axis is left: the TPU compiler
then copies nothing on the way of a ring, which it does for more dims.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm import gate
from collective_mm.chips import find_chip
from collective_mm.collective import all_gather_matmul, matmul_reduce_scatter
from collective_mm.mesh import device_kind, explicit_axes, shard_over
from collective_mm.row_dims import Rows

Biases = Sequence[jax.Array] | None


def column(
  x: jax.Array,
  kernels: Sequence[jax.Array],
  biases: Biases = None,
  *,
  mesh: jax.sharding.Mesh | None = None,
  axis_name: str = "model",
  gather_dim: int = -2,
  epilogue: Callable[..., Any] | None = None,
  **options: Any,
) -> Any:
  """Several column-sharded layers of one input, which is gathered once.

      x[B, S_m, D] @ kernel[D, F_m] + bias[F_m] -> y[B, S, F_m]

  Args:
    x: `[..., D]`.
    kernels: `[D, F]` each, of any `F`.
    biases: `[F]` for each kernel; None for no biases.
    mesh: mesh of the global view, that of `jax.set_mesh` if not given; None
      inside `jax.shard_map` over `axis_name`.
    axis_name: mesh axis that splits the kernels.
    gather_dim: dim of `x` that is sharded over `axis_name`.
    epilogue: `epilogue(*ys)` of each piece with its bias added, inside the ring
      step; elementwise in all but the features, and every leaf of its result
      has the dims of a `y`.
    options: of `all_gather_matmul`: schedule, chunks, accum_dtype, dw.

  Returns:
    A tuple of a `y` for each kernel, or what the epilogue made of them.

  Raises:
    ValueError: if the axis does not divide the gathered dim or a kernel's
      columns, is not of the mesh, or is Manual where there is a mesh or not
      where there is none; or as `all_gather_matmul` raises.
  """

  def per_device(x, kernels, biases):
    finish = epilogue
    if epilogue is not None and biases is not None:
      finish = jax.tree_util.Partial(_biased(epilogue), biases)
    alone = len(kernels) == 1  # then messages say w, not w[0]
    rows = Rows.of(x, gather_dim, axis_name, nested)
    ys = all_gather_matmul(
      rows.merge_chunk(x),
      kernels[0] if alone else kernels,
      axis_name=axis_name,
      gather_dim=rows.dim,
      epilogue=finish,
      **_among_others(options),
    )
    ys = jax.tree.map(rows.split_whole, ys)
    if finish is not None:
      return ys
    # Several are queries, keys and values: the compiler would else widen them,
    # where RoPE is float32, before it moves their rows.
    ys = (ys,) if alone else lax.optimization_barrier(ys)
    # An epilogue keeps its inputs for backward; a bias alone needs none.
    return ys if biases is None else _add(ys, biases)

  kernels, biases = tuple(kernels), None if biases is None else tuple(biases)
  mesh = ring_mesh(mesh, axis_name)
  nested = is_nested(mesh)
  if mesh is None:
    return per_device(x, kernels, biases)
  where = {"mesh": mesh, "axis_name": axis_name}
  if nested and epilogue is not None:
    how = where | {"gather_dim": gather_dim} | options
    return epilogue(*column(x, kernels, biases, **how))
  if nested and _is_inner(gather_dim, x.ndim):
    x = jnp.moveaxis(x, gather_dim, 0)
    ys = column(x, kernels, biases, gather_dim=0, **where, **options)
    return tuple(jnp.moveaxis(y, 0, gather_dim) for y in ys)
  x_spec = sharded_dim(x.ndim, gather_dim, axis_name)
  check_divides(mesh, axis_name, f"dim {gather_dim} of x", x.shape[gather_dim])
  for kernel in kernels:
    check_divides(mesh, axis_name, "features", kernel.shape[-1])
  batch = batch_axes(x, gather_dim, mesh, axis_name)
  w_spec = jax.P(None, axis_name)
  for name, array, spec in (
    ("x", x, x_spec),
    *(("kernel", kernel, w_spec) for kernel in kernels),
  ):
    _check_typed(name, array, spec, mesh, axis_name)
  return shard_over(
    per_device,
    mesh=mesh,
    axis_names={axis_name, *batch},
    in_specs=(over(x_spec, batch), w_spec, jax.P(axis_name)),
    out_specs=over(sharded_dim(x.ndim, -1, axis_name), batch),
  )(x, kernels, biases)


def row(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  mesh: jax.sharding.Mesh | None = None,
  axis_name: str = "model",
  scatter_dim: int = -2,
  **options: Any,
) -> jax.Array:
  """A row-sharded layer.

      x[B, S, F_m] @ kernel[F_m, D] + bias[D] -> y[B, S_m, D]

  Args:
    x: `[..., F]`.
    kernel: `[F, D]`.
    bias: `[D]`, or None; sharded too where `scatter_dim` is -1.
    mesh, axis_name: as in `column`.
    scatter_dim: dim of `y` that comes out sharded; -1 for the features.
    options: of `matmul_reduce_scatter`: schedule, chunks, accum_dtype,
      wire_dtype.

  Raises:
    ValueError: as `column`, and if `scatter_dim` names the features otherwise.
  """

  def per_device(x, kernel, bias):
    rows = Rows.of(x, scatter_dim, axis_name, nested)
    y = matmul_reduce_scatter(
      rows.merge_whole(x),
      kernel,
      axis_name=axis_name,
      scatter_dim=rows.dim,
      **_among_others(options),
    )
    y = rows.split_chunk(y)
    return y if bias is None else y + bias

  if scatter_dim == x.ndim - 1:  # specs cannot tell it from a row dim
    raise ValueError(
      f"scatter_dim must be -1 for the features of y, got {scatter_dim}"
    )
  mesh = ring_mesh(mesh, axis_name)
  nested = is_nested(mesh)
  if mesh is None:
    return per_device(x, kernel, bias)
  if nested and _is_inner(scatter_dim, x.ndim):
    where = {"mesh": mesh, "axis_name": axis_name, "scatter_dim": 0}
    x = jnp.moveaxis(x, scatter_dim, 0)
    return jnp.moveaxis(
      row(x, kernel, bias, **where, **options), 0, scatter_dim
    )
  x_spec = sharded_dim(x.ndim, -1, axis_name)
  y_spec = sharded_dim(x.ndim, scatter_dim, axis_name)
  check_divides(mesh, axis_name, "dim -1 of x", x.shape[-1])
  # The op would pad; a global array has no place for that.
  y_shape = (*x.shape[:-1], kernel.shape[-1])
  check_divides(
    mesh, axis_name, f"dim {scatter_dim} of y", y_shape[scatter_dim]
  )
  batch = batch_axes(x, scatter_dim, mesh, axis_name)
  w_spec = jax.P(axis_name, None)
  _check_typed("x", x, x_spec, mesh, axis_name)
  _check_typed("kernel", kernel, w_spec, mesh, axis_name)
  return shard_over(
    per_device,
    mesh=mesh,
    axis_names={axis_name, *batch},
    in_specs=(
      over(x_spec, batch),
      w_spec,
      jax.P(axis_name if scatter_dim == -1 else None),
    ),
    out_specs=over(y_spec, batch),
  )(x, kernel, bias)


def _among_others(options: dict[str, Any]) -> dict[str, Any]:
  """The options of an op that other layers stand beside.

  The gate, which "auto" asks, sees an op alone. In backward of a model other
  products hide the compiler's asynchronous gathers, and those copy nothing.
  """
  kind = device_kind() or ""
  is_auto = options.get("schedule", "auto") == "auto"
  if not is_auto or find_chip(kind) is None or not gate.fuses_gathers(kind):
    return options
  return options | {"schedule": ("auto", "async")}


def is_nested(mesh) -> bool:
  """Whether the ring's `jax.shard_map` stands in another one.

  jax 0.10 cannot lower the gradient of such a pair where the inner one keeps
  what is not its argument: rows that are merged or moved, or the inputs of an
  epilogue. There these are left out, or done outside.
  """
  manual = jax.sharding.get_abstract_mesh().manual_axes
  return mesh is not None and bool(manual)


def _is_inner(dim: int, ndim: int) -> bool:
  """Whether a dim is neither the first nor the last, nor out of range."""
  return -ndim <= dim < ndim and 0 < dim % ndim < ndim - 1


def batch_axes(x: jax.Array, dim: int, mesh, axis_name: str) -> tuple[str, ...]:
  """The Auto axes that may shard dim 0 of `x`, as they do a batch."""
  manual = jax.sharding.get_abstract_mesh().manual_axes
  names = tuple(
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind == jax.sharding.AxisType.Auto
    and name != axis_name
    and name not in manual
    and mesh.shape[name] > 1
  )
  count = math.prod(mesh.shape[name] for name in names)
  if x.ndim < 3 or dim % x.ndim == 0 or x.shape[0] % count:
    return ()
  return names


def over(spec: jax.P, batch: tuple[str, ...]) -> jax.P:
  """`spec` with dim 0, which it leaves whole, cut over `batch`."""
  return jax.P(batch, *spec[1:]) if batch else spec


def ring_mesh(
  mesh: jax.sharding.Mesh | None, axis_name: str
) -> jax.sharding.Mesh | jax.sharding.AbstractMesh | None:
  """The mesh of the global view; None where arrays are those of one device."""
  if mesh is not None:
    check_axis(mesh, axis_name)
    return mesh
  context = jax.sharding.get_abstract_mesh()
  is_local = axis_name in context.manual_axes
  # Without the axis the op says what it misses.
  return None if is_local or axis_name not in context.shape else context


def check_axis(mesh: jax.sharding.Mesh, axis_name: str) -> None:
  """Refuses a mesh without the axis, and one whose axis is manual here."""
  if axis_name not in mesh.shape:
    raise ValueError(
      f"axis_name must be an axis of mesh, {tuple(mesh.shape)}, got "
      f"{axis_name!r}"
    )
  manual = jax.sharding.get_abstract_mesh().manual_axes
  if axis_name in manual:
    raise ValueError(
      f"mesh must be None inside a jax.shard_map over {axis_name!r}, where "
      f"arrays are those of one device (manual here: {tuple(manual)}), got a "
      f"mesh of {dict(mesh.shape)}"
    )


def check_divides(
  mesh: jax.sharding.Mesh | None, axis_name: str, name: str, number: int
) -> None:
  """Refuses a size that the axis does not divide."""
  check_multiple(
    1 if mesh is None else mesh.shape[axis_name], axis_name, name, number
  )


def check_multiple(size: int, axis_name: str, name: str, number: int) -> None:
  """Refuses a number that an axis of `size` devices does not divide."""
  if number % size:
    raise ValueError(
      f"axis {axis_name!r} must divide {name}: {number} is not a multiple of "
      f"{size}"
    )


def sharded_dim(ndim: int, dim: int, axis_name: str) -> jax.P:
  """The spec of an array that is sharded in one dim."""
  if not -ndim <= dim < ndim:
    raise ValueError(
      f"the sharded dim must be from {-ndim} to {ndim - 1}, got {dim}"
    )
  entries = [None] * ndim
  entries[dim] = axis_name
  return jax.P(*entries)


def _check_typed(
  name: str,
  x: jax.Array,
  spec: jax.P,
  mesh: jax.sharding.Mesh,
  axis_name: str,
) -> None:
  """Refuses what jax will not reshard unasked: the ring's axis is Explicit."""
  kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  if kinds[axis_name] != jax.sharding.AxisType.Explicit:
    return
  found = {d for d, axes in explicit_axes(x).items() if axis_name in axes}
  want = {d for d, axes in enumerate(spec) if axes}
  if found != want:
    raise ValueError(
      f"{name} must be sharded over {axis_name!r}, which is Explicit, in dim "
      f"{min(want)} alone: use jax.reshard before, got {jax.typeof(x)}"
    )


def _add(ys: Sequence[jax.Array], biases: Sequence[jax.Array]) -> tuple:
  return tuple(y + b for y, b in zip(ys, biases, strict=True))


@functools.cache
def _biased(epilogue: Callable[..., Any]) -> Callable[..., Any]:
  """The epilogue after the biases; the same function for the same epilogue."""
  return lambda biases, *ys: epilogue(*_add(ys, biases))
