import collections
import itertools
import json

import numpy as np
import pytest
import replays
from hlo_text import ARRAY, module
from matplotlib import image

from profiling import replay, timeline
from profiling.report_html import write_html


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
  path = tmp_path_factory.mktemp("trace") / "trace.json"
  timeline.write_trace(replays.ring(), path)
  return json.loads(path.read_text())["traceEvents"]


def test_a_row_of_the_trace_for_the_core_and_each_direction(trace):
  named = {
    e["tid"]: e["args"]["name"] for e in trace if e["name"] == "thread_name"
  }
  directions = [f"link {axis}{way}" for axis in "xy" for way in "+-"]
  # Both halves of the ring travel at once, so each direction has two rows.
  both = [(name, f"{name} (2)") for name in directions]
  assert list(named.values()) == ["loops", "core", *itertools.chain(*both)]


def test_slices_of_one_row_do_not_overlap(trace):
  threads = collections.defaultdict(list)
  for e in trace:
    if e["ph"] == "X":
      threads[e["tid"]].append((e["ts"], e["ts"] + e["dur"]))
  assert len(threads) == 10
  for spans in threads.values():
    for (_, end), (begin, _) in itertools.pairwise(sorted(spans)):
      assert begin >= end - 1e-5


def test_the_trace_is_the_whole_step(trace):
  slices = [e for e in trace if e["ph"] == "X"]
  step_us = 1e6 * replays.ring().step_time_s
  assert max(e["ts"] + e["dur"] for e in slices) == pytest.approx(step_us)
  (repeat,) = (e for e in slices if e["cat"] == "repeat")
  assert repeat["name"] == "x 46 repeats"
  assert repeat["dur"] == pytest.approx(step_us * 46 / 48)
  p = next(e for e in slices if e["name"] == "p")
  assert p["args"]["op_name"] == "jit(f)/ring/dot_general"
  assert p["dur"] == pytest.approx(10)


def test_the_picture(tmp_path):
  paths = tmp_path / "a.png", tmp_path / "b.png"
  for path in paths:
    timeline.write_png(replays.ring(), path)
  assert paths[0].read_bytes() == paths[1].read_bytes()
  pixels = image.imread(paths[0])[:, :, :3]
  assert pixels.shape[1] > 1500
  for key in ("products", "wait", "collective-permute"):
    rgb = [int(timeline.colour(key)[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    share = (np.abs(pixels - rgb).max(axis=-1) < 0.01).mean()
    assert share > 0.001, key


def test_a_step_of_no_time(tmp_path):
  nothing = replay.replay(
    module(f"ROOT %y = {ARRAY} bitcast(%x)"), devices=replays.SQUARE, chip="v4"
  )
  assert nothing.step_time_s == 0
  timeline.write_png(nothing, tmp_path / "a.png")
  timeline.write_trace(nothing, tmp_path / "a.json")
  write_html(nothing, {"mesh": {"data": 2, "model": 2}}, tmp_path / "a.html")
