import pytest
import replays

from profiling import report_figures


def bars(figure, name):
  (trace,) = (t for t in figure["data"] if t["name"] == name)
  return trace


def test_the_bars_of_the_timeline():
  figure = report_figures.timeline(replays.ring())
  products = bars(figure, "products")
  # Two trips are drawn, a short product and a long one in each.
  assert products["x"] == pytest.approx([0.01, 0.1] * 2)
  assert products["y"] == [1] * 4
  assert len({len(products[name]) for name in ("base", "text", "width")}) == 1
  assert bars(figure, "repeat")["text"] == ["x 46"]
  # Two transfers a trip, each on the four directions of the square.
  assert len(bars(figure, "collective-permute")["x"]) == 2 * 2 * 4
  assert figure["layout"]["yaxis"]["ticktext"][:2] == ["loops", "core"]


def test_a_button_shows_one_trip():
  result = replays.ring()
  figure = report_figures.timeline(result)
  whole, trip = figure["layout"]["updatemenus"][0]["buttons"]
  assert whole["label"] == "whole step"
  assert trip["label"] == "a trip of while"
  start, end = trip["args"][0]["xaxis.range"]
  assert end - start == pytest.approx(1e3 * result.step_time_s / 48)


def test_the_parts_are_the_whole_step():
  result = replays.ring()
  (data,) = report_figures.parts(result)["data"]
  assert sum(data["x"]) == pytest.approx(1e3 * result.step_time_s)
  assert data["x"] == sorted(data["x"], reverse=True)
  assert set(data["y"]) == {"compute: products", "wait: collective-permute"}


def test_memory_counts_what_is_written_in_place_once():
  gib = 1 << 30
  hbm = {
    "arguments": 5 * gib,
    "outputs": 6 * gib,
    "aliased": 5 * gib,
    "temporaries": 2 * gib,
    "code": 0,
    "peak": 8 * gib,
    "usable": 31 * gib,
  }
  figure = report_figures.memory(hbm)
  sizes = {t["name"]: t["x"] for t in figure["data"]}
  assert sizes == {
    "arguments, 5.00 GiB": [5],
    "temporaries, 2.00 GiB": [2],
    "new outputs, 1.00 GiB": [1],
  }
  (line,) = figure["layout"]["shapes"]
  assert line["x0"] == 31
