"""TPU slices that are not here: their devices and the torus they sit in."""

import math
import re

import jax
from jax.experimental import topologies

from collective_mm import placement
from collective_mm.chips import CHIPS
from profiling.torus import Torus, torus_of

_OPTIONS = {
  "v4": {
    "chip_config_name": "megacore",  # one device a chip
    "chips_per_host_bounds": (2, 2, 1),
    "num_slices": 1,
  }
}


def devices(name: str) -> list[jax.Device]:
  """The devices of a TPU slice such as "v5e:2x4", to compile for.

  Args:
    name: chip and shape: v2, v3, v4, v5e, v5p, v6e or tpu7x, a colon, and the
      chips along each dim of the torus.

  Returns:
    The slice's devices in the compiler's order; v2, v3 and tpu7x have two a
    chip, the others one.

  Raises:
    ValueError: if there is no such slice, or no TPU compiler.
  """
  chip, shape = _parts(name)
  text = "x".join(map(str, shape))
  options = _OPTIONS.get(chip, {})
  around = placement.wraps(CHIPS[chip].kind, shape)
  if chip == "v5e" and any(around):
    # The compiler takes a whole pod of these not to wrap unless told.
    options = options | {"wrap": (*around, False)}
  if math.prod(shape) == 1:  # a host has four chips otherwise
    options = options | {"chips_per_host_bounds": (1, 1, 1)}
  try:
    topology = topologies.get_topology_desc(
      f"{chip}:{text}", platform="tpu", **options
    )
  except Exception as e:
    reason = (str(e) or type(e).__name__).splitlines()[0]
    raise ValueError(
      f"name must be a slice that the TPU compiler knows (libtpu, which exists "
      f"for Linux on x86-64), got {name!r}: {reason}"
    ) from e
  return list(topology.devices)


def torus(name: str) -> Torus:
  """The torus of the slice `name`, as in `devices`."""
  chip, shape = _parts(name)
  return torus_of(CHIPS[chip], shape)


def coordinates(devices: list[jax.Device]) -> list[list[int]]:
  """`[x, y, z, core]` of each device, in the order given."""
  return [[*device.coords, device.core_on_chip] for device in devices]


def _parts(name: str) -> tuple[str, tuple[int, ...]]:
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
  if not found or found[1] not in CHIPS:
    raise ValueError(
      f"name must be a chip ({', '.join(CHIPS)}), a colon and a shape such as "
      f"2x4, got {name!r}"
    )
  shape = tuple(map(int, found[2].split("x")))
  dims = CHIPS[found[1]].torus_dims
  if len(shape) != dims or not math.prod(shape):
    raise ValueError(
      f"name must have {dims} dims from 1 for a {found[1]}, got {name!r}"
    )
  return found[1], shape
