"""The timeline of a replay as a trace for Perfetto or Chrome, and as a picture.

Both have a row for the loops, one for the core (compute and waits), one for
copies between the chip's memories and one for each direction of the torus.
"""

import json
import pathlib

from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from profiling.replayed import Event, Replay
from profiling.rows import LOOPS, Fold, label, lanes, rows

COLOURS = {
  "products": "#2f6db3",
  "kernels": "#17a2a2",
  "rest": "#a9bdd4",
  "wait": "#d62728",
  "repeat": "#eceff3",
  "loop": "#dfe3e8",
  "copy": "#8c8c8c",
  "collective-permute": "#f2a33a",
  "all-gather": "#4f9d4f",
  "reduce-scatter": "#8b62b5",
  "all-reduce": "#8c564b",
}
_OTHER = "#d77fb8"


def colour_key(event: Event) -> str:
  """The key of `COLOURS` that tells what an event is."""
  return event.kind if event.row == "compute" else event.row


def colour(key: str) -> str:
  """The colour of a key; one for all collectives that are rare."""
  return COLOURS.get(key, _OTHER)


def write_trace(replay: Replay, path: str | pathlib.Path) -> None:
  """Writes the timeline as Chrome trace events, for ui.perfetto.dev.

  Times are the step's own, in microseconds: the trips of a loop that are not
  walked are one slice. Where transfers overlap on a direction, it has more than
  one row.
  """
  events = [_named("process_name", 0, "one device of the slice, simulated")]
  thread = 0
  for row, found in rows(replay).items():
    # Loops nest, as slices of one row may; transfers overlap, which they may
    # not.
    lane = [0] * len(found) if row == LOOPS else lanes(found)
    for i in range(max(lane) + 1):
      name = row if i == 0 else f"{row} ({i + 1})"
      events.append(_named("thread_name", thread + i, name))
      events.append(
        {
          "ph": "M",
          "pid": 0,
          "tid": thread + i,
          "name": "thread_sort_index",
          "args": {"sort_index": thread + i},
        }
      )
    events += [
      _slice(event, thread + i) for event, i in zip(found, lane, strict=True)
    ]
    thread += max(lane) + 1
  trace = {"displayTimeUnit": "ms", "traceEvents": events}
  pathlib.Path(path).write_text(json.dumps(trace, separators=(",", ":")))


def _named(what: str, thread: int, name: str) -> dict:
  return {
    "ph": "M",
    "pid": 0,
    "tid": thread,
    "name": what,
    "args": {"name": name},
  }


def _slice(event: Event, thread: int) -> dict:
  args = {
    "kind": event.kind,
    "runs": event.runs,
    "op_name": event.op_name,
    "source": event.source,
    "links": " ".join(event.links),
  }
  return {
    "ph": "X",
    "pid": 0,
    "tid": thread,
    "name": label(event),
    "cat": event.row,
    "ts": round(event.start_s * 1e6, 6),
    "dur": round((event.end_s - event.start_s) * 1e6, 6),
    "args": {name: value for name, value in args.items() if value},
  }


def write_png(replay: Replay, path: str | pathlib.Path) -> None:
  """Draws the timeline, the repeated trips of each loop folded to a strip."""
  fold, found = Fold(replay), rows(replay)
  figure = Figure(figsize=(16, 1.6 + 0.55 * len(found)), layout="constrained")
  axes = figure.subplots()
  used = dict.fromkeys(key for key in COLOURS if key not in ("repeat", "loop"))
  seen = set()
  for y, (row, events) in enumerate(found.items()):
    lane = lanes(events)
    height = 0.84 / (max(lane) + 1)
    boxes: dict[str, list[Rectangle]] = {}
    for event, i in zip(events, lane, strict=True):
      begin, end = fold((event.start_s, event.end_s)) * 1e3
      box = Rectangle((begin, y - 0.42 + i * height), end - begin, height)
      boxes.setdefault(colour_key(event), []).append(box)
      if event.row == "repeat" or row == LOOPS:
        axes.text(
          (begin + end) / 2,
          y - 0.42 + (i + 0.5) * height,
          label(event) if row == LOOPS else f"x {event.trips}",
          ha="center",
          va="center",
          fontsize=8,
          clip_on=True,
        )
    for key, patches in boxes.items():
      seen.add(key)
      axes.add_collection(
        PatchCollection(
          patches,
          facecolor=colour(key),
          edgecolor="#9aa4b1" if key in ("repeat", "loop") else "none",
          hatch="////" if key == "repeat" else None,
          linewidth=0.4,
        )
      )
  axes.set_xlim(0, fold.end * 1e3 or 1.0)
  axes.set_ylim((len(found) or 1) - 0.5, -0.5)
  axes.set_yticks(range(len(found)), list(found))
  ticks = fold.ticks()
  axes.set_xticks(fold(ticks) * 1e3, [f"{1e3 * tick:g}" for tick in ticks])
  axes.set_xlabel("ms of the step; hatched: repeated trips, folded")
  axes.set_title(
    f"simulated step on a TPU {replay.chip}, "
    f"{'x'.join(map(str, replay.torus.shape))} chips: "
    f"{1e3 * replay.step_time_s:,.3f} ms, exposed communication "
    f"{replay.exposed_fraction:.1%}",
    loc="left",
  )
  for side in ("top", "right", "left"):
    axes.spines[side].set_visible(False)
  keys = [key for key in used if key in seen]
  keys += sorted(seen - used.keys() - {"repeat", "loop"})
  figure.legend(
    handles=[Patch(color=colour(key), label=key) for key in keys],
    loc="outside lower center",
    ncols=len(keys) or 1,
    frameon=False,
  )
  # Without the version and the date, two runs give the same bytes.
  figure.savefig(path, dpi=130, format="png", metadata={"Software": None})
