"""What each accelerator can do at most, and where that number is published.

A TPU's peak, clock and links are `collective_mm.chips`', its memory figures
jax's own table (`JAX` below), per chip instead of per TensorCore; a test keeps
peaks and memory equal to jax's. Where Google's
documentation says otherwise, the entry says so. A figure that no source gives
is None, and a chip that no source describes is not in the table: MFU against
another chip's peak is worse than no MFU.
"""

import dataclasses

import jax

from collective_mm import chips

JAX = chips.PEAKS
CLOUD_TPU7X = "https://docs.cloud.google.com/tpu/docs/tpu7x"
NVIDIA_A100 = "https://www.nvidia.com/en-us/data-center/a100/"
NVIDIA_H100 = "https://www.nvidia.com/en-us/data-center/h100/"
NVIDIA_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
NVIDIA_B200 = "https://nvdam.widen.net/s/wwnsxrhm2w/blackwell-datasheet-3384703"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """The published limits of one chip; None is what no source gives.

  Attributes:
    kind: `device_kind` of its jax devices.
    bf16_flops_per_chip: dense bf16 peak, FLOP/s, float32 accumulation.
    tensor_cores_per_chip: TPU TensorCores; None for a GPU, whose tensor cores
      are something else.
    devices_per_chip: jax devices that share the chip.
    hbm_bytes: memory of the chip.
    usable_hbm_bytes: of it, what the TPU compiler leaves to a program on one
      jax device.
    hbm_bandwidth: bytes/s of the chip's memory.
    ici_link_bandwidth: nominal bytes/s of one torus link, one way; None for a
      GPU, which has no torus.
    permute_bandwidth: bytes/s that a permute gets out of one link, one way.
    permute_latency_s: seconds of a permute of no bytes.
    torus_dims: 2 or 3, the dims of the torus the chip sits in; None for a GPU.
    clock_hz: TensorCore clock, to turn the TPU compiler's cycles into seconds.
    source: where the figures are published.
  """

  kind: str
  bf16_flops_per_chip: float
  tensor_cores_per_chip: int | None = None
  devices_per_chip: int = 1
  hbm_bytes: int | None = None
  usable_hbm_bytes: int | None = None
  hbm_bandwidth: float | None = None
  ici_link_bandwidth: float | None = None
  permute_bandwidth: float | None = None
  permute_latency_s: float | None = None
  torus_dims: int | None = None
  clock_hz: float | None = None
  source: str

  @property
  def bf16_flops_per_device(self) -> float:
    """Peak of one jax device, FLOP/s."""
    return self.bf16_flops_per_chip / self.devices_per_chip


def _tpu(
  name: str,
  *,
  tensor_cores: int,
  hbm_bytes: int,
  usable_gib: float,
  hbm_bandwidth: float,
  source: str = "",
) -> Chip:
  chip = chips.CHIPS[name]
  return Chip(
    kind=chip.kind,
    bf16_flops_per_chip=chip.bf16_flops,
    tensor_cores_per_chip=tensor_cores,
    devices_per_chip=chip.devices,
    hbm_bytes=hbm_bytes,
    usable_hbm_bytes=int(usable_gib * (1 << 30)),
    hbm_bandwidth=hbm_bandwidth,
    ici_link_bandwidth=chip.link_bandwidth,
    permute_bandwidth=chip.permute_bandwidth,
    permute_latency_s=chip.permute_latency_s,
    torus_dims=chip.torus_dims,
    clock_hz=chip.clock_hz,
    source=f"{chip.source} {source}".strip(),
  )


