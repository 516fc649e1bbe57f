"""The device mesh and every call whose form differs between jax versions."""

import contextlib
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax import lax

from collective_mm.placement import ring_order

AxisName = str | tuple[str, ...]


def make_mesh(
  *,
  data: int,
  model: int,
  devices: Sequence[jax.Device] | None = None,
  whole_dims: bool = False,
) -> jax.sharding.Mesh:
  """Returns a mesh of `data x model` devices with axes `("data", "model")`.

  On a TPU slice each model ring runs over neighbouring chips, as
  `placement.ring_order` says; with several slices the data axis goes across
  them. Other devices keep their order, process by process.

  Args:
    data: size of the data axis: groups that see different examples.
    model: size of the model axis: devices that share every matmul of a group.
    devices: the devices to place, whole TPU slices if they are TPUs;
      `jax.devices()` if not given.
    whole_dims: whether a model ring takes whole dims of its slice, so that the
      axes share no link, even where a dim that does not wrap makes a shift of
      two hops. That pays where weights sharded over `data` keep the links busy
      for much of a layer, as with few examples a chip (`docs/prefetch.md`).

  Raises:
    ValueError: if `data * model` is not the number of devices, if `model` does
      not divide the number of devices of every TPU slice, or if no whole dims
      of one come to `model` and `whole_dims` asks for them.

  Example (eight devices):
    >>> dict(make_mesh(data=2, model=4).shape)
    {'data': 2, 'model': 4}
  """
  devices = jax.devices() if devices is None else list(devices)
  if data < 1 or model < 1 or data * model != len(devices):
    raise ValueError(
      f"data x model must be the number of devices, {len(devices)}, got "
      f"data={data}, model={model} ({data} x {model} = {data * model})"
    )
  grid = np.asarray(ring_order(devices, model, whole_dims=whole_dims))
  auto = (jax.sharding.AxisType.Auto,) * 2
  return jax.sharding.Mesh(grid, ("data", "model"), axis_types=auto)


def axis_size(axis_name: AxisName) -> int:
  """Devices along `axis_name`, which must be manual here.

  Raises:
    ValueError: if no `jax.shard_map` over `axis_name` is open, or if several
      axes are not a tuple in mesh order.
  """
  mesh = jax.sharding.get_abstract_mesh()
  names = axis_name if isinstance(axis_name, tuple | list) else (axis_name,)
  size = None
  if names and all(isinstance(name, str) for name in names):
    with contextlib.suppress(NameError):
      size = lax.axis_size(axis_name)
  if size is None:
    raise ValueError(
      f"axis_name must be an axis of the jax.shard_map that this is called "
      f"in; axes that are manual here: {tuple(mesh.manual_axes)}, got "
      f"{axis_name!r}"
    )
  if not isinstance(axis_name, str):
    in_order = tuple(name for name in mesh.axis_names if name in axis_name)
    if axis_name != in_order:
      # jax 0.10 would permute in mesh order all the same.
      raise ValueError(
        f"axis_name must be one axis, or a tuple in mesh order, {in_order}, "
        f"got {axis_name!r}"
      )
  return size


def shard_over(
  per_device: Callable,
  *,
  mesh: jax.sharding.Mesh,
  axis_names: set[str],
  in_specs,
  out_specs,
) -> Callable:
  """`jax.shard_map` over some axes, which leaves the others as they are here.

  Inside a `jax.shard_map` over others of them it is their mesh that counts.
  """
  context = jax.sharding.get_abstract_mesh()
  on_axis = jax.shard_map(
    per_device,
    mesh=context if context.manual_axes else mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    axis_names=axis_names,
  )
  if not context.manual_axes:
    return on_axis

  def run(*arguments):
    # The sum over an axis that is open outside is asked for there.
    leaves, tree = jax.tree.flatten(arguments)
    names = frozenset().union(*map(varying_axes, leaves))
    leaves = [vary_over(leaf, names) for leaf in leaves]
    return on_axis(*jax.tree.unflatten(tree, leaves))

  return run


def place(x: jax.Array, mesh: jax.sharding.Mesh, spec: jax.P) -> jax.Array:
  """`x` sharded as `spec` says, inside or outside of `jax.jit`.

  Args:
    x: an array.
    mesh: a mesh, or the one that `jax.set_mesh` has set.
    spec: how the axes of `mesh` shard `x`.
  """
  is_set = isinstance(mesh, jax.sharding.AbstractMesh)
  sharding = spec if is_set else jax.NamedSharding(mesh, spec)
  kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  if jax.sharding.AxisType.Explicit in {kinds[a] for a in spec if a}:
    return jax.reshard(x, sharding)
  return lax.with_sharding_constraint(x, sharding)


