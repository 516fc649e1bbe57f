import re
import types

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu

from profiling import peaks

# kind: the chip in jax's table.
TPUS = {
  "TPU v2": pltpu.ChipVersion.TPU_V2,
  "TPU v3": pltpu.ChipVersion.TPU_V3,
  "TPU v4": pltpu.ChipVersion.TPU_V4,
  "TPU v5 lite": pltpu.ChipVersion.TPU_V5E,
  "TPU v5": pltpu.ChipVersion.TPU_V5P,
  "TPU v6 lite": pltpu.ChipVersion.TPU_V6E,
  "TPU7x": pltpu.ChipVersion.TPU_7X,
}

V4_BOARD = {"chips_per_host_bounds": (2, 2, 1), "num_slices": 1}
# topology, its options, kind, devices per chip, peak of a device.
TOPOLOGIES = [
  ("v2:2x2", {}, "TPU v2", 2, 23e12),
  ("v3:2x2", {}, "TPU v3", 2, 70e12),
  (
    "v4:2x2x1",
    {"chip_config_name": "megacore", **V4_BOARD},
    "TPU v4",
    1,
    275e12,
  ),
  (
    "v4:2x2x1",
    {"chip_config_name": "default", **V4_BOARD},
    "TPU v4",
    2,
    137.5e12,
  ),
  ("v5e:2x2", {}, "TPU v5 lite", 1, 197e12),
  ("v5p:2x2x1", {}, "TPU v5", 1, 459e12),
  ("v6e:2x2", {}, "TPU v6 lite", 1, 920e12),
  ("tpu7x:2x2x1", {}, "TPU7x", 2, 1155e12),
]


def named(kind):
  """Stands for a device that is not here: its name is all that is asked."""
  return types.SimpleNamespace(device_kind=kind)


def topology_device(name, options):
  pytest.importorskip("libtpu")
  topology = topologies.get_topology_desc(name, platform="tpu", **options)
  return topology.devices[0]


def test_the_tpus_are_those_of_this_test():
  kinds = {k for k, c in peaks.CHIPS.items() if c.tensor_cores_per_chip}
  assert kinds == set(TPUS)


@pytest.mark.parametrize("kind", TPUS)
def test_tpu_figures_are_those_of_jax(kind):
  chip, version = peaks.CHIPS[kind], TPUS[kind]
  cores = version.num_physical_tensor_cores_per_chip
  info = pltpu.get_tpu_info_for_chip(
    version, cores if version.supports_megacore else 1
  )
  assert chip.tensor_cores_per_chip == cores
  assert chip.bf16_flops_per_chip == cores * info.bf16_ops_per_second
  assert chip.hbm_bytes == cores * info.hbm_capacity_bytes
  assert chip.hbm_bandwidth == cores * info.mem_bw_bytes_per_second


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("name, options, kind, per_chip, peak", TOPOLOGIES)
def test_chip_of_a_topology_device(name, options, kind, per_chip, peak):
  chip = peaks.chip_of(topology_device(name, options))
  assert chip.kind == kind
  assert chip.devices_per_chip == per_chip
  assert chip.bf16_flops_per_device == peak


@pytest.mark.long
@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  "name, options, kind",
  [row[:3] for row in TOPOLOGIES if peaks.CHIPS[row[2]].clock_hz],
)
def test_clocks_turn_the_compilers_cycles_into_seconds(name, options, kind):
  # A large bf16 product runs near the peak in the compiler's own estimate:
  # a clock that is 20 % off leaves the bounds. The peaks are rounded, so a
  # full MXU may come out a trifle above 1.
  n = 4096
  device = topology_device(name, options)
  chip = peaks.chip_of(device)
  operand = jax.ShapeDtypeStruct(
    (n, n), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device)
  )
  compiled = jax.jit(jnp.matmul).lower(operand, operand).compile()
  cycles = re.findall(r'"estimated_cycles":"(\d+)"', compiled.as_text())
  seconds = sum(map(int, cycles)) / chip.clock_hz
  assert 0.82 < 2 * n**3 / seconds / chip.bf16_flops_per_device < 1.005


@pytest.mark.parametrize(
  "kind, tflops, gigabytes",
  [
    ("NVIDIA A100-SXM4-40GB", 312, 40),
    ("NVIDIA A100-PCIE-40GB", 312, 40),
    ("NVIDIA A100-SXM4-80GB", 312, 80),
    ("NVIDIA A100 80GB PCIe", 312, 80),
    ("NVIDIA H100 80GB HBM3", 989, 80),
    ("NVIDIA H100 PCIe", 756, 80),
    ("NVIDIA H100 NVL", 835, 94),
    ("NVIDIA H200", 989, 141),
  ],
)
def test_chip_of_a_gpu(kind, tflops, gigabytes):
  chip = peaks.chip_of(named(kind))
  assert chip.kind == kind
  assert chip.bf16_flops_per_device == tflops * 1e12
  assert chip.hbm_bytes == gigabytes * 10**9
  assert (chip.tensor_cores_per_chip, chip.torus_dims) == (None, None)


def test_the_b200_has_a_peak_and_no_agreed_memory():
  chip = peaks.chip_of(named("NVIDIA B200"))
  assert (chip.bf16_flops_per_chip, chip.hbm_bytes) == (2250e12, None)


@pytest.mark.parametrize(
  "kind",
  [
    "NVIDIA H1000",
    "NVIDIA H100",
    "NVIDIA H200 NVL",
    "NVIDIA GH200 480GB",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "TPU v9",
    "TPU",
    "",
  ],
)
def test_an_unknown_chip_is_none(kind):
  assert peaks.chip_of(named(kind)) is None


def test_a_cpu_is_none():
  assert peaks.chip_of(jax.devices("cpu")[0]) is None


@pytest.mark.parametrize(
  "alias, kind",
  [
    ("TPU v5e", "TPU v5 lite"),
    ("TPU v5p", "TPU v5"),
    ("TPU v6e", "TPU v6 lite"),
  ],
)
def test_aliases(alias, kind):
  cores = peaks.CHIPS[kind].tensor_cores_per_chip
  device = types.SimpleNamespace(device_kind=alias, num_cores=cores)
  assert peaks.chip_of(device) == peaks.CHIPS[kind]


def test_every_chip_says_where_its_figures_are_published():
  for chip in peaks.CHIPS.values():
    assert all(url.startswith("https://") for url in chip.source.split())
    assert chip.source
