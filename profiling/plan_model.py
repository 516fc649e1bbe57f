"""Models a training step on one mesh: its time and its memory, by hand.

Products take the compiler's efficiency, rings and collectives of the model axis
what the gate says (`collective_mm.pass_times`), weights that travel over the
data axis what a replay would charge. A step is its products, what is left of
compute, and what of the communication nothing hides. The constants were fitted
to replays of ViT-22B, from which a modelled step is off by 1 % at most and its
memory by 3 %, but for rings in backward, which need a tenth more
(`docs/validation.md`). `profiling.plan --replay` says how far off others are.
"""

import dataclasses
import math

import jax
import numpy as np

from collective_mm import gate, make_mesh, placement
from collective_mm.chips import ChipLink, timed_chip
from collective_mm.hlo_flow import Transfer
from collective_mm.pass_times import PassTimes
from models import train_step
from models.attention import can_fuse
from models.optimizer import VIT_22B, make_optimizer
from models.vit_config import ViTConfig
from profiling import flops, peaks, topology
from profiling.slice_costs import KERNEL_EFFICIENCY, SliceCosts
from profiling.torus import Torus

SCHEDULES = (
  "auto",
  "unoverlapped",
  "async",
  "one_way",
  "two_way",
  "two_way,async",
)
"""What the rings may do; a pair is forward,backward."""

# Fitted to replays of ViT-22B, 65,536 images on v4:8x8x16: meshes (512, 2) and
# (1024, 1) with two_way,async, and (512, 2) with two_way.
_PRODUCTS = 1.065  # time of the model's products over that of bare ones
_PASSES = 5.0  # times that a block's activations go through the HBM
_RING_PASSES = 10.0  # how many more where backward runs rings
_LIVE = 5.6  # blocks' worth of activations alive at once
_WEIGHTS = 0.5  # of the weights' travels, what a block does not hide
_RINGS = 0.12  # of what a ring or gather alone would expose, the same
# For a block that writes its logits; of an earlier ViT-22B, without the kernel.
_UNFUSED_PASSES = 18.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """One way to run the step.

  Attributes:
    data: size of the data axis.
    model: size of the model axis.
    layout: "tokens" or "features".
    schedule: of the rings.
  """

  data: int
  model: int
  layout: str
  schedule: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modelled:
  """A modelled step.

  Attributes:
    step_time_s: seconds of the step.
    products_s: of them, products, but for those of fused attention.
    rest_s: other compute.
    exposed_s: communication that nothing hides.
    mfu: model FLOPs over the peak.
    hbm_bytes: memory of a device.
    fits: whether the device has as much.
  """

  step_time_s: float
  products_s: float
  rest_s: float
  exposed_s: float
  mfu: float
  hbm_bytes: int
  fits: bool


