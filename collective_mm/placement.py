"""Which device stands where in a mesh: model rings on neighbouring chips.

The chips of a TPU slice fill a box of two or three dims; links join chips that
differ by one in one dim, and in some slices the ends of a dim (it *wraps*). We
cut the box into equal blocks and lay one model ring in each, along a
Hamiltonian cycle of the block: then every shift of the ring takes one hop, and
over a link of its own. On request blocks are of whole dims: the data axis then
has the others to itself, but along an open line a shift takes two hops.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

Chip = tuple[int, ...]

_BUILT_OF_CUBES = ("TPU v4", "TPU v5", "TPU v5p", "TPU7", "TPU7x")
_POD_SIDE = {
  "TPU v2": 16,
  "TPU v3": 32,
  "TPU v5 lite": 16,
  "TPU v5e": 16,
  "TPU v6 lite": 16,
  "TPU v6e": 16,
}


def wraps(device_kind: str, shape: Sequence[int]) -> tuple[bool, ...]:
  """Which dims of a slice have a link from their last chip to their first.

  v4, v5p and TPU7x slices are put together from cubes of 4x4x4 chips: those of
  whole cubes wrap in every dim, smaller ones in none (Jouppi et al. 2023, "TPU
  v4", section 2). The others are cut from one torus of 16x16 chips (v2, v5e,
  v6e) or 32x32 (v3; Jouppi et al. 2020, "A domain-specific supercomputer"),
  and a dim wraps if the slice spans it. Where MaxText's
  `accelerator_to_spec_map.py` lists a slice, its `wrap` says the same. We take
  a kind that we do not know not to wrap.

  Args:
    device_kind: as in `jax.Device.device_kind`.
    shape: chips along each dim of the whole slice.

  Example:
    >>> wraps("TPU v4", (4, 4, 8)), wraps("TPU v4", (2, 4, 4))
    ((True, True, True), (False, False, False))
    >>> wraps("TPU v5 lite", (8, 16))
    (False, True)
  """
  if device_kind in _BUILT_OF_CUBES:
    return (all(side % 4 == 0 for side in shape),) * len(shape)
  return tuple(side == _POD_SIDE.get(device_kind) for side in shape)


def hops(
  a: jax.typing.ArrayLike,
  b: jax.typing.ArrayLike,
  shape: Sequence[int],
  wrapped: Sequence[bool],
) -> np.ndarray:
  """Links on a shortest way from chips `a` to chips `b`; 0 within a chip.

  Args:
    a: `[..., dims]` coordinates, from 0.
    b: `[..., dims]` coordinates, from 0.
    shape: chips along each dim of the slice.
    wrapped: the dims whose ends are linked, as `wraps` says.

  Returns:
    `[...]` whole numbers.

  Example:
    >>> int(hops((0, 0), (3, 1), (4, 4), (True, False)))
    2
  """
  apart = np.abs(np.subtract(a, b))
  other_way = np.where(wrapped, np.subtract(shape, apart), apart)
  return np.minimum(apart, other_way).sum(axis=-1)


def ring_order(
  devices: Sequence[Any], model: int, *, whole_dims: bool = False
) -> list[list[Any]]:
  """Splits `devices` into rings of `model`, each on neighbouring chips.

  Devices without `coords` (CPU, GPU) keep their order, process by process: a
  ring stays in one process if `model` divides the devices of each.

  With `coords` (TPU) every ring fills an equal block of its slice, and its
  consecutive devices, the last and the first too, are at most one hop apart: 2
  are a pair, 4 a 2x2 square, 8 a 2x2x2 cube or 2x4; or all of a dim that wraps,
  which leaves the data axis the others whole, so that the two share no link.
  The cores of a chip are no hop apart. Two kinds of ring have no such cycle and
  take two hops where they must: an odd number of chips of one core, as a link
  joins a chip of even x + y + z to one of odd, and chips that lie in an open
  line, which is folded as 0, 2, 4, 3, 1.

  Rings follow each other block by block, x fastest as in device ids, and slice
  by slice: the devices at one place of the ring form a lattice of equal
  strides in each slice, along which the data axis runs.

  Args:
    devices: whole slices of `jax.Device`, or of anything with `coords`,
      `device_kind` and `process_index`, and where they differ `core_on_chip`
      and `slice_index`.
    model: devices of a ring.
    whole_dims: whether a ring takes whole dims of its slice even if it is an
      open line, so that the data axis shares no link with it.

  Returns:
    A list for each ring, in the order of the data axis.

  Raises:
    ValueError: if `model` does not divide the devices of every TPU slice, or no
      whole dims of one have that many chips and `whole_dims` asks for them.

  Warns:
    UserWarning: once, if the devices of a slice do not fill a box and a shift
      takes more than a hop; rings then follow one line through all chips.
  """
  if not on_torus(devices):
    return _cut(sorted(devices, key=lambda d: d.process_index), model)
  slices: dict[int, list[Any]] = {}
  for device in devices:
    slices.setdefault(_slice_index(device), []).append(device)
  rings, longest = [], 0
  for index, members in sorted(slices.items()):
    if len(members) % model:
      raise ValueError(
        f"model must divide the number of devices of every slice, as a ring "
        f"stays in its slice; slice {index} has {len(members)}, got "
        f"model={model}"
      )
    chips = _Slice.of(members)
    order = _tile(chips, model, whole_dims)
    if order is None and whole_dims:
      raise ValueError(
        f"model must be the chips of whole dims of every slice, times their "
        f"cores, for whole_dims; slice {index} has "
        f"{'x'.join(map(str, chips.shape[::-1]))} chips, got model={model}"
      )
    if order is None:
      order = _along_a_line(chips, model)
      longest = max(longest, int(chips.ring_hops(order).max()))
    rings += [[chips.devices[i] for i in ring] for ring in order]
  if longest > 1:
    warnings.warn(
      f"the devices do not fill a box of chips, so that the model axis of "
      f"{model} is not a ring of neighbours: its longest shift takes {longest} "
      f"hops",
      stacklevel=3,
    )
  return rings


def longest_hop(
  mesh: jax.sharding.Mesh, axis_name: str | tuple[str, ...]
) -> int:
  """Hops of the longest shift by one place along `axis_name`, round the ring.

  Args:
    mesh: a mesh of whole slices.
    axis_name: a mesh axis, or a tuple of axes in mesh order.

  Returns:
    0 for a ring inside a chip; 1 for devices without coordinates, which we
    take to be joined by a switch.

  Raises:
    ValueError: if the mesh lacks the axis, or the axis leaves a slice.
  """
  names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
  if not set(names) <= set(mesh.axis_names):
    raise ValueError(
      f"axis_name must be axes of mesh, {mesh.axis_names}, got {axis_name!r}"
    )
  dims = [mesh.axis_names.index(name) for name in names]
  size = math.prod(mesh.devices.shape[dim] for dim in dims)
  rings = np.moveaxis(mesh.devices, dims, range(-len(dims), 0))
  rings = rings.reshape(-1, size)
  if not on_torus(rings.flat):
    return int(size > 1)
  by_slice: dict[int, list[Any]] = {}
  for ring in rings:
    index = {_slice_index(d) for d in ring}
    if len(index) > 1:
      raise ValueError(
        f"axis {axis_name!r} must stay in one slice to be counted in hops, got "
        f"a ring over slices {sorted(index)}"
      )
    by_slice.setdefault(index.pop(), []).extend(ring)
  longest = 0
  for members in by_slice.values():
    chips = _Slice.of(members)
    place = {id(d): i for i, d in enumerate(chips.devices)}
    order = np.reshape([place[id(d)] for d in members], (-1, size))
    longest = max(longest, int(chips.ring_hops(order).max()))
  return longest


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Slice:
  """Devices of one slice, chip by chip with x fastest; dims are (z, y, x)."""

  devices: list[Any]
  coords: np.ndarray  # [devices, dims], from 0
  shape: tuple[int, ...]
  wrapped: tuple[bool, ...]

  @classmethod
  def of(cls, devices: Sequence[Any]) -> "_Slice":
    coords = np.array([tuple(d.coords)[::-1] for d in devices])
    coords -= coords.min(axis=0)
    cores = [getattr(d, "core_on_chip", 0) for d in devices]
    order = np.lexsort((cores, *coords.T[::-1]))
    shape = tuple(int(side) + 1 for side in coords.max(axis=0))
    return cls(
      devices=[devices[i] for i in order],
      coords=coords[order],
      shape=shape,
      wrapped=wraps(devices[0].device_kind, shape),
    )

  def ring_hops(self, order: jax.typing.ArrayLike) -> np.ndarray:
    """Hops of each shift in rings `order[..., model]` of device positions."""
    ring = self.coords[order]
    return hops(ring, np.roll(ring, -1, axis=-2), self.shape, self.wrapped)


def _tile(chips: _Slice, model: int, whole_dims: bool) -> np.ndarray | None:
  """Positions `[rings, model]` by equal blocks.

  None if a chip is missing, or if there is no block of `whole_dims`.
  """
  cores = len(chips.devices) // math.prod(chips.shape)
  every_chip = np.indices(chips.shape).reshape(len(chips.shape), -1).T
  if not np.array_equal(chips.coords, every_chip.repeat(cores, axis=0)):
    return None
  # Cores are one more dim, of no hops. What `model` takes of it divides it,
  # and then the rest of `model` divides the number of chips.
  box = (*chips.shape, cores)
  cores_used = math.gcd(cores, model)
  process = np.array([d.process_index for d in chips.devices]).reshape(box)

  def positions(cells: np.ndarray) -> np.ndarray:
    return np.ravel_multi_index(tuple(np.moveaxis(cells, -1, 0)), box)

  def cost(candidate: tuple[Chip, np.ndarray]):
    block, ring = candidate
    shifts = chips.ring_hops(positions(ring))
    in_block = np.unique(process[tuple(slice(side) for side in block)])
    # Along a dim that a block fills in part the data axis wants the same links.
    shared = sum(1 < b < side for b, side in zip(block, box, strict=True))
    # The least `block` is the flattest, which leaves whole dims of links to the
    # data axis.
    return shifts.max(), shifts.sum(), shared, max(block), in_block.size, block

  candidates = [
    ((*block, cores_used), np.array(ring))
    for block in _blocks(chips.shape, model // cores_used)
    if not whole_dims or _is_whole(block, chips.shape)
    for ring in _rings(block, cores_used)
  ]
  if not candidates:
    return None
  block, ring = min(candidates, key=cost)
  counts = [side // b for side, b in zip(box, block, strict=True)]
  corners = np.indices(counts).reshape(len(box), -1).T * block
  return positions(corners[:, None] + ring)


def _along_a_line(chips: _Slice, model: int) -> np.ndarray:
  """Positions `[rings, model]`: cuts of a line through all chips there are."""
  rank = {chip: i for i, chip in enumerate(_line(chips.shape))}
  order = sorted(
    range(len(chips.devices)), key=lambda i: rank[tuple(chips.coords[i])]
  )
  return np.array(
    [
      min(cut, _fold(cut), key=lambda ring: chips.ring_hops(ring).max())
      for cut in _cut(order, model)
    ]
  )


def _blocks(shape: Sequence[int], size: int) -> Iterator[Chip]:
  """Blocks of `size` chips that tile `shape`."""
  if not shape:
    if size == 1:
      yield ()
    return
  for side in range(1, shape[0] + 1):
    if shape[0] % side == 0 and size % side == 0:
      for rest in _blocks(shape[1:], size // side):
        yield (side, *rest)


def _is_whole(block: Chip, shape: Sequence[int]) -> bool:
  return all(b in (1, side) for b, side in zip(block, shape, strict=True))


def _rings(block: Chip, cores: int) -> Iterator[list[Chip]]:
  """Orders, of all cores of a block, that may make a short ring."""

  def core_by_core(chips: list[Chip]) -> list[Chip]:
    return [(*chip, core) for chip in chips for core in range(cores)]

  line = core_by_core(_line(block))
  yield line
  # On two cores a chip this goes out on one and comes back on the other.
  yield _fold(line)
  if sum(side > 1 for side in block) > 1:
    yield core_by_core(_loop(block))


def _cut(items: list, size: int) -> list[list]:
  return [items[i : i + size] for i in range(0, len(items), size)]


def _fold(line: list) -> list:
  """Closes a line into a ring whose neighbours are at most two apart in it."""
  return line[::2] + line[1::2][::-1]


def _line(shape: Sequence[int]) -> list[Chip]:
  """A Hamiltonian path of a box, one hop a step, last dim fastest."""
  if not shape:
    return [()]
  rest = _line(shape[1:])
  return [
    (i, *chip)
    for i in range(shape[0])
    for chip in (rest[::-1] if i % 2 else rest)
  ]


def _loop(block: Chip) -> list[Chip]:
  """A Hamiltonian cycle of a block with two dims or more longer than one.

  The chips are a table: rows along the first such dim, columns along a line
  through the others. We snake down the rows, all but column 0, which is the
  way back. Of an odd number of rows the last two are taken column by column;
  if the columns are odd too, the step from there to column 0 is of two hops.
  """
  along = next(i for i, side in enumerate(block) if side > 1)
  columns = _line(block[:along] + block[along + 1 :])
  rows, width = block[along], len(columns)
  cells = [(0, 0)]
  snaked = rows - 2 if rows % 2 else rows
  for i in range(snaked):
    there = range(1, width)
    cells += [(i, j) for j in (reversed(there) if i % 2 else there)]
  if snaked < rows:
    for n, j in enumerate(range(width - 1, 0, -1)):
      pair = [(rows - 2, j), (rows - 1, j)]
      cells += pair[::-1] if n % 2 else pair
  cells += [(i, 0) for i in range(rows - 1, 0, -1)]
  return [(*columns[j][:along], i, *columns[j][along:]) for i, j in cells]


def on_torus(devices: Iterable[Any]) -> bool:
  """Whether all devices have coordinates, as those of TPUs do."""
  return all(getattr(d, "coords", None) is not None for d in devices)


def _slice_index(device: Any) -> int:
  return getattr(device, "slice_index", None) or 0
