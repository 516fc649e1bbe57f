"""What the evaluation commands share: flags, model, report.

A command is a function of the parsed flags. `main` chooses the platform before
anything imports jax, so its module imports at the top only what does not.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from examples.usage import UsageError, blame
from profiling import platform

_COLUMNS = "{:<34} {:>12} {:>12}  {}"


def main(
  argv: list[str],
  usage: str,
  evaluate: Callable[[flags.FlagValues], Any],
  define: Callable[[flags.FlagValues], None] = lambda values: None,
) -> int:
  """Runs one evaluation command; returns its exit code.

  Args:
    argv: as `sys.argv`, the program's name first.
    usage: what `--help` says above the flags: the module's docstring.
    evaluate: does it; a `UsageError` of it is one line and exit code 2.
    define: adds the command's own flags.
  """
  platform.select(devices=8)
  try:
    given = parse(argv, usage, define)
    if given is not None:
      evaluate(given)
  except UsageError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted; the same command continues", file=sys.stderr)
    return 130
  return 0


def parse(
  argv: list[str],
  usage: str = "",
  define: Callable[[flags.FlagValues], None] = lambda values: None,
) -> flags.FlagValues | None:
  """Reads the command line; prints the help and returns None for `--help`.

  Raises:
    UsageError: if a flag is unknown or its value cannot be.
  """
  values = flags.FlagValues()
  options = {"flag_values": values}
  flags.DEFINE_bool("help", False, "show this help", short_name="h", **options)
  flags.DEFINE_string("checkpoint", None, "run folder or weights", **options)
  flags.DEFINE_string("data", None, "the data set, KIND:PATH", **options)
  flags.DEFINE_string("out", None, "folder of results [runs/NAME]", **options)
  flags.DEFINE_list("mesh", None, "devices on data,model", **options)
  flags.DEFINE_integer("batch", 64, "images at a time", 1, **options)
  flags.DEFINE_integer("seed", 0, "of everything random", 0, **options)
  flags.DEFINE_bool(
    "demo", False, "on data and a small model made here", **options
  )
  define(values)
  try:
    rest = values(argv)[1:]
  except flags.Error as error:
    raise UsageError(str(error).removeprefix("flag ")) from error
  if rest:
    raise UsageError(f"flags look like --name=value, got {rest[0]!r}")
  if values.help:
    print(f"{usage}\n{values.get_help()}")
    return None
  if values.demo and (values.checkpoint or values.data):
    raise UsageError("--demo brings its own --checkpoint and --data")
  return values


def mesh_of(given: flags.FlagValues):
  """The mesh of `--mesh`; (2, 4) on eight CPU devices, else data alone.

  Raises:
    UsageError: if the devices that are here cannot be put so.
  """
  import jax

  from collective_mm import make_mesh

  devices = jax.device_count()
  tutorial = jax.default_backend() == "cpu" and devices == 8
  sizes = given.mesh or ((2, 4) if tutorial else (devices, 1))
  with blame(f"--mesh={','.join(map(str, sizes))}"):
    try:
      data, model = map(int, sizes)
    except ValueError as error:
      raise ValueError("must be two whole numbers, data,model") from error
    return make_mesh(data=data, model=model)


def data_of(given: flags.FlagValues) -> str:
  """The data set of `--data`.

  Raises:
    UsageError: if the flag is not there.
  """
  if given.data is None:
    raise UsageError(
      "--data must name a data set, as folder:PATH; --demo needs none"
    )
  return given.data


def model_of(given: flags.FlagValues, mesh):
  """The `(ViTConfig, params)` of `--checkpoint`.

  Raises:
    UsageError: if there is none, it cannot be read, or the mesh does not
      divide it.
  """
  if given.checkpoint is None:
    raise UsageError(
      "--checkpoint must name a run's folder or weights; --demo needs none"
    )
  return load_model(Path(given.checkpoint), "--checkpoint", mesh, given.batch)


def model_at(given: flags.FlagValues, mesh, size: int):
  """The model of `--checkpoint` for images of `size`, positions resampled.

  Raises:
    UsageError: as `model_of`, or if a patch is larger than the images.
  """
  from examples.weights.adapt import at_resolution

  cfg, params = model_of(given, mesh)
  with blame(f"--size={size}"):
    return at_resolution(cfg, params, size)


def load_model(path: Path, flag: str, mesh, batch: int | None = None):
  """The `(ViTConfig, params)` of whatever `examples.weights.load` reads.

  Args:
    path: a run's folder or a file of weights.
    flag: that named it.
    mesh: to place the parameters on.
    batch: images at a time, which the mesh must divide; None for any.

  Raises:
    UsageError: if there is none, it cannot be read, or the mesh does not
      divide it.
  """
  from examples.weights.load import load
  from models.sharding import check_mesh

  with blame(flag):
    cfg, params = load(path, mesh=mesh)
  with blame(f"{flag}={path}"):
    check_mesh(cfg, mesh, batch or mesh.size, "tokens")
  return cfg, params


def out_folder(given: flags.FlagValues, name: str) -> Path:
  """The folder of the results, made.

  Raises:
    UsageError: if it cannot be.
  """
  folder = Path(given.out) if given.out else Path("runs") / f"eval-{name}"
  with blame(f"--out={folder}"):
    folder.mkdir(parents=True, exist_ok=True)
  return folder


def report(
  out: Path,
  name: str,
  ours: dict[str, float],
  paper: dict[str, float | str],
  settings: dict[str, tuple[Any, Any]],
  *,
  figure=None,
) -> dict:
  """Prints our numbers next to the paper's, and writes them.

  `NAME.json` and `NAME.png` are in `out` afterwards.

  Args:
    out: an existing folder.
    name: of the evaluation.
    ours: numbers by what they are, units in the names; baselines among them.
    paper: the paper's, by the same names; text where it has no number.
    settings: `(ours, the paper's)` by name; those that differ are printed.
    figure: the plot, a matplotlib `Figure`; bars of the numbers if not given.

  Returns:
    What the JSON holds.
  """
  print(_COLUMNS.format(name, "ours", "paper", "").rstrip())
  for what, number in ours.items():
    theirs = paper.get(what, "")
    note = theirs if isinstance(theirs, str) else ""
    shown = "-" if isinstance(theirs, str) else f"{theirs:.4g}"
    line = _COLUMNS.format(f"  {what}", f"{number:.4g}", shown, note)
    print(line.rstrip())
  differ = {k: v for k, v in settings.items() if v[0] != v[1]}
  if differ:
    print("settings that differ")
  for what, (here, there) in differ.items():
    print(f"  {what}: {here}; the paper: {there}")
  record = {
    "name": name,
    "ours": ours,
    "paper": paper,
    "settings": {k: {"ours": a, "paper": b} for k, (a, b) in settings.items()},
  }
  path = out / f"{name}.json"
  path.write_text(json.dumps(record, indent=2) + "\n")
  picture = path.with_suffix(".png")
  (figure or _bars(name, ours, paper)).savefig(picture, dpi=120)
  print(f"written: {path}, {picture}")
  return record


def curves(lines: dict[str, list], x: str, y: str, *, log_x: bool = False):
  """Returns a figure of lines.

  Args:
    lines: by legend; of each point `(x, y)`, or `y` alone.
    x, y: labels of the axes.
    log_x: a logarithmic x axis.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 4), layout="constrained")
  axis = figure.subplots()
  for legend, points in lines.items():
    if points and not isinstance(points[0], tuple):
      points = list(enumerate(points, 1))
    axis.plot(*zip(*points, strict=True), ".-", label=legend)
  if log_x:
    axis.set_xscale("log")
  axis.set(xlabel=x, ylabel=y)
  axis.grid(alpha=0.3)
  axis.legend()
  return figure


def _bars(name, ours, paper):
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 1 + 0.5 * len(ours)), layout="constrained")
  axis = figure.subplots()
  places = range(len(ours))
  axis.barh(places, list(ours.values()), height=0.4, label="ours")
  known = [
    (i + 0.4, paper[what])
    for i, what in enumerate(ours)
    if not isinstance(paper.get(what, ""), str)
  ]
  if known:
    axis.barh(*zip(*known, strict=True), height=0.4, label="paper")
  axis.set_yticks(places, list(ours))
  axis.invert_yaxis()
  axis.set_title(name)
  axis.legend()
  return figure
