"""The device mesh and every call whose form differs between jax versions."""

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax

from collective_mm.placement import ring_order

AxisName = str | tuple[str, ...]


def make_mesh(
  *, data: int, model: int, devices: Sequence[jax.Device] | None = None
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

  Raises:
    ValueError: if `data * model` is not the number of devices, or if `model`
      does not divide the number of devices of every TPU slice.

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
  grid = np.asarray(ring_order(devices, model))
  auto = (jax.sharding.AxisType.Auto,) * 2
  return jax.sharding.Mesh(grid, ("data", "model"), axis_types=auto)


def axis_size(axis_name: AxisName) -> int:
  """Devices along `axis_name`, which must be manual here.

  Raises:
    ValueError: if no `jax.shard_map` over `axis_name` is open, or if several
      axes are not a tuple in mesh order.
  """
  mesh = jax.sharding.get_abstract_mesh()
  try:
    size = lax.axis_size(axis_name)
  except NameError:
    raise ValueError(
      f"axis_name must be an axis of the jax.shard_map that this is called "
      f"in; axes that are manual here: {tuple(mesh.manual_axes)}, got "
      f"{axis_name!r}"
    ) from None
  if not isinstance(axis_name, str):
    in_order = tuple(name for name in mesh.axis_names if name in axis_name)
    if axis_name != in_order:
      # jax 0.10 would permute in mesh order all the same.
      raise ValueError(
        f"axis_name must be one axis, or a tuple in mesh order, {in_order}, "
        f"got {axis_name!r}"
      )
  return size


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


def empty_like_varying(
  shape: tuple[int, ...], dtype, like: jax.Array
) -> jax.Array:
  """An uninitialised array that varies over the same axes as `like`."""
  return vary_over(lax.empty(shape, dtype), varying_axes(like))
