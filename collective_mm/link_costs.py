"""A chip's costs where its place in the slice does not matter.

Each transfer has links to itself, except from those that join the same devices
in the same way; how routes cross on a torus is `profiling.slice_costs`'s.
"""

import collections

from collective_mm.chips import ChipLink
from collective_mm.hlo import Instruction
from collective_mm.hlo_flow import Transfer


class LinkCosts:
  """Costs for `walk.Walk`; without a chip, nothing takes any time.

  Attributes:
    chip: the chip, or None.
  """

  def __init__(self, chip: ChipLink | None):
    self.chip = chip if chip is not None and chip.is_timed else None

  def compute(self, line: Instruction) -> float:
    """Seconds of `line` by the compiler's cycles."""
    if self.chip is None or line.cycles is None:
      return 0.0
    return line.cycles / self.chip.clock_hz

  def move(self, nbytes: int) -> float:
    """Copies inside a device are taken to hide."""
    return 0.0

  def alone(self, transfer: Transfer) -> float:
    """Seconds of `transfer`: one link for a permute, two for the others."""
    if self.chip is None:
      return 0.0
    latency, bandwidth = (
      self.chip.permute_latency_s,
      self.chip.permute_bandwidth,
    )
    if transfer.pairs is not None:
      return latency + transfer.nbytes / bandwidth
    size = transfer.groups.shape[1]
    times = 2 if transfer.kind == "all-reduce" else 1
    moved = transfer.nbytes * (size - 1) / size
    return times * (latency + moved / (2 * bandwidth))

  def rates(self, transfers: tuple[Transfer, ...]) -> tuple[float, ...]:
    """The speed of each transfer: those alike have the links in turns."""
    keys = [
      (t.groups if t.pairs is None else t.pairs).tobytes() for t in transfers
    ]
    count = collections.Counter(keys)
    return tuple(1 / count[key] for key in keys)
