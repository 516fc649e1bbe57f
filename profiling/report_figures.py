"""The figures of a replay's report, as plotly's JSON: `{"data", "layout"}`."""

import itertools

from profiling.replayed import Event, Replay
from profiling.rows import Fold, label, lanes, rows, short_source
from profiling.timeline import colour, colour_key

_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2937"}
_GRID = "#e5e7eb"


def timeline(replay: Replay) -> dict:
  """The timeline: zoom with the mouse, or to one trip of a loop by button."""
  fold, found = Fold(replay), rows(replay)
  traces: dict[str, dict] = {}
  for y, events in enumerate(found.values()):
    lane = lanes(events)
    height = 0.84 / (max(lane) + 1)
    for event, i in zip(events, lane, strict=True):
      begin, end = (1e3 * x for x in fold((event.start_s, event.end_s)))
      key = colour_key(event)
      trace = traces.setdefault(key, _bars(key))
      trace["base"].append(round(begin, 6))
      trace["x"].append(round(end - begin, 6))
      trace["y"].append(y)
      trace["width"].append(round(height, 4))
      trace["offset"].append(round(i * height - 0.42, 4))
      trace["text"].append(_text(event))
      trace["customdata"].append(_hover(event))
  drawn = layout(
    height=150 + 62 * len(found),
    barmode="overlay",
    hovermode="closest",
    legend={"orientation": "h", "y": -0.12, "yanchor": "top"},
    updatemenus=[_zooms(replay, fold)],
    margin={"l": 120, "r": 16, "t": 46, "b": 20},
  )
  drawn["xaxis"] |= {
    "title": {"text": "ms; the repeated trips of a loop are folded"},
    "range": [0, 1e3 * fold.end],
  }
  drawn["yaxis"] |= {
    "tickvals": list(range(len(found))),
    "ticktext": list(found),
    "range": [len(found) - 0.5, -0.5],
    "fixedrange": True,
    "showgrid": False,
  }
  return {"data": list(traces.values()), "layout": drawn}


def _text(event: Event) -> str:
  """What stands in a bar."""
  if event.row == "repeat":
    return f"x {event.trips}"
  return label(event) if event.row == "loop" else ""


def _bars(key: str) -> dict:
  marker = {"color": colour(key), "line": {"width": 0}}
  if key == "repeat":
    marker["pattern"] = {"shape": "/", "fgcolor": "#9aa4b1", "size": 7}
  trace = {
    "type": "bar",
    "orientation": "h",
    "name": key,
    "marker": marker,
    "hovertemplate": (
      "<b>%{customdata[0]}</b><br>%{customdata[1]}<br>%{customdata[2]}"
      "<br>%{customdata[3]}<extra></extra>"
    ),
    "textposition": "inside",
    "insidetextanchor": "middle",
    "textangle": 0,
    "showlegend": key not in ("repeat", "loop"),
  }
  lists = ("base", "x", "y", "width", "offset", "text", "customdata")
  return trace | {name: [] for name in lists}


def _hover(event: Event) -> list[str]:
  seconds = event.end_s - event.start_s
  times = "" if event.runs == 1 else f", {event.runs} times a step"
  travels = f" on {' '.join(event.links)}" if event.links else ""
  return [
    f"{label(event)}: {event.kind}{travels}",
    f"{1e3 * seconds:,.4f} ms from {1e3 * event.start_s:,.4f} ms{times}",
    event.op_name,
    short_source(event.source),
  ]


def _zooms(replay: Replay, fold: Fold) -> dict:
  """Buttons for the whole step, and for the last walked trip of each loop."""
  views = [("whole step", 0.0, replay.step_time_s)]
  for event in replay.events:
    if event.row == "repeat":
      trip = (event.end_s - event.start_s) / event.trips
      views.append(
        (f"a trip of {event.name}", event.start_s - trip, event.start_s)
      )
  return {
    "type": "buttons",
    "direction": "right",
    "x": 0,
    "y": 1,
    "xanchor": "left",
    "yanchor": "bottom",
    "pad": {"b": 8},
    "showactive": False,
    "buttons": [
      {
        "label": name,
        "method": "relayout",
        "args": [
          {"xaxis.range": [1e3 * float(fold(start)), 1e3 * float(fold(end))]}
        ],
      }
      for name, start, end in views[:8]
    ],
  }


