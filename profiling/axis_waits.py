"""For whom a step waits: the axes of the mesh, stretch by stretch.

On a `(data, model)` mesh what joins devices along "data" are weights and their
gradients, what joins them along "model" are activations.
"""

import collections
import dataclasses
import functools

import numpy as np

from collective_mm import hlo_groups
from collective_mm.walk import Walk
from profiling.slice_costs import SliceCosts

_SMALL = 1 << 20  # bytes; a collective below it is bookkeeping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
  """A loop body, a branch or the entry; seconds are of all its runs together.

  Axes are joined by commas, "data,model".

  Attributes:
    computation: its name.
    runs: how often it runs.
    compute_s: seconds of compute.
    sends_s: seconds for which the busiest link carries what travels, by axes.
    waits_s: seconds of waits for what travels, by axes.
    blocking: lines that block on a collective of a MiB or more, by axes.
  """

  computation: str
  runs: int
  compute_s: float
  sends_s: dict[str, float]
  waits_s: dict[str, float]
  blocking: dict[str, int]

  def __str__(self) -> str:
    def parts(name, found, show):
      return [f"{name} {axes} {show(n)}" for axes, n in found.items()]

    def ms(seconds):
      return f"{1e3 * seconds / self.runs:.3f} ms"

    return ", ".join(
      [
        f"{self.computation}, {self.runs} times: compute {ms(self.compute_s)}",
        *parts("sends over", self.sends_s, ms),
        *parts("waits over", self.waits_s, ms),
        *parts("blocking over", self.blocking, str),
      ]
    )


def stretches(
  walk: Walk, costs: SliceCosts, mesh: dict[str, int]
) -> tuple[Stretch, ...]:
  """What each stretch of `walk` computes, sends and waits for.

  Args:
    walk: a walked module.
    costs: its costs.
    mesh: the size of each axis; partitions are numbered in its order.

  Returns:
    The stretches, the longest first, without those that send nothing.
  """
  compute = collections.Counter()
  runs = collections.Counter()
  busy, waits, blocking = (
    collections.defaultdict(functools.partial(collections.defaultdict, kind))
    for kind in (lambda: np.zeros(costs.torus.links), float, set)
  )
  line_runs = collections.Counter()
  for span in walk.spans:
    at = span.line.computation
    if span.what == "compute":
      compute[at] += span.runs * span.seconds
      line_runs[at, span.line.name] += span.runs
      runs[at] = max(runs[at], line_runs[at, span.line.name])
    if span.transfer is None or span.what not in ("transfer", "wait"):
      continue
    axes = _axes(span.transfer, mesh)
    if span.what == "wait":
      waits[at][axes] += span.runs * span.seconds
      continue
    busy[at][axes] += span.runs * costs.loads(span.transfer)
    if span.ended_by is None and span.transfer.nbytes >= _SMALL:
      blocking[at][axes].add(span.line.name)
  found = [
    Stretch(
      computation=at,
      runs=max(runs[at], 1),
      compute_s=compute[at],
      sends_s={a: float(links.max()) for a, links in sorted(busy[at].items())},
      waits_s=dict(sorted(waits[at].items())),
      blocking={a: len(lines) for a, lines in sorted(blocking[at].items())},
    )
    for at in {**busy, **waits}
  ]
  return tuple(sorted(found, key=lambda s: (-s.compute_s, s.computation)))


def waits_by_axes(found: tuple[Stretch, ...]) -> dict[str, float]:
  """Seconds of waits by axes, all of `found` together."""
  seconds = collections.Counter()
  for stretch in found:
    seconds.update(stretch.waits_s)
  return dict(sorted(seconds.items()))


def _axes(transfer, mesh: dict[str, int]) -> str:
  joined = transfer.groups if transfer.pairs is None else transfer.pairs
  return ",".join(hlo_groups.joined_axes(joined, mesh))
