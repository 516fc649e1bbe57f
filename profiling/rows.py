"""The rows of a timeline, and an axis on which repeated trips take little room.

A loop is walked until one trip is like the one before; the others are one
"repeat" event, most of the step for a model of many layers. `Fold` draws that
event narrow and all other time to one scale.
"""

import numpy as np

from profiling.replayed import Event, Replay

LOOPS, CORE, COPIES = "loops", "core", "copies in the chip"
_REPEAT_WIDTH = 0.05  # of the other time, each
_ALL_REPEATS = 0.3  # of the other time, together
_CORE_ROWS = ("compute", "wait", "repeat")


class Fold:
  """A map from seconds of the step to seconds on the folded axis.

  Attributes:
    end: where the step ends on the folded axis.
  """

  def __init__(self, replay: Replay):
    repeats = sorted(
      (e.start_s, e.end_s) for e in replay.events if e.row == "repeat"
    )
    detail = replay.step_time_s - sum(end - start for start, end in repeats)
    width = detail * min(
      _REPEAT_WIDTH, _ALL_REPEATS / max(len(repeats), 1)
    ) or float("inf")  # nothing but repeats
    self._seconds, self._folded = [0.0], [0.0]
    for start, end in repeats:
      self._add(start, start - self._seconds[-1])
      self._add(end, min(width, end - start))
    self._add(replay.step_time_s, replay.step_time_s - self._seconds[-1])
    self.end = self._folded[-1]

  def __call__(self, seconds):
    """Where `seconds` of the step are on the folded axis."""
    return np.interp(seconds, self._seconds, self._folded)

  def ticks(self, count: int = 12) -> list[float]:
    """About `count` round numbers of seconds, none inside a repeat."""
    if not self.end:
      return [0.0]
    rough = self.end / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * min(n for n in (1, 2, 5, 10) if n * power >= rough * 0.999)
    found = []
    for i in range(0, len(self._seconds) - 1, 2):
      first, last = self._seconds[i : i + 2]
      numbers = np.arange(np.ceil(first / step), np.floor(last / step) + 1)
      found += (numbers * step).tolist()
    return found

  def _add(self, seconds: float, folded: float):
    self._seconds.append(seconds)
    self._folded.append(self._folded[-1] + folded)


def rows(replay: Replay) -> dict[str, list[Event]]:
  """The events of each row, from top to bottom, by start.

  The core comes first, after the loops that it is in; then copies between the
  chip's own memories and each direction of the torus in which links exist. A
  transfer is on every direction that it takes on any chip.
  """
  names = [LOOPS, CORE, COPIES]
  names += [
    f"link {axis}{way}"
    for axis, size in zip("xyz", replay.torus.shape, strict=False)
    if size > 1
    for way in "+-"
  ]
  found = {name: [] for name in names}
  for event in sorted(replay.events, key=lambda e: (e.start_s, -e.end_s)):
    if event.row == "loop":
      found[LOOPS].append(event)
    elif event.row in _CORE_ROWS:
      found[CORE].append(event)
    elif event.row == "copy":
      found[COPIES].append(event)
    for link in event.links:
      found[f"link {link}"].append(event)
  return {name: events for name, events in found.items() if events}


def lanes(events: list[Event]) -> list[int]:
  """A lane for each event, so that those in one lane do not overlap.

  Args:
    events: by start.
  """
  ends: list[float] = []
  chosen = []
  for event in events:
    free = (i for i, end in enumerate(ends) if end <= event.start_s + 1e-12)
    lane = next(free, len(ends))
    ends[lane : lane + 1] = [event.end_s]
    chosen.append(lane)
  return chosen


def label(event: Event) -> str:
  """What an event is called where there is room for a few words."""
  if event.row == "loop":
    # How jax names what it transposed, and what will be.
    way = "backward" if "transpose(" in event.op_name else "forward"
    way = f"{way}, " if "jvp(" in event.op_name else ""
    return f"{event.name}: {way}{event.trips} trips"
  if event.row == "repeat":
    return f"x {event.trips} repeats"
  if event.row == "wait":
    return f"wait for {event.name}"
  return event.name


def short_source(source: str) -> str:
  """The last two parts of the path in "file:line".

  Example:
    >>> short_source("/home/me/models/vit.py:12")
    'models/vit.py:12'
  """
  return "/".join(source.split("/")[-2:])
