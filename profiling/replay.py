"""Replays the schedule of a compiled TPU program: how long a step would take.

The walk and what it assumes are `collective_mm.walk`'s, the costs those of
`profiling.slice_costs`. A loop is walked until one trip is like the one before
and the rest are added, so that transfers under way across its back edge count.
"""

import argparse
import collections
import json
import logging
import math
import sys

import numpy as np

from collective_mm import hlo
from collective_mm.chips import ChipLink, timed_chip
from collective_mm.walk import Span, Walk
from profiling import axis_waits, peaks, slice_costs
from profiling.replayed import Event, Line
from profiling.replayed import Replay as Replay
from profiling.torus import Torus, torus_of


def replay(
  text: str,
  *,
  devices: list[list[int]],
  chip: str,
  torus_shape: tuple[int, ...] | None = None,
  mesh: dict[str, int] | None = None,
) -> Replay:
  """Simulates one step of the scheduled module `text`.

  Args:
    text: `compiled.as_text()` of a TPU program.
    devices: `[x, y, z, core]` of each device in partition order.
    chip: the chip's short name ("v4") or its `device_kind` ("TPU v4").
    torus_shape: chips along each dim of the slice; the box around `devices` if
      not given.
    mesh: the size of each mesh axis, partitions numbered in its order, to tell
      for which axes the step waits.

  Raises:
    ValueError: if `text` is not scheduled HLO of `len(devices)` partitions,
      `mesh` does not have as many, the chip has no published clock or links, a
      custom call has no known cost or a loop no constant trip count.
  """
  module = hlo.parse(text)
  if mesh is not None and math.prod(mesh.values()) != module.partitions:
    raise ValueError(
      f"mesh must have the module's {module.partitions} devices, got {mesh}"
    )
  link = timed_chip(chip)
  torus, places = _slice(module.partitions, devices, link, torus_shape)
  costs = slice_costs.SliceCosts(peaks.CHIPS[link.kind], torus, places)
  unknown = slice_costs.unknown_lines(module, costs.chip)
  if unknown:
    raise ValueError(
      "every line must have a known cost (a Pallas kernel needs a "
      f"cost_estimate), got {len(unknown)} without: {', '.join(unknown[:10])}"
    )
  walk = Walk(module, costs)
  return _result(module, walk, costs, link.name, devices, mesh)


def _slice(
  partitions: int,
  devices: list[list[int]],
  link: ChipLink,
  torus_shape: tuple[int, ...] | None,
) -> tuple[Torus, np.ndarray]:
  if len(devices) != partitions:
    raise ValueError(
      f"devices must list the module's {partitions} partitions, got "
      f"{len(devices)}"
    )
  places = np.array(devices)[:, : link.torus_dims]
  places = places - places.min(axis=0)
  box = tuple(int(n) for n in places.max(axis=0) + 1)
  shape = box if torus_shape is None else tuple(torus_shape)
  if len(shape) != len(box) or any(
    n < m for n, m in zip(shape, box, strict=True)
  ):
    raise ValueError(
      f"torus_shape must hold the devices, which take {box}, got {shape}"
    )
  return torus_of(link, shape), places


