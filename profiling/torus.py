"""Routes over a torus of chips, and how much each directed link carries."""

import dataclasses

import numpy as np

from collective_mm import placement
from collective_mm.chips import ChipLink


@dataclasses.dataclass(frozen=True)
class Torus:
  """A grid of chips; a dim that wraps also links its last chip to its first.

  A directed link is numbered `(chip * dims + dim) * 2 + direction`, with the
  chip that it leaves numbered in row-major order and direction 0 upward.

  Attributes:
    shape: chips along each dim.
    wraps: for each dim, whether it wraps.
  """

  shape: tuple[int, ...]
  wraps: tuple[bool, ...]

  @property
  def links(self) -> int:
    """How many directed link numbers there are."""
    return int(np.prod(self.shape)) * len(self.shape) * 2

  def link_dims(self) -> np.ndarray:
    """The dim along which each directed link runs, `[links]`."""
    return np.arange(self.links) // 2 % len(self.shape)

  def loads(self, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Counts how many routes use each directed link.

    Routes are dimension-ordered (all of the first dim, then the next) and
    shortest; a route of exactly half way round goes up.

    Args:
      sources: coordinates `[routes, dims]`.
      targets: coordinates `[routes, dims]`.

    Returns:
      `[links]` counts.
    """
    dims = len(self.shape)
    at, targets = np.array(sources), np.asarray(targets)
    loads = np.zeros(self.links, np.int64)
    for dim, size in enumerate(self.shape):
      way = targets[:, dim] - at[:, dim]
      if self.wraps[dim]:
        way = (way + (size - 1) // 2) % size - (size - 1) // 2
      step = np.sign(way)
      for hop in range(int(np.abs(way).max(initial=0))):
        moving = np.abs(way) > hop
        chips = np.ravel_multi_index(at[moving].T, self.shape)
        links = (chips * dims + dim) * 2 + (step[moving] < 0)
        loads += np.bincount(links, minlength=self.links)
        at[moving, dim] = (at[moving, dim] + step[moving]) % size
    return loads


def torus_of(chip: ChipLink, shape: tuple[int, ...]) -> Torus:
  """A torus of `shape`, wrapped as a slice of `chip` is."""
  return Torus(shape=shape, wraps=placement.wraps(chip.kind, shape))
