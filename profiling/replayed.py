"""What a replay gives: a simulated step, its timeline and its lines."""

import collections
import dataclasses

from profiling.axis_waits import Stretch, waits_by_axes
from profiling.torus import Torus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
  """A span of the timeline, in seconds from the start of the step.

  Attributes:
    name: the line of the schedule.
    start_s: when it begins.
    end_s: when it ends.
    row: "compute", "wait", "loop" (a whole one), "repeat" (trips of it that are
      like the last one), or the kind of transfer, "copy" for one inside the
      device.
    kind: "products", "kernels" or "rest" of compute; otherwise what is waited
      for or travels.
    op_name: the jax name stack of the line.
    source: "file:line" that made it.
    runs: how often this happens in the step.
    trips: how often the loop turns meanwhile, for "loop" and "repeat".
    links: the directions in the torus that a transfer takes anywhere, "x+".
  """

  name: str
  start_s: float
  end_s: float
  row: str
  kind: str
  op_name: str
  source: str
  runs: int = 1
  trips: int = 0
  links: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """What one line of the schedule costs in a step.

  Attributes:
    name: the line.
    computation: the loop body, branch or entry that holds it.
    kind: "products", "kernels" or "rest" of compute, or what it waits for.
    runs: how often it runs.
    total_s: seconds of all runs together.
    op_name: its jax name stack.
    source: "file:line" that made it.
  """

  name: str
  computation: str
  kind: str
  runs: int
  total_s: float
  op_name: str
  source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
  """A simulated step.

  Attributes:
    step_time_s: seconds of the step, compute and waits together.
    compute_s: seconds of compute: "products" (dots and convolutions), "kernels"
      (Pallas) and "rest".
    exposed_s: seconds that the device waits, by kind of collective; "copy" for
      waits on its own memories.
    guessed_s: seconds of `compute_s` guessed from bytes, for want of cycles.
    events: the timeline.
    lines: every line that takes time, the costliest first.
    chip: short name of the chip.
    torus: the slice.
    devices: `(x, y, z, core)` of each device in partition order.
    stretches: each loop body, branch and the entry by mesh axes; empty where
      the mesh was not given.
  """

  step_time_s: float
  compute_s: dict[str, float]
  exposed_s: dict[str, float]
  guessed_s: float
  events: tuple[Event, ...]
  lines: tuple[Line, ...]
  chip: str
  torus: Torus
  devices: tuple[tuple[int, ...], ...]
  stretches: tuple[Stretch, ...] = ()

  @property
  def exposed_communication_s(self) -> float:
    """Seconds that the device waits for other devices."""
    return sum(s for kind, s in self.exposed_s.items() if kind != "copy")

  @property
  def exposed_fraction(self) -> float:
    """The share of the step that is exposed communication."""
    return self.exposed_communication_s / (self.step_time_s or 1.0)

  @property
  def exposed_by_axes_s(self) -> dict[str, float]:
    """Seconds waited for others, by the mesh axes that join them."""
    return waits_by_axes(self.stretches)

  def costliest(self, n: int = 10) -> dict[str, list[Line]]:
    """The `n` costliest lines of each loop body, branch and the entry."""
    found = collections.defaultdict(list)
    for line in self.lines:
      if len(found[line.computation]) < n:
        found[line.computation].append(line)
    return dict(found)

  def __str__(self) -> str:
    rows = [("simulated step", self.step_time_s)]
    rows += [(f"compute: {kind}", s) for kind, s in self.compute_s.items()]
    rows += [(f"waits: {kind}", s) for kind, s in self.exposed_s.items()]
    waits = self.exposed_by_axes_s
    rows += [(f"waits over {axes}", s) for axes, s in waits.items()]
    text = "\n".join(f"{name:32s}{s * 1e3:12.3f} ms" for name, s in rows)
    return (
      f"{text}\nexposed communication: {100 * self.exposed_fraction:.2f} % of "
      f"the step; guessed from bytes: {self.guessed_s * 1e3:.3f} ms"
      + "".join(f"\n{stretch}" for stretch in self.stretches)
    )
