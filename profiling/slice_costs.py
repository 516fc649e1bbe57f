"""How long compute and transfers take on a TPU slice, for `collective_mm.walk`.

Compute takes the cycles that the TPU compiler estimated. A permute takes its
latency plus its bytes, times the routes on the busiest directed link, over the
bandwidth of a link. A gather or scatter of `b` bytes over `n` devices takes
`b (n - 1) / n` over the bandwidth of the links that a member has inside its
group: two for each torus dim that the group goes all round, one for each that
it does not, shared with the groups that interleave along the dim. An all-reduce
takes both. Transfers that travel together and share a link each slow down to
their share of the busiest one.
"""

import re

import numpy as np

from collective_mm import hlo_flow
from collective_mm.hlo import Instruction, Module
from collective_mm.hlo_flow import Transfer
from profiling.peaks import Chip
from profiling.torus import Torus

# Custom calls that the compiler puts in and that do nothing at run time.
_FREE_TARGETS = (
  *("AllocateBuffer", "ConcatBitcast", "Sharding"),
  # A SparseCore that is told of a collective to come.
  *("PrepareAsyncCallStart", "PrepareAsyncCallDone"),
)
_CONTROL = ("while", "call", "conditional")
_EXCHANGES = ("all-to-all", "ragged-all-to-all")
# A cost estimate has no cycles for what is not a product. The bundles that the
# compiler makes of our attention kernel for v4, one a cycle, come to 0.25 of
# the peak in forward and 0.36 in backward (`docs/performance.md`).
KERNEL_EFFICIENCY = 0.25
# Below this a line without cycles is scalar bookkeeping.
_SMALL = 1024


