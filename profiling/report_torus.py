"""The mesh on the torus, as a figure of plotly: planes of chips, and rings."""

import numpy as np

from profiling.replayed import Replay
from profiling.report_figures import layout

_WIDTH = 1200  # of the page, pixels
_GREY = "#6b7280"


def torus(replay: Replay, mesh: dict[str, int]) -> dict:
  """The chips of the slice, cut into planes, with the rings of the last axis.

  The planes lie across the dim along which the fewest ring links run. Links
  from plane to plane are dotted.

  Args:
    replay: names the place of each partition.
    mesh: sizes of the axes, in mesh order; their product is the partitions.
  """
  dims = len(replay.torus.shape)
  chips, cores = _places(replay)
  *_, ring = mesh.values()
  cut = _cut(chips.reshape(-1, ring, 3), dims)
  across, up = (dim for dim in range(3) if dim != cut)
  size = (chips.max(axis=0) + 1).tolist()
  few = len(chips) <= 300
  pitch = 30 if few else 15  # pixels
  fitting = _WIDTH // pitch // (size[across] + 1)
  per_row = max(1, min(size[cut], fitting))
  # Where each device is drawn; the cores of a chip stand side by side.
  x = chips[:, across] + chips[:, cut] % per_row * (size[across] + 1)
  y = -(chips[:, up] + chips[:, cut] // per_row * (size[up] + 1))
  x = x + 0.4 * cores
  data = [
    _links(x, y, chips[:, cut], ring, crossing, few)
    for crossing in (False, True)
  ]
  rows = -(-size[cut] // per_row)
  drawn = layout(
    height=70 + pitch * rows * (size[up] + 1),
    showlegend=False,
    annotations=[
      {
        "x": i % per_row * (size[across] + 1) + (size[across] - 1) / 2,
        "y": 0.75 - i // per_row * (size[up] + 1),
        "text": f"{'xyz'[cut]} = {i}",
        "showarrow": False,
        "font": {"size": 11, "color": _GREY},
      }
      for i in range(size[cut] if dims == 3 else 0)
    ],
  )
  drawn["margin"] |= {"l": 10, "r": 10, "t": 26}
  hidden = {"visible": False}
  drawn["xaxis"] |= hidden
  drawn["yaxis"] |= hidden | {"scaleanchor": "x"}
  return {"data": [*data, _devices(replay, x, y, mesh, few)], "layout": drawn}


def _places(replay: Replay) -> tuple[np.ndarray, np.ndarray]:
  """The chip of each partition, in three dims, and its core."""
  dims = len(replay.torus.shape)
  places = np.array(replay.devices)
  chips = np.zeros((len(places), 3), int)
  chips[:, :dims] = places[:, :dims] - places[:, :dims].min(axis=0)
  return chips, places[:, -1]


def _cut(rings: np.ndarray, dims: int) -> int:
  """The dim along which the fewest links of `rings[R, t, 3]` run."""
  if dims == 2:
    return 2
  moves = (rings != np.roll(rings, -1, axis=1)).sum(axis=(0, 1))
  return max(range(3), key=lambda dim: (-moves[dim], dim))


def _links(x, y, plane, ring: int, crossing: bool, few: bool) -> dict:
  """The links of all rings inside the planes, or those between them."""
  after = np.roll(np.arange(len(x)).reshape(-1, ring), -1, axis=1).ravel()
  wanted = (plane != plane[after]) == crossing
  wanted &= after != np.arange(len(x))
  width = 2 if few else 1.2
  line = {"color": "#4b5563", "width": width}
  if crossing:
    line = {"color": "#9ca3af", "width": 1, "dash": "dot"}
  ends = []
  for spots in (x, y):
    pairs = np.stack([spots, spots[after]], axis=1)[wanted].tolist()
    ends.append([spot for a, b in pairs for spot in (a, b, None)])
  return {
    "type": "scatter",
    "mode": "lines",
    "x": ends[0],
    "y": ends[1],
    "line": line,
    "hoverinfo": "skip",
  }


def _devices(replay: Replay, x, y, mesh: dict[str, int], few: bool) -> dict:
  """A square for each device, coloured by its place in the mesh."""
  dims = len(replay.torus.shape)
  spots = np.stack(np.unravel_index(np.arange(len(x)), [*mesh.values()]), -1)
  # Neighbours get colours that are far apart.
  hues = spots[:, :-1].sum(axis=1) * 137 % 360
  return {
    "type": "scatter",
    "mode": "markers+text" if few else "markers",
    "x": x.tolist(),
    "y": y.tolist(),
    "text": [str(i) for i in spots[:, -1].tolist()],
    "textfont": {"size": 10},
    "marker": {
      "symbol": "square",
      "size": 22 if few else 10,
      "color": [f"hsl({hue},60%,78%)" for hue in hues.tolist()],
      "line": {"width": 0},
    },
    "customdata": [
      f"partition {i}: "
      + ", ".join(f"{n} {at}" for n, at in zip(mesh, spot, strict=True))
      + f"<br>chip {list(place[:dims])}, core {place[-1]}"
      for i, (spot, place) in enumerate(
        zip(spots.tolist(), replay.devices, strict=True)
      )
    ],
    "hovertemplate": "%{customdata}<extra></extra>",
  }
