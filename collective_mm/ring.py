"""Who holds which chunk on which ring step, and how it moves on.

A ring of `t` devices passes chunks to neighbours. A *lane* is a run of rows of
every chunk that travels in one direction: a one-way ring has one lane, a
two-way ring two with half of the rows each, and finer pipelining has more.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import jax
from jax import lax

from collective_mm.mesh import AxisName


@dataclasses.dataclass(frozen=True)
class Lane:
  """Rows `start:stop` of every chunk, travelling `direction` (+1 or -1)."""

  direction: int
  start: int
  stop: int


def split_lanes(
  rows: int, *, size: int, two_way: bool, chunks: int, least: int = 1
) -> tuple[Lane, ...]:
  """Deals `rows` to lanes: `chunks` for each direction that the ring uses.

  Both neighbours of a ring of two are the same device, so that it has one
  direction. Every lane has at least one row.

  Args:
    rows: rows of one chunk.
    size: devices on the ring, `t`.
    two_way: use both directions.
    chunks: lanes for each direction.
    least: lanes in all, at least, where there are rows for them.

  Example:
    >>> split_lanes(5, size=4, two_way=True, chunks=1)
    (Lane(direction=1, start=0, stop=3), Lane(direction=-1, start=3, stop=5))
  """
  directions = (1, -1) if two_way and size > 2 else (1,)
  count = min(max(len(directions) * chunks, least), rows)
  # Ceiling bounds give every lane but the last ones the same, largest share.
  bounds = [-(-rows * i // count) for i in range(count + 1)]
  return tuple(
    Lane(directions[i % len(directions)], start, stop)
    for i, (start, stop) in enumerate(itertools.pairwise(bounds))
  )


@dataclasses.dataclass(frozen=True)
class Part:
  """Rings within an axis: `size` devices each, `stride` apart.

  An axis of 16 that goes 4 x 4 over a torus is rings `Part(4, 1)`, of
  neighbours along it, and rings `Part(4, 4)` across those. From one device to
  the next are `hops` links.
  """

  size: int
  stride: int
  hops: int = 1

  def index(self, axis_name: AxisName) -> jax.Array:
    """This device's place in its ring."""
    index = lax.axis_index(axis_name)
    return lax.rem(lax.div(index, self.stride), self.size)


def shift(
  x: jax.Array,
  axis_name: AxisName,
  direction: int,
  part: Part | None = None,
) -> jax.Array:
  """Sends `x` to the device `direction` places on: one `ppermute`."""
  devices = lax.axis_size(axis_name)
  part = part or Part(devices, 1)
  pairs = []
  for d in range(devices):
    place = d // part.stride % part.size
    after = (place + direction) % part.size
    pairs.append((d, d + (after - place) * part.stride))
  return lax.ppermute(x, axis_name, pairs)


def gathered(
  x: jax.Array,
  lanes: tuple[Lane, ...],
  axis_name: AxisName,
  dim: int = 0,
  part: Part | None = None,
) -> Iterator[tuple[jax.Array, Lane, jax.Array]]:
  """Yields `(owner, lane, piece)` for every piece of the gathered `x`.

  On ring step `i` device `d` holds, in each lane, the piece that began on
  device `owner = (d - i * lane.direction) % t`. The next shift is issued
  before a piece is yielded, so that it travels beside what is done with it.

  Args:
    x: this device's chunk.
    lanes: from `split_lanes(x.shape[dim], ...)`.
    axis_name: mesh axis of the ring.
    dim: the dim of `x` that the lanes divide.
    part: the ring in the axis; all of it if not given.
  """
  part = part or Part(lax.axis_size(axis_name), 1)
  size, index = part.size, part.index(axis_name)
  held = [
    lax.slice_in_dim(x, lane.start, lane.stop, axis=dim) for lane in lanes
  ]
  for step in range(size):
    arriving = []
    if step < size - 1:
      arriving = [
        shift(piece, axis_name, lane.direction, part)
        for piece, lane in zip(held, lanes, strict=True)
      ]
    for piece, lane in zip(held, lanes, strict=True):
      yield (index - step * lane.direction) % size, lane, piece
    held = arriving


def scattered(
  add_share: Callable[[jax.Array, Lane, jax.Array | None], jax.Array],
  lanes: tuple[Lane, ...],
  axis_name: AxisName,
  *,
  wire_dtype: jax.typing.DTypeLike,
  part: Part | None = None,
) -> list[jax.Array]:
  """Sums one share per device over the ring, each piece to its owner.

  On ring step `i` device `d` adds its own share to the sum that will end on
  device `owner = (d - (i + 1) * lane.direction) % t`, then sends it on; on the
  last step the owner is `d` itself.

  Args:
    add_share: `add_share(owner, lane, arrived)` is this device's share of a
      piece plus the sum that arrived, which is None on the first step.
    lanes: from `split_lanes`.
    axis_name: mesh axis of the ring.
    wire_dtype: the dtype in which sums travel.
    part: the ring in the axis; all of it if not given.

  Returns:
    This device's reduced piece of each lane, as `add_share` made it.
  """
  part = part or Part(lax.axis_size(axis_name), 1)
  size, index = part.size, part.index(axis_name)
  arrived: list[jax.Array | None] = [None] * len(lanes)
  for step in range(size):
    sums = [
      add_share((index - (step + 1) * lane.direction) % size, lane, a)
      for lane, a in zip(lanes, arrived, strict=True)
    ]
    if step < size - 1:
      arrived = [
        shift(s.astype(wire_dtype), axis_name, lane.direction, part)
        for s, lane in zip(sums, lanes, strict=True)
      ]
  return sums
