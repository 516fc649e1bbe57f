"""The rings along torus dims that a mesh axis is made of."""

import math
from typing import Any, NamedTuple

import numpy as np

from collective_mm.placement import on_torus, wraps


class AxisRing(NamedTuple):
  """Rings of `size` devices, with `hops` links from one to the next."""

  size: int
  hops: int = 1


def axis_rings(mesh: Any, axis_name: str) -> tuple[AxisRing, ...]:
  """The rings along torus dims that a mesh axis is made of, outermost first.

  An axis that runs through a torus of 4 x 8 chips row by row is rings of eight
  within a ring of four, sizes (4, 8). A run of 2^n chips that does not close,
  or of more than four v5e, is n times pairs: the TPU compiler makes sends along
  it block, but for swaps. An axis off such a lattice is one ring.

  Args:
    mesh: a mesh; devices without coordinates (CPU, GPU) make one ring.
    axis_name: one of its axes.

  Returns:
    The rings, whose sizes multiply to that of the axis; for `prefetch_scan`.

  Raises:
    ValueError: if the mesh lacks the axis.

  Example (eight devices):
    >>> from collective_mm import make_mesh
    >>> axis_rings(make_mesh(data=8, model=1), "data")
    (AxisRing(size=8, hops=1),)
  """
  grid = np.moveaxis(mesh.devices, mesh.axis_names.index(axis_name), 0)
  devices = grid.reshape(len(grid), -1)[:, 0]
  whole = (AxisRing(len(devices)),)
  if len(devices) == 1 or not on_torus(devices):
    return whole
  spots = np.array([(*d.coords, d.core_on_chip) for d in devices])
  chips = np.array([d.coords for d in mesh.devices.flat])
  sides = np.ptp(chips, axis=0) + 1
  around = np.array(wraps(devices[0].device_kind, sides.tolist()))
  rings, stride = [], 1
  while stride < len(devices):
    hop, size = spots[stride] - spots[0], 1
    while size * stride < len(devices) and np.array_equal(
      spots[size * stride] - spots[0], size * hop
    ):
      size += 1
    links = int(np.abs(hop[:-1]).sum())
    closes = (size * np.abs(hop[:-1]) == sides) & around
    pairs, kind = size.bit_length() - 1, devices[0].device_kind
    swaps = not closes.any() or (size > 4 and kind == "TPU v5 lite")
    if not swaps or size != 1 << pairs:
      rings = [AxisRing(size, links), *rings]
    else:
      rings = [AxisRing(2, links << i) for i in range(pairs)][::-1] + rings
    stride *= size
  # Every device must be where these steps lead.
  if stride != len(devices):
    return whole
  sizes = [ring.size for ring in rings]
  places = np.stack(np.unravel_index(np.arange(stride), sizes), axis=-1)
  strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
  hops = spots[strides] - spots[0]
  return (
    tuple(rings) if np.array_equal(spots, spots[0] + places @ hops) else whole
  )
