"""What each accelerator can do at most, and where that number is published.

The TPU peaks and memory figures are jax's own table (`JAX` below), per chip
instead of per TensorCore; a test keeps the two equal. Where Google's
documentation says otherwise, the entry says so. A figure that no source gives
is None, and a chip that no source describes is not in the table: MFU against
another chip's peak is worse than no MFU.
"""

import dataclasses

import jax

JAX = (
  "https://github.com/jax-ml/jax/blob/jax-v0.10.2/"
  "jax/_src/pallas/mosaic/tpu_info.py"
)
# Link bandwidths, and which generations are 2D and which 3D tori.
SCALING_BOOK = "https://jax-ml.github.io/scaling-book/tpus/"
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
    hbm_bandwidth: bytes/s of the chip's memory.
    ici_link_bandwidth: bytes/s of one torus link, one way; None for a GPU,
      which has no torus.
    torus_dims: 2 or 3, the dims of the torus the chip sits in; None for a GPU.
    clock_hz: TensorCore clock, to turn the TPU compiler's cycles into seconds.
    source: where the figures are published.
  """

  kind: str
  bf16_flops_per_chip: float
  tensor_cores_per_chip: int | None = None
  devices_per_chip: int = 1
  hbm_bytes: int | None = None
  hbm_bandwidth: float | None = None
  ici_link_bandwidth: float | None = None
  torus_dims: int | None = None
  clock_hz: float | None = None
  source: str

  @property
  def bf16_flops_per_device(self) -> float:
    """Peak of one jax device, FLOP/s."""
    return self.bf16_flops_per_chip / self.devices_per_chip


# A clock is peak / FLOPs per cycle. The latter is a power of two, the one just
# above what the TPU compiler's own cycle estimate of a large bf16 product
# comes to (a long test repeats this); scaling-book has v5e's 1.5 GHz too.
_TPUS = (
  Chip(
    kind="TPU v2",
    bf16_flops_per_chip=46e12,
    tensor_cores_per_chip=2,
    devices_per_chip=2,
    hbm_bytes=16_000_000_000,
    hbm_bandwidth=7.16e11,
    torus_dims=2,
    clock_hz=0.70e9,
    source=f"{JAX} {SCALING_BOOK}",
  ),
  # Google's documentation gives 123e12 FLOP/s and 9.0e11 bytes/s. The clock
  # stays out: the two peaks disagree about it.
  Chip(
    kind="TPU v3",
    bf16_flops_per_chip=140e12,
    tensor_cores_per_chip=2,
    devices_per_chip=2,
    hbm_bytes=34_400_000_000,
    hbm_bandwidth=8.25e11,
    ici_link_bandwidth=1.0e11,
    torus_dims=2,
    source=f"{JAX} {SCALING_BOOK}",
  ),
  Chip(
    kind="TPU v4",
    bf16_flops_per_chip=275e12,
    tensor_cores_per_chip=2,
    hbm_bytes=34_400_000_000,
    hbm_bandwidth=1.23e12,
    ici_link_bandwidth=4.5e10,
    torus_dims=3,
    clock_hz=1.05e9,
    source=f"{JAX} {SCALING_BOOK}",
  ),
  Chip(
    kind="TPU v5 lite",
    bf16_flops_per_chip=197e12,
    tensor_cores_per_chip=1,
    hbm_bytes=17_200_000_000,
    hbm_bandwidth=8.20e11,
    ici_link_bandwidth=4.5e10,
    torus_dims=2,
    clock_hz=1.50e9,
    source=f"{JAX} {SCALING_BOOK}",
  ),
  # Google's documentation gives 2.765e12 bytes/s.
  Chip(
    kind="TPU v5",
    bf16_flops_per_chip=459e12,
    tensor_cores_per_chip=2,
    hbm_bytes=103_000_000_000,
    hbm_bandwidth=2.46e12,
    ici_link_bandwidth=9.0e10,
    torus_dims=3,
    clock_hz=1.75e9,
    source=f"{JAX} {SCALING_BOOK}",
  ),
  # Google's documentation gives 918e12 FLOP/s.
  Chip(
    kind="TPU v6 lite",
    bf16_flops_per_chip=920e12,
    tensor_cores_per_chip=1,
    hbm_bytes=34_400_000_000,
    hbm_bandwidth=1.64e12,
    ici_link_bandwidth=9.0e10,
    torus_dims=2,
    clock_hz=1.75e9,
    source=f"{JAX} {SCALING_BOOK}",
  ),
  # Google's documentation gives 2,307e12 FLOP/s and 7.38e12 bytes/s.
  Chip(
    kind="TPU7x",
    bf16_flops_per_chip=2310e12,
    tensor_cores_per_chip=2,
    devices_per_chip=2,
    hbm_bytes=206_000_000_000,
    hbm_bandwidth=7.40e12,
    ici_link_bandwidth=9.0e10,
    torus_dims=3,
    clock_hz=2.20e9,
    source=f"{JAX} {SCALING_BOOK} {CLOUD_TPU7X}",
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

# The other names under which jax knows the same chips.
_ALIASES = {
  "TPU v5e": "TPU v5 lite",
  "TPU v5p": "TPU v5",
  "TPU v6e": "TPU v6 lite",
}


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
  chip = CHIPS.get(_ALIASES.get(kind, kind))
  if chip is None or chip.tensor_cores_per_chip is None:
    return chip
  return dataclasses.replace(
    chip, devices_per_chip=chip.tensor_cores_per_chip // device.num_cores
  )