def _result(
  module: hlo.Module,
  walk: Walk,
  costs: slice_costs.SliceCosts,
  chip: str,
  devices: list[list[int]],
  mesh: dict[str, int] | None,
) -> Replay:
  compute, exposed = collections.Counter(), collections.Counter()
  seconds, runs = collections.Counter(), collections.Counter()
  lines, guessed = {}, 0.0
  for span in walk.spans:
    if span.what not in ("compute", "wait"):
      continue
    total = span.runs * span.seconds
    (compute if span.what == "compute" else exposed)[span.kind] += total
    key = span.line.computation, span.line.name, span.kind
    seconds[key] += total
    runs[key] += span.runs
    lines[key] = span.line
    if span.what == "compute" and slice_costs.is_guessed(span.line):
      guessed += total
  found = [
    Line(
      name=name,
      computation=computation,
      kind=kind,
      runs=runs[computation, name, kind],
      total_s=total,
      op_name=lines[computation, name, kind].op_name,
      source=module.source(lines[computation, name, kind]),
    )
    for (computation, name, kind), total in seconds.items()
  ]
  return Replay(
    step_time_s=walk.seconds,
    compute_s=dict(sorted(compute.items())),
    exposed_s=dict(sorted(exposed.items())),
    guessed_s=guessed,
    events=tuple(_event(module, span, costs) for span in walk.spans),
    lines=tuple(sorted(found, key=lambda line: (-line.total_s, line.name))),
    chip=chip,
    torus=costs.torus,
    devices=tuple(tuple(device) for device in devices),
    stretches=() if mesh is None else axis_waits.stretches(walk, costs, mesh),
  )


def _event(
  module: hlo.Module, span: Span, costs: slice_costs.SliceCosts
) -> Event:
  moves = span.what in ("transfer", "move")
  return Event(
    name=span.line.name,
    start_s=span.begin,
    end_s=span.end,
    row=span.kind if moves else span.what,
    kind=span.kind,
    op_name=span.line.op_name,
    source=module.source(span.line),
    runs=span.runs,
    trips=span.trips,
    links=costs.directions(span.transfer) if moves and span.transfer else (),
  )


def main(argv: list[str] | None = None) -> int:
  """Prints the totals of a replay; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m profiling.replay", description=__doc__.splitlines()[0]
  )
  parser.add_argument("--text", required=True, help="scheduled HLO of a TPU")
  parser.add_argument(
    "--devices", required=True, help="JSON list of [x, y, z, core] by partition"
  )
  parser.add_argument("--chip", required=True, help="such as v4 or v5e")
  parser.add_argument(
    "--mesh", help="devices on data,model, to tell for which axes it waits"
  )
  parser.add_argument(
    "--lines", type=int, default=10, help="costliest lines of each loop body"
  )
  parser.add_argument("--trace", help="write a trace for ui.perfetto.dev here")
  parser.add_argument("--png", help="draw the timeline here")
  parser.add_argument("--html", help="write a report for a browser here")
  parser.add_argument(
    "--summary", help="report.json of profiling.aot, for more in the report"
  )
  args = parser.parse_args(argv)
  try:
    with open(args.text) as text, open(args.devices) as devices:
      result = replay(
        text.read(),
        devices=json.load(devices),
        chip=args.chip,
        mesh=_mesh(args.mesh),
      )
    _export(result, args)
  except (OSError, ValueError) as e:
    print(f"{parser.prog}: {e}", file=sys.stderr)
    return 2
  print(result)
  for computation, lines in result.costliest(args.lines).items():
    print(f"\n{computation}")
    for line in lines:
      print(
        f"{line.total_s * 1e3:12.3f} ms {line.runs:6d} x {line.kind:20s}"
        f"{line.name:40s} {line.op_name} {line.source}"
      )
  return 0


def _mesh(text: str | None) -> dict[str, int] | None:
  if text is None:
    return None
  sizes = text.split(",")
  if len(sizes) != 2 or not all(n.isdecimal() for n in sizes):
    raise ValueError(
      f"--mesh must be 2 whole numbers, data,model, got {text!r}"
    )
  return dict(zip(("data", "model"), map(int, sizes), strict=True))


def _export(result: Replay, args: argparse.Namespace) -> None:
  # Only these need matplotlib and plotly.
  if args.trace:
    from profiling.timeline import write_trace

    write_trace(result, args.trace)
  if args.png:
    from profiling.timeline import write_png

    # A font cache that another environment left names fonts that are gone.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    write_png(result, args.png)
  if args.html:
    from profiling.report_html import write_html

    summary = {}
    if args.summary:
      with open(args.summary) as file:
        summary = json.load(file)
    write_html(result, summary, args.html)


if __name__ == "__main__":
  sys.exit(main())
