import dataclasses

import numpy as np
import pytest
import replays

from profiling import report_torus
from profiling.torus import Torus


def on(shape, places):
  """A replay on devices at `places` of a torus of `shape`."""
  return dataclasses.replace(
    replays.ring(),
    torus=Torus(shape, (False,) * len(shape)),
    devices=tuple(places),
  )


@pytest.mark.parametrize(
  "shape, mesh, edges",
  [
    ((2, 2, 1), {"data": 1, "model": 4}, 4),
    ((4, 1, 1), {"data": 4, "model": 1}, 0),
    ((2, 2, 4), {"data": 4, "model": 4}, 16),
    ((2, 4), {"data": 2, "model": 4}, 8),
    ((8, 8, 16), {"data": 256, "model": 4}, 1024),
  ],
)
def test_the_mesh_on_the_torus(shape, mesh, edges):
  # Rings of four round a square of the first two dims.
  square = [(0, 0), (1, 0), (1, 1), (0, 1)]
  ring = square if mesh["model"] == 4 else [(0, 0)]
  places = [
    (x + dx, y + dy, z, 0)
    for z in range(shape[2] if len(shape) == 3 else 1)
    for x in range(0, shape[0], 2 if len(ring) == 4 else 1)
    for y in range(0, shape[1], 2 if len(ring) == 4 else 1)
    for dx, dy in ring
  ]
  figure = report_torus.torus(on(shape, places), mesh)
  links, crossing, chips = figure["data"]
  spots = list(zip(chips["x"], chips["y"], strict=True))
  assert len(set(spots)) == len(places)
  ends = np.array([x for x in links["x"] if x is not None]).reshape(-1, 2)
  assert len(ends) == edges
  assert (np.abs(ends[:, 0] - ends[:, 1]) <= 1).all()  # to a neighbour
  assert crossing["x"] == []
  assert "data 0, model 0" in chips["customdata"][0]


def test_links_between_planes_are_dotted():
  # A ring of eight that goes down one side of a cube and up the other.
  down = [(0, 0), (1, 0), (1, 1), (0, 1)]
  places = [(*at, 0, 0) for at in down] + [(*at, 1, 0) for at in down[::-1]]
  figure = report_torus.torus(on((2, 2, 2), places), {"data": 1, "model": 8})
  links, crossing, _ = figure["data"]
  assert len(links["x"]) == 3 * 6  # a start, an end and a gap for each
  assert len(crossing["x"]) == 3 * 2
  assert crossing["line"]["dash"] == "dot"
  assert [a["text"] for a in figure["layout"]["annotations"]] == [
    *("z = 0", "z = 1")
  ]


def test_the_cores_of_a_chip_stand_side_by_side():
  places = [(x, 0, 0, core) for x in range(2) for core in range(2)]
  figure = report_torus.torus(on((2, 1, 1), places), {"data": 2, "model": 2})
  *_, chips = figure["data"]
  assert chips["x"] == pytest.approx([0, 0.4, 1, 1.4])
  assert chips["customdata"][3].endswith("chip [1, 0, 0], core 1")