class SliceCosts:
  """The costs of one slice.

  Attributes:
    chip: the chip's limits.
    torus: the slice.
    places: torus coordinates of each partition, `[partitions, dims]`.
  """

  def __init__(self, chip: Chip, torus: Torus, places: np.ndarray):
    self.chip, self.torus, self.places = chip, torus, places
    self._uses: dict[tuple, tuple[float, np.ndarray, np.ndarray]] = {}
    self._shares: dict[tuple, tuple[float, ...]] = {}

  def compute(self, line: Instruction) -> float:
    """Seconds of `line`; a line without cycles moves its result twice."""
    if line.cycles is not None:
      return line.cycles / self.chip.clock_hz
    if line.opcode == "custom-call":
      return kernel_seconds(line, self.chip) or 0.0
    if not is_guessed(line):
      return 0.0
    return 2 * _hbm_bytes(line) / self.chip.hbm_bandwidth

  def move(self, nbytes: int) -> float:
    """Seconds of a copy of `nbytes` at the bandwidth of the HBM."""
    return nbytes / self.chip.hbm_bandwidth

  def alone(self, transfer: Transfer) -> float:
    """Seconds of `transfer` with the links to itself."""
    return self._use(transfer)[0]

  def rates(self, transfers: tuple[Transfer, ...]) -> tuple[float, ...]:
    """The speed of each of `transfers` when all travel at once."""
    if len(transfers) < 2:
      return (1.0,) * len(transfers)
    uses = [self._use(transfer) for transfer in transfers]
    key = tuple(id(links) for _, links, _ in uses)
    if key not in self._shares:
      total = np.zeros(self.torus.links)
      for _, links, share in uses:
        total[links] += share
      self._shares[key] = tuple(
        1 / float(max(total[links].max(initial=1.0), 1.0))
        for _, links, _ in uses
      )
    return self._shares[key]

  def directions(self, transfer: Transfer) -> tuple[str, ...]:
    """The directions of all links that `transfer` uses, such as "x+"."""
    links = self._use(transfer)[1]
    ways = np.unique(self.torus.link_dims()[links] * 2 + links % 2)
    return tuple("xyz"[way // 2] + "+-"[way % 2] for way in ways.tolist())

  def loads(self, transfer: Transfer) -> np.ndarray:
    """Seconds for which `transfer` alone keeps each directed link busy."""
    seconds, links, share = self._use(transfer)
    busy = np.zeros(self.torus.links)
    busy[links] = seconds * share
    return busy

  def _use(self, transfer: Transfer) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds alone, the directed links and the part of each that is used."""
    members = transfer.groups if transfer.pairs is None else transfer.pairs
    key = transfer.kind, transfer.nbytes, members.tobytes()
    if key not in self._uses:
      self._uses[key] = self._new_use(transfer)
    return self._uses[key]

  def _new_use(self, transfer: Transfer):
    latency, bandwidth = (
      self.chip.permute_latency_s,
      self.chip.permute_bandwidth,
    )
    if transfer.pairs is not None or transfer.kind in _EXCHANGES:
      pairs, nbytes = transfer.pairs, transfer.nbytes
      if pairs is None:
        size = transfer.groups.shape[1]
        to, of = np.meshgrid(np.arange(size), np.arange(size))
        pairs = transfer.groups[:, [of.ravel(), to.ravel()]]
        pairs = pairs.swapaxes(1, 2).reshape(-1, 2)
        nbytes /= size
      loads = self.torus.loads(*self.places[pairs.T])
      links = np.flatnonzero(loads)
      most = int(loads.max())
      seconds = latency + nbytes * most / bandwidth
      return seconds, links, loads[links] / max(most, 1)
    size = transfer.groups.shape[1]
    times = 2 if transfer.kind == "all-reduce" else 1
    nbytes = times * transfer.nbytes * (size - 1) / size
    box = self._box(transfer.groups[0])
    if box is None:
      # A two-way ring through the members as they are listed.
      after = np.roll(transfer.groups, -1, axis=1)
      pairs = np.stack([transfer.groups.ravel(), after.ravel()])
      loads = self.torus.loads(*self.places[pairs])
      loads = loads + self.torus.loads(*self.places[pairs[::-1]])
      links = np.flatnonzero(loads)
      most = max(int(loads.max()), 1)
      seconds = times * latency + nbytes / 2 * most / bandwidth
      return seconds, links, loads[links] / most
    ways, dims = box
    seconds = times * latency * len(dims)
    seconds += nbytes / (ways * bandwidth) if ways else 0.0
    links = np.flatnonzero(np.isin(self.torus.link_dims(), dims))
    return seconds, links, np.ones(len(links))

  def _box(self, group: np.ndarray) -> tuple[float, list[int]] | None:
    """Links that a member of `group` has inside it, and the dims they run in.

    A dim that the group does not go all round has a first and a last member
    with one link each, and the slowest member sets the pace. Members that lie
    `stride` apart leave the chips between them to other groups that want the
    same links at the same time. None if the group is not a box of chips.
    """
    ways, dims, chips = 0.0, [], 1
    for dim, length in enumerate(self.torus.shape):
      spots = np.unique(self.places[group, dim])
      chips *= len(spots)
      if len(spots) > 1:
        stride = int(np.diff(spots).min())
        around = self.torus.wraps[dim] and len(spots) * stride == length
        ways += (2 if around else 1) / stride
        dims.append(dim)
    is_box = chips == len(np.unique(self.places[group], axis=0))
    return (ways, dims) if is_box else None


def is_guessed(line: Instruction) -> bool:
  """Whether the cost of `line` is a guess from the bytes of its result."""
  if line.cycles is not None or line.opcode in (*_CONTROL, "custom-call"):
    return False
  return _hbm_bytes(line) >= _SMALL


def kernel_seconds(line: Instruction, chip: Chip) -> float | None:
  """Seconds of a custom call, by its cost estimate; None if it has none.

  A kernel is taken to reach `KERNEL_EFFICIENCY` of the peak or the whole
  bandwidth of the HBM, whichever takes longer.
  """
  if line.target in _FREE_TARGETS:
    return 0.0
  found = re.search(r'"cost_estimate":\{([^}]*)\}', line.attributes)
  cost = dict(re.findall(r'"(\w+)":"(\d+)"', found[1])) if found else {}
  seconds = max(
    int(cost.get("flops", 0))
    / (KERNEL_EFFICIENCY * chip.bf16_flops_per_device),
    int(cost.get("bytes_accessed", 0)) / chip.hbm_bandwidth,
  )
  return seconds or None


def unknown_lines(module: Module, chip: Chip) -> list[str]:
  """Lines of `module` whose cost nothing tells, each with what it is."""
  unknown = []
  for computation in sorted(_walked(module, module.entry.name, set())):
    for step in hlo_flow.steps(module, module.computations[computation]):
      line = step.line
      if (step.does == "starts" and step.transfer is None) or (
        line.opcode in ("infeed", "outfeed")
        or (
          line.opcode == "custom-call"
          and line.cycles is None
          and kernel_seconds(line, chip) is None
        )
      ):
        what = line.target or line.opcode
        unknown.append(f"{line.name} ({what} {line.op_name})")
  return unknown


def _walked(module: Module, name: str, seen: set[str]) -> set[str]:
  """Names of the computations that a walk comes through."""
  if name not in seen:
    seen.add(name)
    for line in module.computations[name].instructions:
      if line.opcode in _CONTROL:
        for called in line.called.values():
          for inner in called:
            _walked(module, inner, seen)
  return seen


def _hbm_bytes(line: Instruction) -> int:
  if line.opcode in hlo_flow.COLLECTIVES:
    return 0
  return sum(array.nbytes for array in line.arrays if array.space == 0)
