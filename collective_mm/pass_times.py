"""How long an op's passes take under each schedule: the model of the gate.

A ring step takes as long as its slowest part: its products with the copies
beside them, its sends over a link, or, where a sum must arrive before the
product that it is added to, that send and product one after the other. What a
pass takes besides is its first or last product, and the compiler's collective
where there is no ring. `docs/gate.md` compares the model with replays.
"""

import dataclasses
import functools
import math

from collective_mm import placement
from collective_mm.chips import ChipLink, find_chip

SCHEDULES = ("unoverlapped", "one_way", "two_way", "async")

# What we fitted to replays of programs compiled by libtpu 0.0.42.1.
_PRODUCT_S = 2e-6  # what a product takes beside its FLOPs
_LEAST_ROWS = 64  # rows under which a product takes no less time
_TILE = 128  # features come in tiles of this: a side of the MXU
_COPY = 2.5  # time of a compiled copy over its bytes at the HBM bandwidth
_ACCUMULATE = 0.6  # part of a float32 sum's traffic that products do not hide
_UNPAD = 1.5  # copies of its result that end a compiled reduce-scatter
_HALO = 1.8e6  # bytes of a permute before those
_BARE = 0.9  # part of its sends that a ring does not hide out of order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Habits:
  """What the TPU compiler makes of the ops for one chip.

  Attributes:
    efficiency: FLOP/s of a large bf16 product over the peak, by the compiler's
      own estimate.
    streamed: the same where the weights do not stay in VMEM.
    adds: time of such a product that is added to a sum that arrived, over one
      that is not.
    gathers_async: it makes all-gathers asynchronous unasked.
    follows_rings: it orders sends beside products unasked. If it does not, the
      sends of a ring go first and hide little, but for the forward gather's.
    hides_dy: a program that gathers `dy` asynchronously for two large products
      is no slower than one with a ring, as other work hides the gather.
  """

  efficiency: float = 0.95
  streamed: float = 0.9
  adds: float = 1.1
  gathers_async: bool = False
  follows_rings: bool = False
  hides_dy: bool = False


_HABITS = {
  "v4": Habits(streamed=0.95, adds=1.02),
  "v5e": Habits(
    efficiency=0.96,
    streamed=0.96,
    adds=1.02,
    gathers_async=True,
    follows_rings=True,
  ),
  "v5p": Habits(streamed=0.91, hides_dy=True),
  "v6e": Habits(efficiency=0.87, streamed=0.7, adds=1.25, hides_dy=True),
}


