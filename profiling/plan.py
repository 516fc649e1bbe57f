r"""Ranks every mesh, layout and schedule of a training step on a TPU slice.

    python -m profiling.plan --model=vit_22b --topology=v4:8x8x16 \
      --batch=65536 --dump_dir=DIR --replay=2

Prints a table of modelled steps (`profiling.plan_model`), the best first and
those that do not fit last, and writes it into DIR as `plan.json` and, as a heat
map, `plan.png`. With `--replay=N` the best N that fit are then compiled and
their schedules replayed, minutes each for a large model, and set beside the
model.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from profiling import command, platform

PROG = "python -m profiling.plan"
COLUMNS = (
  *("data", "model", "layout", "schedule", "MFU", "step s", "products s"),
  *("rest s", "exposed s", "GiB", ""),
)


def parser() -> argparse.ArgumentParser:
  """The flags."""
  flags = command.Parser(PROG, __doc__)
  add = flags.add_argument
  add("--model", required=True, help="such as vit_22b")
  add("--topology", required=True, help="a slice, such as v4:8x8x16 or v5e:2x4")
  add("--batch", required=True, type=int, help="images a step, all devices")
  add("--dump_dir", required=True, type=Path, help="folder to write into")
  add("--depth", type=int, help="blocks, for a quick look at fewer")
  add("--rows", type=int, default=20, help="rows of the table to print")
  add("--replay", type=int, default=0, help="how many to compile and replay")
  return flags


def main(argv: list[str] | None = None) -> int:
  """Models, prints, writes and replays; returns the exit code."""
  platform.compile_only()
  return command.run(PROG, lambda: _run(parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
  # These import jax, which reads the platform then.
  from models.vit_config import get_config
  from profiling.plan_map import draw
  from profiling.plan_model import Planner

  versions = command.versions()
  for name in ("rows", "replay"):
    if getattr(args, name) < 0:
      raise ValueError(
        f"--{name} must be at least 0, got {getattr(args, name)}"
      )
  changes = {} if args.depth is None else {"depth": args.depth}
  cfg = get_config(args.model, **changes)
  ranked = Planner(cfg, args.topology, args.batch).ranked()
  args.dump_dir.mkdir(parents=True, exist_ok=True)
  title = f"{args.model} on {args.topology}, {args.batch:,} images a step"
  print(f"{title}: modelled, {len(ranked)} ways\n")
  _print_row(COLUMNS)
  print(f"|{'---|' * len(COLUMNS)}")
  for way, step in ranked[: args.rows]:
    _print_row(_cells(way, step))
  draw(ranked, f"{title}: modelled MFU", args.dump_dir / "plan.png")
  replays = _replays(args, cfg, ranked) if args.replay else []
  report = {
    "versions": versions,
    "model": args.model,
    "depth": cfg.depth,
    "topology": args.topology,
    "batch": args.batch,
    "modelled": [
      dataclasses.asdict(way) | dataclasses.asdict(step) for way, step in ranked
    ],
    "simulated": replays,
  }
  text = json.dumps(report, indent=2)
  (args.dump_dir / "plan.json").write_text(f"{text}\n")


def _replays(args, cfg, ranked) -> list[dict]:
  """Compiles and replays the best, and prints them beside the model."""
  from collective_mm import gate
  from profiling import aot_compile, aot_programs, aot_report

  options = gate.compiler_options(
    args.topology.partition(":")[0], prefetch=True
  )
  print("\nReplayed from the compiler's schedule (simulated):\n")
  header = ("data", "model", "layout", "schedule", "MFU modelled")
  header += ("simulated", "step off by", "GiB modelled", "compiled")
  _print_row(header)
  print(f"|{'---|' * len(header)}", flush=True)
  found = []
  for way, step in [r for r in ranked if r[1].fits][: args.replay]:
    schedule = tuple(way.schedule.split(","))
    mesh = aot_programs.mesh_on(args.topology, way.data, way.model)
    program = aot_programs.vit_step(
      cfg,
      mesh,
      batch=args.batch,
      layout=way.layout,
      schedule=schedule if len(schedule) == 2 else schedule[0],
    )
    start = (way.data, way.model, way.layout, way.schedule, f"{step.mfu:.1%}")
    try:
      compiled = aot_compile.compile_and_replay(program.lowered, mesh, options)
    except aot_compile.DoesNotFit as error:
      report = aot_report.misfit(error)
      needed = error.hbm["needed"]
      cells = ("does not fit", "", f"{aot_compile.gib(step.hbm_bytes)}")
    else:
      report = aot_report.describe(program, compiled)
      needed, run = compiled.hbm["peak"], report["simulated"]
      off = step.step_time_s / run["step_time_s"] - 1
      cells = (f"{run['mfu']:.1%}", f"{off:+.1%}")
      cells += (f"{aot_compile.gib(step.hbm_bytes)}",)
    _print_row((*start, *cells, aot_compile.gib(needed)))
    found.append(dataclasses.asdict(way) | report)
  return found


def _cells(way, step) -> tuple:
  return (
    *(way.data, way.model, way.layout, way.schedule, f"{step.mfu:.1%}"),
    *(f"{step.step_time_s:.4g}", f"{step.products_s:.4g}"),
    *(f"{step.rest_s:.4g}", f"{step.exposed_s:.3g}"),
    *(f"{step.hbm_bytes / 2**30:.1f}", "" if step.fits else "does not fit"),
  )


def _print_row(cells: tuple) -> None:
  print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
  sys.exit(main())