# The usable memory is what libtpu 0.0.42.1 says when a program does not fit.
_TPUS = (
  _tpu(
    "v2",
    tensor_cores=2,
    hbm_bytes=16_000_000_000,
    usable_gib=7.48,
    hbm_bandwidth=7.16e11,
  ),
  # Google's documentation gives 123e12 FLOP/s and 9.0e11 bytes/s.
  _tpu(
    "v3",
    tensor_cores=2,
    hbm_bytes=34_400_000_000,
    usable_gib=15.48,
    hbm_bandwidth=8.25e11,
  ),
  _tpu(
    "v4",
    tensor_cores=2,
    hbm_bytes=34_400_000_000,
    usable_gib=30.75,
    hbm_bandwidth=1.23e12,
  ),
  _tpu(
    "v5e",
    tensor_cores=1,
    hbm_bytes=17_200_000_000,
    usable_gib=15.75,
    hbm_bandwidth=8.20e11,
  ),
  # Google's documentation gives 2.765e12 bytes/s.
  _tpu(
    "v5p",
    tensor_cores=2,
    hbm_bytes=103_000_000_000,
    usable_gib=95.74,
    hbm_bandwidth=2.46e12,
  ),
  # Google's documentation gives 918e12 FLOP/s.
  _tpu(
    "v6e",
    tensor_cores=1,
    hbm_bytes=34_400_000_000,
    usable_gib=31.25,
    hbm_bandwidth=1.64e12,
  ),
  # Google's documentation gives 2,307e12 FLOP/s and 7.38e12 bytes/s.
  _tpu(
    "tpu7x",
    tensor_cores=2,
    hbm_bytes=206_000_000_000,
    usable_gib=94.75,
    hbm_bandwidth=7.40e12,
    source=CLOUD_TPU7X,
  ),
)

# NVIDIA's data sheets print most peaks with 2:4 sparsity; these are the dense
# ones, half of that. A GPU is found by its whole name only: MIG slices and
# relatives (H200 NVL, GH200) have peaks of their own.
_GPUS = (
  Chip(
    kind="NVIDIA A100-SXM4-40GB",
    bf16_flops_per_chip=312e12,
    hbm_bytes=40_000_000_000,
    hbm_bandwidth=1.555e12,
    source=NVIDIA_A100,
  ),
  Chip(
    kind="NVIDIA A100-PCIE-40GB",
    bf16_flops_per_chip=312e12,
    hbm_bytes=40_000_000_000,
    hbm_bandwidth=1.555e12,
    source=NVIDIA_A100,
  ),
  Chip(
    kind="NVIDIA A100-SXM4-80GB",
    bf16_flops_per_chip=312e12,
    hbm_bytes=80_000_000_000,
    hbm_bandwidth=2.039e12,
    source=NVIDIA_A100,
  ),
  Chip(
    kind="NVIDIA A100 80GB PCIe",
    bf16_flops_per_chip=312e12,
    hbm_bytes=80_000_000_000,
    hbm_bandwidth=1.935e12,
    source=NVIDIA_A100,
  ),
  Chip(
    kind="NVIDIA H100 80GB HBM3",  # the SXM module
    bf16_flops_per_chip=989e12,
    hbm_bytes=80_000_000_000,
    hbm_bandwidth=3.35e12,
    source=NVIDIA_H100,
  ),
  Chip(
    kind="NVIDIA H100 PCIe",
    bf16_flops_per_chip=756e12,
    hbm_bytes=80_000_000_000,
    hbm_bandwidth=2.0e12,
    source=NVIDIA_H100,
  ),
  Chip(
    kind="NVIDIA H100 NVL",
    bf16_flops_per_chip=835e12,
    hbm_bytes=94_000_000_000,
    hbm_bandwidth=3.9e12,
    source=NVIDIA_H100,
  ),
  Chip(
    kind="NVIDIA H200",
    bf16_flops_per_chip=989e12,
    hbm_bytes=141_000_000_000,
    hbm_bandwidth=4.8e12,
    source=NVIDIA_H200,
  ),
  # Published capacities differ, 180 and 192 GB.
  Chip(
    kind="NVIDIA B200",
    bf16_flops_per_chip=2250e12,
    hbm_bandwidth=8.0e12,
    source=NVIDIA_B200,
  ),
)

CHIPS: dict[str, Chip] = {chip.kind: chip for chip in (*_TPUS, *_GPUS)}


def chip_of(device: jax.Device) -> Chip | None:
  """Returns the chip that `device` is, or is a part of.

  TPU v4 and v5p show two TensorCores as one jax device, or each as its own in
  the split-core view; `devices_per_chip` follows what `device` says of itself.

  Args:
    device: a jax device, real or of a compile-only topology.

  Returns:
    The chip, or None for a CPU or any `device_kind` without published figures.
  """
  kind = device.device_kind
  chip = CHIPS.get(chips.ALIASES.get(kind, kind))
  if chip is None or chip.tensor_cores_per_chip is None:
    return chip
  return dataclasses.replace(
    chip, devices_per_chip=chip.tensor_cores_per_chip // device.num_cores
  )