class Planner:
  """Models steps of one model and batch on one slice.

  Args:
    cfg: the model's shape.
    slice_name: such as "v4:8x8x16".
    batch: images a step, over all devices.
  """

  def __init__(self, cfg: ViTConfig, slice_name: str, batch: int):
    self.cfg, self.batch, self.slice_name = cfg, batch, slice_name
    self.link: ChipLink = timed_chip(slice_name.partition(":")[0])
    self.chip = peaks.CHIPS[self.link.kind]
    self.devices = topology.devices(slice_name)
    self.torus: Torus = topology.torus(slice_name)
    self.fused = can_fuse(cfg, self.devices[0].device_kind)

  def candidates(self) -> list[tuple[jax.sharding.Mesh, list[Candidate]]]:
    """Every mesh that divides the model and the batch, and how to use it.

    Raises:
      ValueError: if the devices do not divide the batch.
    """
    found = []
    count = len(self.devices)
    if self.batch < 1 or self.batch % count:
      raise ValueError(
        f"the slice must divide the batch: batch={self.batch} is not a "
        f"multiple of {count} devices"
      )
    for model in range(1, count + 1):
      if count % model or self.cfg.heads % model or self.cfg.mlp % model:
        continue
      mesh = make_mesh(data=count // model, model=model, devices=self.devices)
      ways = [
        Candidate(
          data=count // model, model=model, layout=layout, schedule=schedule
        )
        for layout in ("tokens", "features")
        for schedule in SCHEDULES
      ]
      # Over one device nothing travels, and all ways are the same.
      found.append((mesh, ways[:1] if model == 1 else ways))
    return found

  def ranked(self) -> list[tuple[Candidate, Modelled]]:
    """Every candidate and its step: what fits first, by MFU."""
    found = [
      pair
      for mesh, ways in self.candidates()
      for pair in zip(ways, self.model(mesh, ways), strict=True)
    ]
    return sorted(found, key=lambda pair: (not pair[1].fits, -pair[1].mfu))

  def model(
    self, mesh: jax.sharding.Mesh, ways: list[Candidate]
  ) -> list[Modelled]:
    """Returns a `Modelled` for each of `ways` to use `mesh`."""
    weights = self._weights(mesh)
    hops = placement.longest_hop(mesh, "model")
    hbm = sum(memory(self.cfg, mesh, self.batch).values())
    return [self._step(way, weights, hops, hbm) for way in ways]

  def _step(self, way, weights_s, hops, hbm) -> Modelled:
    cfg, m = self.cfg, way.model
    rows = self.batch * cfg.tokens // way.data
    products = exposed = 0.0
    rings = False
    for op, inner, outer in _ops(cfg, m):
      product, extra, backward = self._op(way, op, rows, inner, outer, hops)
      rings |= backward in ("one_way", "two_way")
      products += product
      exposed += extra
    peak = self.chip.bf16_flops_per_device
    # Forward, again for backward, and twice in backward.
    attention = 4 * 4 * rows * cfg.tokens * cfg.width / m / peak
    if not self.fused:
      products += attention
    products *= _PRODUCTS
    # The part that waits in any case, or all that does not fit beside products.
    exposed += max(_WEIGHTS * weights_s, weights_s - products)
    activations = 2 * rows * _features(cfg, self.fused) / m
    passes = _PASSES if self.fused else _UNFUSED_PASSES
    if rings and m > 1:
      passes += _RING_PASSES
    rest = passes * activations / self.link.hbm_bandwidth * self.link.devices
    if self.fused:
      # Its backward forms the logits once more: 18 for 16.
      rest += 18 / 16 * attention / KERNEL_EFFICIENCY

    whole = flops.vit_flops_per_image(cfg)
    blocks = cfg.tokens * flops.vit_flops_per_token(cfg)
    ends = self.batch * (whole - blocks) / len(self.devices) / peak
    step = cfg.depth * (products + rest + exposed) + ends
    ideal = self.batch * blocks / len(self.devices) / peak
    return Modelled(
      step_time_s=step,
      products_s=cfg.depth * products + ends,
      rest_s=cfg.depth * rest,
      exposed_s=cfg.depth * exposed,
      mfu=ideal / step,
      hbm_bytes=hbm,
      fits=hbm <= self.chip.usable_hbm_bytes,
    )

  def _op(self, way, op, rows, inner, outer, hops) -> tuple[float, float, str]:
    """Seconds of an op's products, and how many more nothing hides.

    Returns:
      Both, of all passes, and the schedule of backward.
    """
    by_rows = way.layout == "tokens"
    shape = {"rows": rows, "inner": inner, "outer": outer, "size": way.model}
    shape |= {"by_rows": by_rows, "hops": hops, "async_options": True}
    times = PassTimes(chip=self.link, itemsize=2, wire_itemsize=2, **shape)
    once = times.product(rows, inner, outer)
    twice = times.product(rows, outer, inner) + times.product(
      inner, rows, outer
    )
    # What a block recomputes ends with its last gather.
    repeats = 2 if op == "all_gather_matmul" else 1
    products = repeats * once + twice
    if way.model == 1:
      return products, 0.0, "unoverlapped"
    forward, _, backward = way.schedule.partition(",")
    backward = backward or forward
    if forward == "auto":
      forward, backward = gate.choose(
        op,
        dtype="bfloat16",
        wire_dtype=None,
        chunks=1,
        device_kind=self.link.kind,
        **shape,
      ).schedule
    exposed = 0.0
    for count, schedule, needed in (
      (repeats, forward, once),
      (1, backward, twice),
    ):
      alone = times.seconds(op, schedule, backward=needed is twice)
      hidden = 1.0 if schedule == "unoverlapped" else _RINGS
      exposed += count * hidden * max(alone - needed, 0.0)
    return products, exposed, backward

  def _weights(self, mesh: jax.sharding.Mesh) -> float:
    """Seconds in which a block's weights travel over the data axis."""
    grid = np.arange(mesh.size).reshape(mesh.devices.shape)
    data, model = grid.shape
    if data == 1:
      return 0.0
    places = np.array(topology.coordinates(list(mesh.devices.flat)))
    costs = SliceCosts(self.chip, self.torus, places[:, : self.link.torus_dims])
    kernels = 4 * self.cfg.width**2 + 2 * self.cfg.width * self.cfg.mlp

    def seconds(kind):
      return costs.alone(
        Transfer(
          kind=kind,
          line=None,
          inner=None,
          nbytes=2 * kernels // model,
          dtype="bf16",
          groups=grid.T,
          pairs=None,
        )
      )

    # Gathered forward and again for backward, whose gradients are scattered.
    return 2 * seconds("all-gather") + seconds("reduce-scatter")


def memory(
  cfg: ViTConfig, mesh: jax.sharding.Mesh, batch: int
) -> dict[str, int]:
  """Bytes of a step on one device: the state exactly, the rest modelled.

  Args:
    cfg: the model's shape.
    mesh: what it runs on.
    batch: images a step, over all devices.
  """
  data, model = mesh.shape["data"], mesh.shape["model"]
  state = train_step.abstract_state(cfg, make_optimizer(VIT_22B), mesh)
  rows = batch * cfg.tokens // data
  fused = can_fuse(cfg, mesh.devices.flat[0].device_kind)
  kernels = 4 * cfg.width**2 + 2 * cfg.width * cfg.mlp
  return {
    "state": sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(state)
    ),
    "tokens saved between blocks": 2 * cfg.depth * rows * cfg.width // model,
    "weights of two blocks": 2 * 2 * kernels // model,
    "inside of a block": int(_LIVE * 2 * rows * _features(cfg, fused) / model),
  }


