r"""Compiles a training step for TPUs that are not here, and simulates it.

    python -m profiling.aot --model=vit_22b --topology=v4:8x8x16 --mesh=256,4 \
      --batch=65536 --dump_dir=DIR

The step is the one that `examples.train` runs, in bfloat16, with remat and the
optimiser of ViT-22B. Written into DIR, the same bytes every time:

    module.hlo.txt  the compiler's schedule
    devices.json    [x, y, z, core] of each device in partition order
    report.json     memory, FLOPs, the simulated step and where its time went

`profiling.replay` takes the first two. With `--baseline=compiler` the compiler
partitions the same model from sharding constraints alone; it is compiled with
no options, and with the chip's in each mode of the compiler's collective
matmul; what is written is the fastest.

Exits with 2, and one line, for what
cannot be compiled; a program that does not fit leaves a report of what takes
the room.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from profiling import command, platform

PROG = "python -m profiling.aot"
MODES = ("no_options", "default", "none", "post_spmd_conservative")


def parser() -> argparse.ArgumentParser:
  """The flags."""
  flags = command.Parser(PROG, __doc__)
  add = flags.add_argument
  add("--model", required=True, help="such as vit_22b")
  add("--topology", required=True, help="a slice, such as v4:8x8x16 or v5e:2x4")
  add("--mesh", required=True, help="devices on data,model")
  add("--batch", required=True, type=int, help="images a step, all devices")
  add("--dump_dir", required=True, type=Path, help="folder to write into")
  add("--layout", default="tokens", help="tokens or features")
  add("--schedule", default="auto", help="of the rings; or forward,backward")
  add(
    "--chip_options",
    help="compiler options k=v,... beside the chip's own; none for no option "
    "at all",
  )
  add(
    "--baseline",
    choices=["compiler"],
    help="instead of ours: the compiler's partitioning, at its best",
  )
  add("--mode", choices=MODES, help="of the baseline, instead of every one")
  add("--depth", type=int, help="blocks, for a quick look at fewer")
  return flags


def main(argv: list[str] | None = None) -> int:
  """Compiles, replays and reports; returns the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  platform.compile_only()
  return command.run(PROG, lambda: _run(parser().parse_args(argv), argv))


def _run(args: argparse.Namespace, argv: list[str]) -> None:
  # These import jax, which reads the platform then.
  from collective_mm.chips import timed_chip
  from models.vit_config import get_config
  from profiling import aot_compile, aot_programs, aot_report

  versions = command.versions()
  chip = timed_chip(args.topology.partition(":")[0]).name
  changes = {} if args.depth is None else {"depth": args.depth}
  cfg = get_config(args.model, **changes)
  mesh = aot_programs.mesh_on(args.topology, *_mesh(args.mesh))
  request = {
    "command": f"{PROG} {shlex.join(_without_folder(argv))}",
    "versions": versions,
    "model": args.model,
    "depth": cfg.depth,
    "topology": args.topology,
    "mesh": dict(mesh.shape),
    "batch": args.batch,
  }
  if args.baseline:
    request |= {"partitioned_by": "compiler"}
    program = aot_programs.compiler_vit_step(cfg, mesh, batch=args.batch)
    variants = _modes(args.mode, args.chip_options, chip)
  else:
    request |= {"layout": args.layout, "schedule": args.schedule}
    program = aot_programs.vit_step(
      cfg,
      mesh,
      batch=args.batch,
      layout=args.layout,
      schedule=_schedule(args.schedule),
    )
    variants = {"": _options(args.chip_options, chip)}

  args.dump_dir.mkdir(parents=True, exist_ok=True)
  try:
    best, all_of_them = aot_compile.best(program.lowered, mesh, variants)
  except aot_compile.DoesNotFit as error:
    _write(args.dump_dir, request | aot_report.misfit(error))
    raise ValueError(f"{args.model} on {args.topology} {error}") from error
  compiled = all_of_them[best]
  report = request | {"compiler_options": variants[best]}
  report |= aot_report.describe(program, compiled)
  if args.baseline:
    report |= {"mode": best, "modes": aot_report.modes(program, all_of_them)}
  (args.dump_dir / "module.hlo.txt").write_text(compiled.text)
  places = json.dumps(compiled.devices)
  (args.dump_dir / "devices.json").write_text(f"{places}\n")
  _write(args.dump_dir, report)
  print(aot_report.summary(report))


def _write(folder: Path, report: dict) -> None:
  text = json.dumps(report, indent=2)
  (folder / "report.json").write_text(f"{text}\n")


def _mesh(text: str) -> tuple[int, int]:
  try:
    data, model = map(int, text.split(","))
  except ValueError:
    raise ValueError(
      f"--mesh must be two whole numbers, data,model, got {text!r}"
    ) from None
  return data, model


def _schedule(text: str) -> str | tuple[str, str]:
  from collective_mm.collective import SCHEDULES

  parts = tuple(text.split(","))
  if len(parts) > 2 or any(part not in SCHEDULES for part in parts):
    raise ValueError(
      f"--schedule must be one of {', '.join(SCHEDULES)}, or two of them, "
      f"forward,backward, got {text!r}"
    )
  return parts[0] if len(parts) == 1 else parts


def _options(text: str | None, chip: str) -> dict[str, str]:
  from collective_mm import gate

  if text == "none":
    return {}
  options = gate.compiler_options(chip)
  for part in text.split(",") if text else ():
    name, equals, value = part.partition("=")
    if not (name and equals):
      raise ValueError(
        f"--chip_options must be none, or name=value,..., got {part!r}"
      )
    options[name] = value
  return options


def _modes(
  only: str | None, text: str | None, chip: str
) -> dict[str, dict[str, str]]:
  """What the compiler is given as a baseline, by the name of the mode."""
  modes = {"no_options": {}, "default": _options(text, chip)}
  for mode in ("none", "post_spmd_conservative"):
    modes[mode] = modes["default"] | {
      f"xla_tpu_{kind}_collective_matmul_mode": mode
      for kind in ("all_gather", "reduce_scatter")
    }
  return modes if only is None else {only: modes[only]}


def _without_folder(argv: list[str]) -> list[str]:
  """`argv` without `--dump_dir`, on which the report does not depend."""
  kept, skip = [], False
  for arg in argv:
    if not skip and arg != "--dump_dir" and not arg.startswith("--dump_dir="):
      kept.append(arg)
    skip = arg == "--dump_dir"
  return kept


if __name__ == "__main__":
  sys.exit(main())
