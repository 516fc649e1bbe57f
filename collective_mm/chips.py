"""What a TPU chip computes and what its links carry: the schedule gate's table.

Bandwidths and latencies of a single permute come from published fits where
there are any; a chip without one takes its nominal link bandwidth and the
latency of its nearest relative, which is an assumption.
"""

import dataclasses

PEAKS = (
  "https://github.com/jax-ml/jax/blob/jax-v0.10.2/"
  "jax/_src/pallas/mosaic/tpu_info.py"
)
LINKS = "https://jax-ml.github.io/scaling-book/tpus/"
PERMUTES = "https://github.com/marin-community/marin/issues/6736"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChipLink:
  """One TPU generation.

  Attributes:
    name: the short name, as in a topology such as "v5e:2x4".
    kind: `device_kind` of its jax devices.
    bf16_flops: dense bf16 peak of the chip, FLOP/s.
    clock_hz: TensorCore clock; None where the published peaks disagree.
    devices: jax devices that share the chip.
    hbm_bandwidth: bytes/s of the chip's memory.
    vmem_bytes: memory on the chip that holds the operands of a product, of all
      its TensorCores.
    link_bandwidth: nominal bytes/s of one torus link, one way.
    permute_bandwidth: bytes/s that a permute gets out of one link, one way.
    permute_latency_s: seconds of a permute of no bytes.
    torus_dims: dims of the torus that the chip sits in.
    source: where the figures are published.
  """

  name: str
  kind: str
  bf16_flops: float
  clock_hz: float | None = None
  devices: int = 1
  hbm_bandwidth: float
  vmem_bytes: int
  link_bandwidth: float | None = None
  permute_bandwidth: float | None = None
  permute_latency_s: float | None = None
  torus_dims: int
  source: str

  @property
  def is_timed(self) -> bool:
    """Whether cycles and bytes can be turned into seconds."""
    return self.clock_hz is not None and self.permute_bandwidth is not None


# A clock is peak / FLOPs per cycle. The latter is a power of two, the one just
# above what the TPU compiler's own cycle estimate of a large bf16 product
# comes to (a long test repeats this); scaling-book has v5e's 1.5 GHz too.
_CHIPS = (
  ChipLink(
    name="v2",
    kind="TPU v2",
    bf16_flops=46e12,
    clock_hz=0.70e9,
    devices=2,
    hbm_bandwidth=7.16e11,
    vmem_bytes=32 << 20,
    torus_dims=2,
    source=f"{PEAKS} {LINKS}",
  ),
  # Its two published peaks disagree about the clock, which stays out.
  ChipLink(
    name="v3",
    kind="TPU v3",
    bf16_flops=140e12,
    devices=2,
    hbm_bandwidth=8.25e11,
    vmem_bytes=32 << 20,
    link_bandwidth=1.0e11,
    permute_bandwidth=1.0e11,
    permute_latency_s=4.55e-6,  # assumed: v5p's
    torus_dims=2,
    source=f"{PEAKS} {LINKS}",
  ),
  ChipLink(
    name="v4",
    kind="TPU v4",
    bf16_flops=275e12,
    clock_hz=1.05e9,
    hbm_bandwidth=1.23e12,
    vmem_bytes=32 << 20,
    link_bandwidth=4.5e10,
    permute_bandwidth=4.5e10,
    permute_latency_s=4.55e-6,  # assumed: v5p's
    torus_dims=3,
    source=f"{PEAKS} {LINKS}",
  ),
  ChipLink(
    name="v5e",
    kind="TPU v5 lite",
    bf16_flops=197e12,
    clock_hz=1.50e9,
    hbm_bandwidth=8.20e11,
    vmem_bytes=128 << 20,
    link_bandwidth=4.5e10,
    permute_bandwidth=4.5e10,
    permute_latency_s=2.29e-6,  # assumed: v6e's
    torus_dims=2,
    source=f"{PEAKS} {LINKS}",
  ),
  ChipLink(
    name="v5p",
    kind="TPU v5",
    bf16_flops=459e12,
    clock_hz=1.75e9,
    hbm_bandwidth=2.46e12,
    vmem_bytes=128 << 20,
    link_bandwidth=9.0e10,
    permute_bandwidth=8.63e10,
    permute_latency_s=4.55e-6,
    torus_dims=3,
    source=f"{PEAKS} {LINKS} {PERMUTES}",
  ),
  ChipLink(
    name="v6e",
    kind="TPU v6 lite",
    bf16_flops=920e12,
    clock_hz=1.75e9,
    hbm_bandwidth=1.64e12,
    vmem_bytes=128 << 20,
    link_bandwidth=9.0e10,
    permute_bandwidth=8.68e10,
    permute_latency_s=2.29e-6,
    torus_dims=2,
    source=f"{PEAKS} {LINKS} {PERMUTES}",
  ),
  ChipLink(
    name="tpu7x",
    kind="TPU7x",
    bf16_flops=2310e12,
    clock_hz=2.20e9,
    devices=2,
    hbm_bandwidth=7.40e12,
    vmem_bytes=128 << 20,
    link_bandwidth=9.0e10,
    permute_bandwidth=9.0e10,
    permute_latency_s=4.55e-6,  # assumed: v5p's
    torus_dims=3,
    source=f"{PEAKS} {LINKS}",
  ),
)

CHIPS: dict[str, ChipLink] = {chip.name: chip for chip in _CHIPS}

# The other names under which jax knows the same chips.
ALIASES = {
  "TPU v5e": "TPU v5 lite",
  "TPU v5p": "TPU v5",
  "TPU v6e": "TPU v6 lite",
}


def find_chip(name: str) -> ChipLink | None:
  """The chip with that short name or `device_kind`, None if there is none."""
  kind = ALIASES.get(name, name)
  return next((c for c in _CHIPS if kind in (c.name, c.kind)), None)


def timed_chip(name: str) -> ChipLink:
  """The chip with that name, whose clock and links must be published.

  Raises:
    ValueError: if there is no such chip, or no figures.
  """
  chip = find_chip(name)
  if chip is None or not chip.is_timed:
    known = ", ".join(c.name for c in _CHIPS if c.is_timed)
    raise ValueError(
      f"chip must be one of {known}, whose clock and links are published, got "
      f"{name!r}"
    )
  return chip