def op_memory(
  tokens: int, width: int, features: int, mesh: jax.sharding.Mesh
) -> dict[str, int]:
  """Bytes of one op and its gradients on one device, in bfloat16.

  Args:
    tokens, width, features: over all devices.
    mesh: what it runs on.
  """
  size = mesh.shape["model"]
  return {
    "tokens and their gradient": 2 * 2 * tokens * width // size,
    "gathered tokens": 2 * tokens * width,
    "weights and their gradient": 2 * 2 * width * features // size,
    "features and their gradient": 2 * 2 * tokens * features // size,
  }


def _ops(cfg: ViTConfig, model: int) -> list[tuple[str, int, int]]:
  """The ops of a block: name, contracted and output features of a device."""
  gather, scatter = "all_gather_matmul", "matmul_reduce_scatter"
  width, mlp = cfg.width, cfg.mlp
  if cfg.parallel:
    return [
      (gather, width, (3 * width + mlp) // model),
      (scatter, (width + mlp) // model, width),
    ]
  return [
    (gather, width, 3 * width // model),
    (scatter, width // model, width),
    (gather, width, mlp // model),
    (scatter, mlp // model, width),
  ]


def _features(cfg: ViTConfig, fused: bool) -> int:
  """Numbers that a block makes of a token: x, q, k, v, attended, the MLP's."""
  scores = 0 if fused else 2 * cfg.heads * cfg.tokens  # float32
  return 5 * cfg.width + 2 * cfg.mlp + scores
