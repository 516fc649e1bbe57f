"""Compiles a program for a TPU slice that is not here, and replays it.

Nothing runs: memory is the compiler's own count, time the replay of the
schedule that it made (`profiling.replay`), so every time here is simulated.
"""

import dataclasses
import re
import sys
from pathlib import Path

import jax

from profiling import peaks, topology
from profiling.replay import Replay, replay

_ROOT = Path(__file__).parents[1]
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = r"([\d.]+)([KMGT]?)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """A program that fits, and its simulated run.

  Attributes:
    text: the scheduled module, with paths relative to the repository.
    devices: `[x, y, z, core]` of each device in partition order.
    hbm: bytes on each device, by what they hold; "peak" is what is in use at
      most, "usable" what a program may use.
    flops: of one device, by the compiler's count, in which the body of a loop
      counts once.
    replayed: the simulated run.
  """

  text: str
  devices: list[list[int]]
  hbm: dict[str, int]
  flops: int
  replayed: Replay


class DoesNotFit(Exception):
  """A program that needs more memory than a device has.

  Attributes:
    hbm: bytes on each device: "needed", "usable" and "over".
  """

  def __init__(self, hbm: dict[str, int]):
    super().__init__(
      f"needs {gib(hbm['needed'])} GiB on each device, where "
      f"{gib(hbm['usable'])} GiB are usable: {gib(hbm['over'])} GiB too much"
    )
    self.hbm = hbm


def gib(nbytes: int) -> str:
  """Bytes as GiB, for a message."""
  return f"{nbytes / (1 << 30):.2f}"


def compile_and_replay(
  lowered: jax.stages.Lowered,
  mesh: jax.sharding.Mesh,
  options: dict[str, str],
) -> Compiled:
  """Compiles for the devices of `mesh` and replays the schedule.

  Args:
    lowered: a program lowered for TPU devices of `topology.devices`.
    mesh: its mesh; its devices in order are the partitions.
    options: the compiler's.

  Raises:
    DoesNotFit: if the program needs more memory than there is.
    ValueError: if the compiler refuses an option or the replay the schedule.
  """
  try:
    compiled = lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    message = str(error)
    if "RESOURCE_EXHAUSTED" in message:
      raise does_not_fit(message) from error
    raise ValueError(
      f"the TPU compiler must accept the program, got {message.splitlines()[0]}"
    ) from error
  devices = list(mesh.devices.flat)
  places = topology.coordinates(devices)
  text = _relative(compiled.as_text())
  kind = devices[0].device_kind
  return Compiled(
    text=text,
    devices=places,
    hbm=_memory(compiled.memory_analysis(), peaks.chip_of(devices[0])),
    flops=int(compiled.cost_analysis()["flops"]),
    replayed=replay(text, devices=places, chip=kind, mesh=dict(mesh.shape)),
  )


def best(
  lowered: jax.stages.Lowered,
  mesh: jax.sharding.Mesh,
  variants: dict[str, dict[str, str]],
) -> tuple[str, dict[str, "Compiled | DoesNotFit"]]:
  """Compiles with each of several sets of options.

  Args:
    lowered, mesh: as in `compile_and_replay`.
    variants: options by name.

  Returns:
    The name of the fastest, and what came of each.

  Raises:
    DoesNotFit: if none fits; that of the one which needs the least.
    ValueError: as `compile_and_replay`.
  """
  found = {}
  for name, options in variants.items():
    try:
      found[name] = compile_and_replay(lowered, mesh, options)
    except DoesNotFit as error:
      found[name] = error
  fits = {n: c for n, c in found.items() if isinstance(c, Compiled)}
  if not fits:
    raise min(found.values(), key=lambda error: error.hbm["needed"])
  return min(fits, key=lambda n: fits[n].replayed.step_time_s), found


def _memory(stats, chip: peaks.Chip) -> dict[str, int]:
  sizes = {
    "arguments": stats.argument_size_in_bytes,
    "outputs": stats.output_size_in_bytes,
    "aliased": stats.alias_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "code": stats.generated_code_size_in_bytes,
  }
  peak = sum(sizes.values()) - 2 * sizes["aliased"]
  return {**sizes, "peak": peak, "usable": chip.usable_hbm_bytes}


def does_not_fit(message: str) -> DoesNotFit:
  """Reads the compiler's account of the memory that a program lacks."""
  found = re.search(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)", message)
  if found is None:
    raise ValueError(
      "the compiler's message must say what does not fit, got "
      f"{message.splitlines()[0]}"
    )
  needed, usable = _nbytes(*found.groups()[:2]), _nbytes(*found.groups()[2:])
  return DoesNotFit(
    {"needed": needed, "usable": usable, "over": needed - usable}
  )


def _nbytes(number: str, unit: str) -> int:
  return round(float(number) * _UNITS[unit])


def _relative(text: str) -> str:
  """`text` without the folders of this machine."""
  for folder in (_ROOT, *sorted(sys.path, key=len, reverse=True)):
    if Path(folder).is_absolute():
      text = text.replace(f'"{folder}/', '"')
  return text
