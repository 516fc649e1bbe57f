"""Simulates an op on TPUs that are not here: compiled for them and replayed.

Beside the methods of `matmul_methods` there are the three modes of the
compiler's own collective matmul, the best that it does without us.
"""

import dataclasses

import jax

from collective_mm import gate, make_mesh
from profiling import command, matmul_methods, topology
from profiling.matmul_methods import Problem
from profiling.replay import replay

RING = 8
SLICES = {
  "v4": "v4:2x2x2",
  "v5e": "v5e:2x4",
  "v5p": "v5p:2x2x2",
  "v6e": "v6e:2x4",
}
"""Eight devices of each chip that a replay knows the clock and links of."""
SHAPES = {
  "v4": (65536, 6144, 43008),
  "v5e": (16384, 6144, 43008),
  "v5p": (32768, 8192, 57344),
  "v6e": (32768, 8192, 57344),
}
"""Tokens, width and features: ViT-22B's q, k, v and MLP-in as one product, and
the gate and up products of Llama-70B's MLP as one."""

METHODS = (
  "roof",
  "unoverlapped",
  *command.COMPILER_MODES,
  *matmul_methods.SCHEDULES,
)
BASELINES = {
  "unoverlapped": ("unoverlapped",),
  "best compiler": tuple(command.COMPILER_MODES),
}
"""What "auto" is to beat: the best method of each."""
_BARE = ("roof", "unoverlapped")
"""Methods that are compiled without the options of `gate.compiler_options`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulated:
  """A simulated run of an op, forward and through both gradients.

  Attributes:
    step_time_ms: compute and waits together.
    compute_ms: what the device computes.
    exposed_ms: what it waits for other devices.
    temp_bytes: memory of each device beside arguments and results.
  """

  step_time_ms: float
  compute_ms: float
  exposed_ms: float
  temp_bytes: int


class Simulator:
  """Simulates programs on `SLICES[chip]`, equal ones once."""

  def __init__(self, chip: str):
    self.chip = chip
    devices = topology.devices(SLICES[chip])
    self.mesh = make_mesh(data=1, model=RING, devices=devices)
    self._done: dict[tuple, Simulated] = {}

  def run(self, problem: Problem, method: str) -> Simulated:
    """Compiles and replays one of `METHODS` for a problem on `self.mesh`.

    Raises:
      MemoryError: if the program does not fit into the chip's memory.
    """
    name = "compiler" if method in command.COMPILER_MODES else method
    lowered = matmul_methods.program(problem, name).lower()
    options = self._options(method)
    # The gate's program is that of the schedules that it chose.
    key = lowered.as_text(), tuple(options.items())
    if key not in self._done:
      try:
        compiled = lowered.compile(compiler_options=options)
      except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
          raise
        raise MemoryError(
          f"{method} of {problem.op} does not fit into a {self.chip}: "
          f"{str(e).splitlines()[0]}"
        ) from e
      self._done[key] = self._replay(compiled)
    return self._done[key]

  def _options(self, method: str) -> dict[str, str]:
    if method in _BARE:
      return {}
    mode = command.COMPILER_MODES.get(method)
    options = gate.compiler_options(self.chip)
    return options | command.collective_matmul_mode(mode)

  def _replay(self, compiled: jax.stages.Compiled) -> Simulated:
    places = topology.coordinates(list(self.mesh.devices.flat))
    result = replay(compiled.as_text(), devices=places, chip=self.chip)
    return Simulated(
      step_time_ms=1e3 * result.step_time_s,
      compute_ms=1e3 * sum(result.compute_s.values()),
      exposed_ms=1e3 * result.exposed_communication_s,
      temp_bytes=compiled.memory_analysis().temp_size_in_bytes,
    )
