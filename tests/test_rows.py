import itertools

import pytest
import replays

from profiling import rows
from profiling.replayed import Event


def event(start_s, end_s, **changes):
  fields = {
    "name": "line",
    "row": "collective-permute",
    "kind": "collective-permute",
    "op_name": "",
    "source": "",
  }
  return Event(start_s=start_s, end_s=end_s, **fields | changes)


def test_repeated_trips_are_folded():
  replay = replays.ring()
  fold = rows.Fold(replay)
  (repeat,) = (e for e in replay.events if e.row == "repeat")
  assert repeat.trips == 46
  walked_s = replay.step_time_s * 2 / 48
  assert fold.end == pytest.approx(1.05 * walked_s)
  width = fold(repeat.end_s) - fold(repeat.start_s)
  assert width == pytest.approx(0.05 * walked_s)
  # All else is to scale.
  for e in replay.events:
    if e.row in ("compute", "wait"):
      assert fold(e.end_s) - fold(e.start_s) == pytest.approx(
        e.end_s - e.start_s
      )


def test_ticks_are_round_and_outside_of_repeats():
  replay = replays.ring()
  (repeat,) = (e for e in replay.events if e.row == "repeat")
  ticks = rows.Fold(replay).ticks()
  assert 5 <= len(ticks) <= 14
  assert ticks == sorted(ticks)
  inside = [t for t in ticks if repeat.start_s < t < repeat.end_s]
  assert inside == []


def test_the_rows():
  found = rows.rows(replays.ring())
  assert list(found) == [
    *("loops", "core"),
    *("link x+", "link x-", "link y+", "link y-"),
  ]
  (whole,) = found["loops"]
  assert rows.label(whole) == "while: 48 trips"
  for a, b in itertools.pairwise(found["core"]):
    assert b.start_s == pytest.approx(a.end_s)
  assert {e.name for e in found["link x+"]} == {"s", "t"}


def test_lanes_do_not_overlap():
  events = [event(0, 4), event(1, 2), event(2, 5), event(3, 4), event(4, 6)]
  assert rows.lanes(events) == [0, 1, 1, 2, 0]


def test_labels():
  loop = event(0, 1, row="loop", trips=48, op_name="jit(f)/jvp()/while")
  assert rows.label(loop) == "line: forward, 48 trips"
  back = event(0, 1, row="loop", trips=2, op_name="transpose(jvp())/while")
  assert rows.label(back) == "line: backward, 2 trips"
  assert rows.label(event(0, 1, row="repeat", trips=46)) == "x 46 repeats"
  assert rows.label(event(0, 1, row="wait")) == "wait for line"