def sums_everywhere(chip: str, size: int, devices: int) -> bool:
  """Whether the compiler makes an all-reduce of each device's reduction.

  It moves twice the bytes then. libtpu 0.0.42.1 does so where the sum is over
  all of a v4 or v5p slice from 2x2x2 on, or of a square v5e or v6e slice from
  4x4 on.

  Args:
    chip: a chip's short name or `device_kind`.
    size: devices over which is summed.
    devices: of the whole mesh.
  """
  found = find_chip(chip)
  if found is None or size < devices:
    return False
  chips = size // found.devices
  if found.torus_dims == 3:
    return chips >= 8
  return chips >= 16 and math.isqrt(chips) ** 2 == chips


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ring:
  """Seconds of a ring, of a step's products, and of the sends beside those."""

  total_s: float
  products_s: float
  send_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassTimes:
  """Seconds of the passes of an op whose product is `x[R, K] @ w[K, F]`.

  `all_gather_matmul` gathers `x`, `matmul_reduce_scatter` scatters the result.

  Attributes:
    chip: the chip, with links.
    rows: `R`, rows of the whole product.
    inner: `K`, contracted features of one device.
    outer: `F`, output features of one device.
    size: devices on the ring, `t`.
    by_rows: whether rows travel, else features.
    itemsize: bytes of a number.
    wire_itemsize: bytes of a number of a partial sum that travels in forward.
    chunks: lanes for each direction of a ring.
    hops: links that a shift of the ring takes, one after the other.
    all_reduces: the compiler makes an all-reduce, which moves twice the bytes,
      of an unoverlapped reduction; `sums_everywhere` says where.
    async_options: compiled with `gate.compiler_options`.
    gathers_fused: those make gathers asynchronous; see `gate.fuses_gathers`.
  """

  chip: ChipLink
  rows: int
  inner: int
  outer: int
  size: int
  by_rows: bool
  itemsize: int
  wire_itemsize: int
  chunks: int = 1
  hops: int = 1
  all_reduces: bool = False
  async_options: bool = False
  gathers_fused: bool = True

  @property
  def hides_gathers(self) -> bool:
    """Whether the compiler's all-gather runs beside other work."""
    asked = self.async_options and self.gathers_fused
    return asked or self._habits.gathers_async

  @property
  def hides_dy(self) -> bool:
    """Whether the compiler's gather of `dy` does as well as a ring."""
    return self.hides_gathers and self._habits.hides_dy and self._streams

  @property
  def _habits(self) -> Habits:
    return _HABITS.get(self.chip.name, Habits())

  @property
  def _vmem(self) -> float:
    return self.chip.vmem_bytes / self.chip.devices

  @property
  def _streams(self) -> bool:
    """Whether the weights do not stay in VMEM, two at a time."""
    nbytes = self.inner * self.outer * self.itemsize
    return 2 * nbytes > self._vmem

  @property
  def _load(self) -> float:
    """Seconds until the weights of the first product are there."""
    return self.traffic(self.inner * self.outer * self.itemsize)

  @property
  def _ordered(self) -> bool:
    return self.async_options or self._habits.follows_rings

  def product(self, rows: float, inner: float, outer: float) -> float:
    """Seconds of `[rows, inner] @ [inner, outer]`."""
    inner, outer = (_TILE * math.ceil(n / _TILE) for n in (inner, outer))
    flops = 2 * max(rows, _LEAST_ROWS) * inner * outer
    peak = self.chip.bf16_flops / self.chip.devices
    habits = self._habits
    efficiency = habits.streamed if self._streams else habits.efficiency
    return _PRODUCT_S + flops / (peak * efficiency)

  def copy(self, nbytes: float) -> float:
    """Seconds of a compiled copy in HBM."""
    return _COPY * self.traffic(2 * nbytes)

  def traffic(self, nbytes: float) -> float:
    """Seconds of `nbytes` at the bandwidth of a device's part of the HBM."""
    return nbytes / (self.chip.hbm_bandwidth / self.chip.devices)

  def lanes(self, schedule: str, least: int = 1) -> tuple[int, int]:
    """Directions of a ring, and lanes in all, as `ring.split_lanes` deals."""
    directions = 1 if schedule == "one_way" or self.size == 2 else 2
    rows = self.rows // self.size if self.by_rows else self.rows
    lanes = max(min(max(directions * self.chunks, least), rows), 1)
    return min(directions, lanes), lanes

  def send(self, nbytes: float, directions: int, lanes: int) -> float:
    """Seconds in which a link moves its part of a chunk, in all its lanes."""
    moved = self.hops * nbytes / directions
    latency = self.chip.permute_latency_s * lanes / directions
    return latency + moved / self.chip.permute_bandwidth

  def collective(self, nbytes: float) -> float:
    """Seconds in which the compiler gathers or scatters `nbytes` in all."""
    links, dims = _links(self.chip, self.size)
    moved = nbytes * (self.size - 1) / self.size
    seconds = dims * self.chip.permute_latency_s
    return seconds + moved / (links * self.chip.permute_bandwidth)

  def reduction(self, nbytes: float) -> float:
    """`collective` for a sum, and the passes that put the result in place."""
    result = nbytes / self.size
    if self.all_reduces:
      return 2 * self.collective(nbytes) + self.copy(result)
    halo = min(_HALO, result) / self.chip.permute_bandwidth
    return self.collective(nbytes) + halo + self.copy(_UNPAD * result)

  def _gather_ring(
    self, schedule: str, inner: int, outer: int, keep: bool
  ) -> Ring:
    """A ring that gathers `[R, inner]`, to `keep` or not, and multiplies."""
    directions, lanes = self.lanes(schedule)
    whole = self.rows * inner * self.itemsize
    piece = self.rows / lanes
    if self.by_rows:
      products = lanes * self.product(piece / self.size, inner, outer)
      kept = self.copy(whole / self.size)
    else:
      products = lanes * self.product(piece, inner / self.size, outer)
      sums = 4 * piece * outer
      if sums > self._vmem:
        products += _ACCUMULATE * lanes * self.traffic(2 * sums)
      # The compiler does not write features in place.
      kept = lanes * self.traffic(2 * whole)
    send = self.send(whole / self.size, directions, lanes)
    kept = kept if keep else 0.0
    step = max(products + kept, send)
    if keep and not self._ordered:
      step = products + max(kept, _BARE * send)
    dealt = self.copy(whole / self.size) if lanes > 1 else 0.0
    total = dealt + (self.size - 1) * step + products + kept
    return Ring(total_s=total, products_s=products, send_s=send)

  def _scatter_ring(
    self, schedule: str, inner: int, outer: int, itemsize: int, beside: str
  ) -> Ring:
    """A ring that adds up `[R, inner] @ [inner, outer]` over the devices.

    `beside` it as many numbers may be gathered, by another "ring" or "async".
    """
    least = 1 if schedule == "one_way" else 2
    directions, lanes = self.lanes(schedule, least)
    piece, t = self.rows / lanes, self.size
    gather_bytes = self.rows * outer * self.itemsize
    if self.by_rows:
      products = lanes * self.product(piece / t, inner, outer)
    else:
      products = lanes * self.product(piece, inner, outer / t)
    if self._streams:
      products *= self._habits.adds
    send = self.send(self.rows * outer * itemsize / t, directions, lanes)
    one, kept, gathered = products / lanes, 0.0, 0.0
    if beside == "ring":
      gathered = self.send(gather_bytes / t, directions, lanes)
      kept = self.copy(gather_bytes / t)
      if not self.by_rows:
        kept = lanes * self.traffic(2 * gather_bytes)

    def step(sends: float) -> float:
      if not self._ordered:
        return products + max(kept, _BARE * sends)
      chain = sends * directions / lanes + one
      return max(products + kept, sends, chain)

    alone = step(send + gathered)
    total = (t - 1) * alone + products + kept
    if beside != "ring" and self._ordered:
      # The last sum has only other lanes' last products beside it.
      total += max(send * directions / lanes - (alone - products), 0.0)
    elif beside == "ring" and lanes > 1:
      total += self.copy(gather_bytes / t)
    if beside == "async":
      # Where both want the links each send takes twice as long, and the gather
      # has them for the rest of the step.
      shared = step(2 * send)
      left = self.collective(gather_bytes)
      steps = min(t - 1, left / max(shared - send, 1e-12))
      total += steps * (shared - alone)
      total += max(left - steps * (shared - send) - products, 0.0)
    return Ring(total_s=total, products_s=products, send_s=send)

  def ring(self, op: str, schedule: str, backward: bool) -> Ring:
    """The ring of `op`, forward or backward, under `schedule`."""
    inner, outer, itemsize = self._product(backward)
    if (op == "all_gather_matmul") != backward:
      return self._gather_ring(schedule, inner, outer, keep=backward)
    beside = ""
    if backward and (schedule != "async" or self.hides_gathers):
      beside = "async" if schedule == "async" else "ring"
    return self._scatter_ring(schedule, inner, outer, itemsize, beside)

  def seconds(self, op: str, schedule: str, backward: bool) -> float:
    """Seconds of a pass of `op`; backward makes the gradients of both.

    Backward of a gather is `dx = reduce_scatter(dy @ w.T)` beside a gather of
    `x` for `dw = x.T @ dy`; that of a scatter gathers `dy` for both.
    """
    inner, outer, itemsize = self._product(backward)
    product = self.product(self.rows, inner, outer)
    dw = self.product(self.inner, self.rows, self.outer) if backward else 0.0
    if (op == "all_gather_matmul") != backward:
      if schedule in ("one_way", "two_way"):
        return self.ring(op, schedule, backward).total_s + dw
      gather = self.collective(self.rows * inner * self.itemsize)
      return gather + product + dw
    nbytes = self.rows * outer
    regather = self.collective(nbytes * self.itemsize) if backward else 0.0
    if schedule == "unoverlapped":
      hides = self.hides_gathers
      product = max(product, regather) if hides else product + regather
      return self._load + product + self.reduction(nbytes * itemsize) + dw
    late = schedule == "async" and not self.hides_gathers
    ring = self.ring(op, schedule, backward).total_s
    return self._load + ring + (regather if late else 0.0) + dw

  def _product(self, backward: bool) -> tuple[int, int, int]:
    """Features that the first product contracts and makes; bytes of a sum."""
    if backward:
      return self.outer, self.inner, self.itemsize
    return self.inner, self.outer, self.wire_itemsize


@functools.cache
def _links(chip: ChipLink, size: int) -> tuple[int, int]:
  """Links that a ring's device has inside its block, and the dims they run in.

  The block is the most cubic one, as `placement.ring_order` lays a ring. A
  side that wraps has two links, another one: the devices at its ends set the
  pace.
  """
  chips = max(size // chip.devices, 1)
  sides = min(_blocks(chips, chip.torus_dims), key=lambda s: (max(s), s))
  around = placement.wraps(chip.kind, sides)
  links = [
    1 + wraps for side, wraps in zip(sides, around, strict=True) if side > 1
  ]
  return max(sum(links), 1), max(len(links), 1)


def _blocks(chips: int, dims: int) -> list[tuple[int, ...]]:
  """Every box of so many chips."""
  if dims == 1:
    return [(chips,)]
  return [
    (side, *rest)
    for side in range(1, chips + 1)
    if chips % side == 0
    for rest in _blocks(chips // side, dims - 1)
  ]
