"""Chooses the platform of a command, before anything imports jax.

Our dependency `jax[tpu]` brings libtpu along, which complains on stderr when
jax is imported on a machine without a TPU and may ask a cloud's metadata
server for one. A command that calls `select` first does neither.
"""

import glob
import importlib.util
import os
import sys

_COUNT_FLAG = "--xla_force_host_platform_device_count"
_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def select(devices: int = 8, *, dev: str = "/dev") -> str:
  """Sets the environment from which jax will choose its devices.

  A platform that the user named in `JAX_PLATFORMS` stays. Otherwise jax is left
  to pick where a TPU, or an NVIDIA GPU and jax's CUDA plugin, is there; it gets
  the CPU where neither is. The CPU is split into `devices` virtual devices,
  unless the user's `XLA_FLAGS` already say how many.

  Args:
    devices: virtual CPU devices; other platforms ignore it.
    dev: the directory of device files.

  Returns:
    What was chosen and why, for a log line.

  Raises:
    ValueError: if `devices` is less than 1.
    RuntimeError: if jax is imported already and would not see the choice.
  """
  if devices < 1:
    raise ValueError(f"devices must be at least 1, got {devices}")
  tpus = _files(f"{dev}/accel[0-9]*") + _files(f"{dev}/vfio/[0-9]*")
  changes = {}

  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms:
    chosen = f"{platforms}, as JAX_PLATFORMS says"
  elif tpus:
    chosen = f"jax's own choice: {tpus[0]} is there"
  elif (gpus := _files(f"{dev}/nvidia0")) and _has_cuda_plugin():
    chosen = f"jax's own choice: {gpus[0]} is there"
  else:
    platforms = changes["JAX_PLATFORMS"] = "cpu"
    why = f"{gpus[0]} has no jax CUDA plugin" if gpus else "no TPU, no GPU"
    chosen = f"cpu: {why}"

  # jax's default device comes from the first platform of the list.
  if platforms.split(",")[0] == "cpu":
    flags = os.environ.get("XLA_FLAGS", "")
    if _COUNT_FLAG in flags:
      chosen += "; as many virtual devices as XLA_FLAGS says"
    else:
      changes["XLA_FLAGS"] = f"{flags} {_COUNT_FLAG}={devices}".strip()
      chosen += f"; {devices} virtual devices"

  if changes and "jax" in sys.modules:
    settings = " ".join(f"{name}={value!r}" for name, value in changes.items())
    raise RuntimeError(
      f"select() must run before jax is imported: jax would not see {settings}"
    )
  if not tpus:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.update(changes)
  return chosen


def compile_only() -> None:
  """Sets the environment in which jax compiles for TPUs and takes none.

  libtpu would otherwise ask a cloud's metadata server which TPU this machine
  is and complain about what it does not find.

  Raises:
    RuntimeError: if jax is imported already and would not see the choice.
  """
  if "jax" in sys.modules and os.environ.get("JAX_PLATFORMS") != "cpu":
    raise RuntimeError(
      "compile_only() must run before jax is imported, or JAX_PLATFORMS be cpu"
    )
  os.environ["JAX_PLATFORMS"] = "cpu"
  for name, value in (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_ACCELERATOR_TYPE", "v4-8"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
  ):
    os.environ.setdefault(name, value)


def _files(pattern: str) -> list[str]:
  return sorted(glob.glob(pattern))


def _has_cuda_plugin() -> bool:
  return any(importlib.util.find_spec(name) for name in _CUDA_PLUGINS)