def device_kind() -> str | None:
  """The kind of device that the open `jax.shard_map` is traced for."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return None if device is None else device.device_kind


def varying_axes(x: jax.Array) -> frozenset[str]:
  """The manual axes over which `x` may differ between devices.

  Empty as well when `jax.shard_map` runs with `check_vma=False`.
  """
  aval = jax.typeof(x)
  if hasattr(aval, "manual_axis_type"):  # from jax 0.10
    return frozenset(aval.manual_axis_type.varying)
  return frozenset(aval.vma)


def vary_alike(
  axis_name: AxisName, *arrays: jax.Array
) -> tuple[jax.Array, ...]:
  """Marks all arrays as varying over `axis_name` and each other's axes.

  A custom VJP must return cotangents that vary exactly as its arguments do.
  With arguments that all vary alike it may; the transpose of this mark then
  adds the `psum` that an argument shared between devices needs.
  """
  names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
  union = frozenset(names).union(*(varying_axes(x) for x in arrays))
  return tuple(vary_over(x, union) for x in arrays)


def vary_over(x: jax.Array, names: frozenset[str]) -> jax.Array:
  """Marks `x` as varying over the axes `names` too."""
  missing = tuple(sorted(names - varying_axes(x)))
  return lax.pcast(x, missing, to="varying") if missing else x


def explicit_axes(x: jax.Array) -> dict[int, frozenset[str]]:
  """The mesh axes of `AxisType.Explicit` that shard `x`, by its dims."""
  spec = jax.typeof(x).sharding.spec
  return {
    dim: frozenset((axes,) if isinstance(axes, str) else axes)
    for dim, axes in enumerate(spec)
    if axes
  }


def explicit_sharding(x: jax.Array, new_dims: int = 0) -> jax.P | None:
  """How Explicit axes shard `x`, behind new dims; None where there are none.

  It is the `out_sharding` that jax asks for where it cannot tell.
  """
  if not jax.sharding.get_abstract_mesh().explicit_axes:
    return None
  return jax.P(*[None] * new_dims, *jax.typeof(x).sharding.spec)


def all_gather(x: jax.Array, axis_name: AxisName, dim: int) -> jax.Array:
  """`lax.all_gather` of `dim`, on meshes with Explicit axes as well.

  Nothing on an axis of one device, where compilers leave a copy.
  """
  if lax.axis_size(axis_name) == 1:
    return vary_alike(axis_name, x)[0]
  gather = functools.partial(
    lax.all_gather, axis_name=axis_name, axis=dim, tiled=True
  )
  return _seen_as_auto(gather, x)


def psum_scatter(x: jax.Array, axis_name: AxisName, dim: int) -> jax.Array:
  """`lax.psum_scatter` of `dim`, on meshes with Explicit axes as well.

  Nothing on an axis of one device, as for `all_gather`.
  """
  if lax.axis_size(axis_name) == 1:
    return vary_alike(axis_name, x)[0]
  scatter = functools.partial(
    lax.psum_scatter, axis_name=axis_name, scatter_dimension=dim, tiled=True
  )
  return _seen_as_auto(scatter, x)


def psum(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """`lax.psum`; nothing on an axis of one device, if jax lets us.

  Where `jax.shard_map` tracks what varies, a sum alone says that `x` no longer
  does; compilers leave such all-reduces of one member in.
  """
  if axis_size(axis_name) == 1 and not varying_axes(x):
    return x
  return lax.psum(x, axis_name)


def pmax(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """`lax.pmax`, as `psum`."""
  if axis_size(axis_name) == 1 and not varying_axes(x):
    return x
  return lax.pmax(x, axis_name)


def _seen_as_auto(collective, x: jax.Array) -> jax.Array:
  """`collective(x)`, which leaves the sharding over Explicit axes as it is.

  jax 0.10 to 0.12 cannot lower `lax.psum_scatter`, to which `lax.all_gather`
  transposes, where Explicit axes shard its input.
  """
  sharding = explicit_sharding(x)
  if sharding is None:
    return collective(x)
  axes = jax.sharding.get_abstract_mesh().explicit_axes
  return jax.sharding.auto_axes(collective, axes=axes, out_sharding=sharding)(x)


def empty_like_varying(
  shape: tuple[int, ...], dtype, like: jax.Array
) -> jax.Array:
  """An uninitialised array that varies over the same axes as `like`.

  Explicit axes shard its last dims as they do those of `like`.
  """
  sharding = explicit_sharding(like, new_dims=len(shape) - like.ndim)
  buffer = lax.empty(shape, dtype, out_sharding=sharding)
  return vary_over(buffer, varying_axes(like))


def struct_like_varying(
  shape: tuple[int, ...], dtype, like: jax.Array
) -> jax.ShapeDtypeStruct:
  """The shape of an array that varies over the same axes as `like`."""
  aval = jax.typeof(like)
  if hasattr(aval, "manual_axis_type"):  # from jax 0.10
    kind = {"manual_axis_type": aval.manual_axis_type}
  else:
    kind = {"vma": aval.vma}
  return jax.ShapeDtypeStruct(shape, dtype, **kind)
