"""A replay as one page that needs nothing else: open it in any browser."""

import html
import json
import pathlib

from plotly.offline import get_plotlyjs

from profiling import report_figures, report_torus
from profiling.replayed import Line, Replay
from profiling.rows import short_source

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; margin: 0;
  background: #f3f4f6 }
main { max-width: 1320px; margin: 0 auto; padding: 20px 24px 60px }
h1 { font-size: 22px; margin: 8px 0 2px }
h2 { font-size: 16px; margin: 0 0 4px }
h3 { font-size: 14px; margin: 18px 0 4px; font-weight: 600 }
p { margin: 2px 0; color: #4b5563 }
section { background: white; border-radius: 8px; padding: 16px 20px;
  margin: 14px 0; box-shadow: 0 1px 2px rgba(0,0,0,.08) }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 14px 0 }
.card { background: white; border-radius: 8px; padding: 10px 18px;
  box-shadow: 0 1px 2px rgba(0,0,0,.08) }
.card b { display: block; font-size: 21px; font-weight: 600 }
.card span { color: #6b7280; font-size: 13px }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 14px }
.pair section { margin: 0; min-width: 0 }
.pair section:only-child { grid-column: 1 / -1 }
@media (max-width: 900px) { .pair { grid-template-columns: 1fr } }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; width: 100% }
td, th { text-align: left; padding: 3px 10px 3px 0; vertical-align: top;
  border-bottom: 1px solid #eef0f3 }
td.n, th.n { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums }
td.op { color: #6b7280; overflow-wrap: anywhere }
code { font-size: 12.5px; overflow-wrap: anywhere }
td code { white-space: nowrap }
"""


def write_html(replay: Replay, summary: dict, path: str | pathlib.Path) -> None:
  """Writes the report of a simulated step; the same bytes for the same step.

  Args:
    replay: the step.
    summary: what `profiling.aot` writes into `report.json`: "model",
      "topology", "mesh" (sizes by axis), "batch", "hbm_bytes", "simulated"
      ("mfu", "tokens_per_s_per_chip"), "versions", "command". A section whose
      key is missing is left out.
    path: the file.
  """
  figures = {
    "timeline": report_figures.timeline(replay),
    "parts": report_figures.parts(replay),
  }
  if summary.get("hbm_bytes"):
    figures["memory"] = report_figures.memory(summary["hbm_bytes"])
  mesh = summary.get("mesh")
  if mesh:
    figures["torus"] = report_torus.torus(replay, mesh)
  script = "\n".join(
    f"Plotly.newPlot({json.dumps(name)}, {_json(figure['data'])}, "
    f"{_json(figure['layout'])}, {{responsive: true, displaylogo: false, "
    f"displayModeBar: {json.dumps(name == 'timeline')}, "
    f"scrollZoom: {json.dumps(name == 'timeline')}}});"
    for name, figure in figures.items()
  )
  title = f"{summary.get('model', 'Program')} on {_slice(replay, summary)}"
  page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{_escape(title)}</title>
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<main>
<h1>{_escape(title)}</h1>
<p>One step, simulated: replayed from the TPU compiler's own schedule,
measured on no device. {_escape(_request(summary))}</p>
<div class="cards">{_cards(replay, summary)}</div>
<section><h2>Timeline</h2>
<p>All devices run this schedule in lockstep. A transfer is drawn on every
direction that it takes on any chip. Drag to zoom, scroll to zoom in and out,
double-click for the whole step, click a legend entry to hide it.</p>
<div id="timeline"></div></section>
<div class="pair">
<section><h2>Where the step went</h2><div id="parts"></div></section>
{_section(figures, "memory", "HBM of each device, by kind", "")}
</div>
{_section(figures, "torus", "The mesh on the torus", _torus_note(replay, mesh))}
<section><h2>The costliest lines</h2>
<p>Of the entry, each loop body and each branch; all runs together.</p>
<div class="wide">{_tables(replay)}</div></section>
{_footer(replay, summary)}
</main>
<script>{script}</script>
</body>
</html>
"""
  pathlib.Path(path).write_text(page, encoding="utf-8")


def _cards(replay: Replay, summary: dict) -> str:
  simulated, hbm = summary.get("simulated", {}), summary.get("hbm_bytes", {})
  cards = [("simulated step", _seconds(replay.step_time_s))]
  if simulated.get("mfu") is not None:
    cards.append(("MFU", f"{simulated['mfu']:.1%}"))
  for key, what in (
    ("tokens_per_s_per_chip", "tokens/s per chip"),
    ("tokens_per_s_per_tensor_core", "tokens/s per TensorCore"),
  ):
    if simulated.get(key) is not None:
      cards.append((what, f"{simulated[key]:,.0f}"))
  cards.append(("exposed communication", f"{replay.exposed_fraction:.1%}"))
  products = replay.compute_s.get("products", 0.0)
  share = products / (replay.step_time_s or 1.0)
  cards.append(("of the step are products", f"{share:.1%}"))
  if "peak" in hbm:
    room = f"{hbm['peak'] / (1 << 30):,.1f}"
    if "usable" in hbm:
      room += f" of {hbm['usable'] / (1 << 30):,.1f}"
    cards.append(("GiB of HBM, at most", room))
  return "".join(
    f'<div class="card"><b>{_escape(value)}</b><span>{_escape(what)}</span>'
    "</div>"
    for what, value in cards
  )


def _request(summary: dict) -> str:
  words = []
  if "mesh" in summary:
    sizes = " x ".join(f"{n} {name}" for name, n in summary["mesh"].items())
    words.append(f"Mesh {sizes}")
  if "batch" in summary:
    words.append(f"{summary['batch']:,} images a step")
  words += [
    f"{key} {summary[key]}" for key in ("layout", "schedule") if key in summary
  ]
  return f"{', '.join(words)}." if words else ""


def _slice(replay: Replay, summary: dict) -> str:
  shape = "x".join(map(str, replay.torus.shape))
  name = summary.get("topology", f"{replay.chip}:{shape}")
  count = len(replay.devices)
  return f"{name}, {count:,} device{'s' * (count != 1)}"


def _torus_note(replay: Replay, mesh: dict[str, int] | None) -> str:
  wraps = [
    axis
    for axis, around in zip("xyz", replay.torus.wraps, strict=False)
    if around
  ]
  around = f"{', '.join(wraps)} wrap" if wraps else "no dim wraps"
  if not mesh:
    return ""
  axis = list(mesh)[-1]
  others = " and ".join(list(mesh)[:-1]) or "mesh"
  return (
    f"A colour for each place on {others}; lines join neighbours on {axis}, "
    f"dotted from plane to plane. In this slice {around}."
  )


def _section(figures: dict, name: str, title: str, note: str) -> str:
  if name not in figures:
    return ""
  note = f"<p>{_escape(note)}</p>" if note else ""
  return (
    f'<section><h2>{_escape(title)}</h2>{note}<div id="{name}"></div></section>'
  )


def _tables(replay: Replay) -> str:
  whole = replay.step_time_s or 1.0
  return "".join(
    f"<h3>{_escape(computation)}</h3><table><tr><th class=n>ms</th>"
    "<th class=n>of the step</th><th class=n>runs</th><th>kind</th>"
    "<th>line</th><th>source</th><th>made by</th></tr>"
    + "".join(_row(line, whole) for line in lines)
    + "</table>"
    for computation, lines in replay.costliest(10).items()
  )


def _row(line: Line, whole: float) -> str:
  return (
    f"<tr><td class=n>{1e3 * line.total_s:,.3f}</td>"
    f"<td class=n>{line.total_s / whole:.2%}</td>"
    f"<td class=n>{line.runs}</td><td>{_escape(line.kind)}</td>"
    f"<td><code>{_escape(line.name)}</code></td>"
    f"<td><code>{_escape(short_source(line.source))}</code></td>"
    f"<td class=op>{_escape(line.op_name)}</td></tr>"
  )


def _footer(replay: Replay, summary: dict) -> str:
  lines = [
    "Compute takes the cycles that the compiler estimates (Pallas kernels "
    "their cost_estimate), transfers their bytes over the links of their "
    "route, which they share with the transfers beside them. Guessed from "
    f"bytes, for want of cycles: {1e3 * replay.guessed_s:,.3f} ms."
  ]
  if "versions" in summary:
    names = (f"{n} {v}" for n, v in summary["versions"].items())
    lines.append(f"Compiled with {', '.join(names)}.")
  text = "".join(f"<p>{_escape(line)}</p>" for line in lines)
  if "command" in summary:
    text += f"<p><code>{_escape(summary['command'])}</code></p>"
  return f"<section><h2>How this was made</h2>{text}</section>"


def _seconds(seconds: float) -> str:
  return f"{seconds:,.3f} s" if seconds >= 1 else f"{1e3 * seconds:,.3f} ms"


def _escape(text: str) -> str:
  return html.escape(str(text))


def _json(value) -> str:
  # "</" would end the script that the text stands in.
  return json.dumps(value, separators=(",", ":")).replace("</", "<\\/")