def parts(replay: Replay) -> dict:
  """Where the step went: seconds of compute and of waiting, by kind."""
  found = [
    (f"compute: {kind}", seconds, colour(kind))
    for kind, seconds in replay.compute_s.items()
  ]
  found += [
    (f"wait: {kind}", seconds, colour("wait" if kind != "copy" else kind))
    for kind, seconds in replay.exposed_s.items()
  ]
  found.sort(key=lambda part: -part[1])
  names, seconds, colours = zip(*found, strict=True) if found else ((), (), ())
  whole = replay.step_time_s or 1.0
  data = {
    "type": "bar",
    "orientation": "h",
    "y": names,
    "x": [1e3 * s for s in seconds],
    "marker": {"color": colours},
    "text": [f"{1e3 * s:,.2f} ms, {s / whole:.1%}" for s in seconds],
    "textposition": "outside",
    "cliponaxis": False,
    "hoverinfo": "none",
  }
  drawn = layout(height=70 + 40 * len(names))
  drawn["margin"] |= {"l": 180, "r": 130}
  drawn["xaxis"] |= {"title": {"text": "ms of the step"}, "tickformat": ","}
  drawn["yaxis"] |= {"autorange": "reversed", "showgrid": False}
  return {"data": [data], "layout": drawn}


def memory(hbm: dict[str, int]) -> dict:
  """What takes the room on each device, beside what is usable."""
  held = {
    name: nbytes
    for name, nbytes in hbm.items()
    if name not in ("peak", "usable", "needed", "over", "outputs", "aliased")
  }
  if "outputs" in hbm:
    held["new outputs"] = hbm["outputs"] - hbm.get("aliased", 0)
  held = {name: nbytes for name, nbytes in held.items() if nbytes > 0}
  shades = ("#2f6db3", "#f2a33a", "#8b62b5", "#4f9d4f", "#8c564b", "#17a2a2")
  gib = {name: nbytes / (1 << 30) for name, nbytes in held.items()}
  data = [
    {
      "type": "bar",
      "orientation": "h",
      "name": f"{name}, {size:,.2f} GiB",
      "x": [size],
      "y": ["each device"],
      "marker": {"color": shade},
      "hovertemplate": f"{name}: {size:,.3f} GiB<extra></extra>",
    }
    for (name, size), shade in zip(
      gib.items(), itertools.cycle(shades), strict=False
    )
  ]
  drawn = layout(
    height=250,
    barmode="stack",
    legend={
      "orientation": "h",
      "y": -0.5,
      "yanchor": "top",
      "traceorder": "normal",
    },
  )
  drawn["margin"] |= {"l": 90, "t": 30}
  drawn["xaxis"] |= {"ticksuffix": " GiB"}
  drawn["yaxis"] |= {"showgrid": False}
  if "usable" in hbm:
    usable = hbm["usable"] / (1 << 30)
    drawn["shapes"] = [
      {
        "type": "line",
        "x0": usable,
        "x1": usable,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "#d62728", "width": 2, "dash": "dash"},
      }
    ]
    drawn["annotations"] = [
      {
        "x": usable,
        "yref": "paper",
        "y": 1,
        "yanchor": "bottom",
        "xanchor": "right",
        "showarrow": False,
        "text": f"usable, {usable:,.2f} GiB",
        "font": {"color": "#d62728"},
      }
    ]
    drawn["xaxis"]["range"] = [0, 1.06 * max(usable, sum(gib.values()))]
  return {"data": data, "layout": drawn}


def layout(**changes) -> dict:
  """The look that the figures share, with `changes`."""
  axis = {"gridcolor": _GRID, "zeroline": False, "automargin": True}
  return {
    "font": _FONT,
    "paper_bgcolor": "white",
    "plot_bgcolor": "white",
    "margin": {"l": 60, "r": 20, "t": 10, "b": 40},
    "xaxis": dict(axis),
    "yaxis": dict(axis),
    "bargap": 0.3,
  } | changes
