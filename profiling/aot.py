r"""Compiles a training step for TPUs that are not here, and simulates it.

    python -m profiling.aot --model=vit_22b --topology=v4:8x8x16 --mesh=256,4 \
      --batch=65536 --dump_dir=DIR

The step is the one that `examples.train` runs, in bfloat16, with remat and the
optimiser of ViT-22B; `--op=all_gather_matmul --shape=65536,6144,43008` takes
one op instead, forward and both gradients. Written into DIR, the same bytes
every time:

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
  add("--model", help="such as vit_22b")
  add("--op", help="instead of a model: one op, such as all_gather_matmul")
  add("--shape", help="of the op: tokens,width,features, over all devices")
  add("--topology", required=True, help="a slice, such as v4:8x8x16")
  add("--mesh", required=True, help="devices on data,model")
  add(
    "--whole_dims",
    action="store_true",
    help="lay the model axis along whole dims of the slice (make_mesh)",
  )
  add("--batch", type=int, help="images a step, over all devices")
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
    choices=["compiler", "plain", "linen"],
    help="instead of ours: the compiler's partitioning, at its best; or on one "
    "chip the model in plain jnp, or with flax.linen",
  )
  add("--mode", choices=MODES, help="of the baseline, instead of every one")
  add("--depth", type=int, help="blocks, for a quick look at fewer")
  add(
    "--blocks",
    action="store_const",
    const=True,
    help="the gradients of the blocks alone, for a quick look at the loops",
  )
  return flags


def main(argv: list[str] | None = None) -> int:
  """Compiles, replays and reports; returns the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  platform.compile_only()
  return command.run(PROG, lambda: _run(parser().parse_args(argv), argv))


def _run(args: argparse.Namespace, argv: list[str]) -> None:
  # These import jax, which reads the platform then.
  from collective_mm.chips import timed_chip
  from profiling import aot_compile, aot_programs, aot_report

  versions = command.versions()
  chip = timed_chip(args.topology.partition(":")[0]).name
  mesh = aot_programs.mesh_on(
    args.topology, *_numbers(args, "mesh", 2), whole_dims=args.whole_dims
  )
  what, program = _program(args, mesh)
  by_mode = args.baseline == "compiler"
  variants = _modes(args, chip) if by_mode else {"": _options(args, chip)}
  request = {
    "command": f"{PROG} {shlex.join(_without_folder(argv))}",
    "versions": versions,
    "topology": args.topology,
    "mesh": dict(mesh.shape),
    **what,
  }

  args.dump_dir.mkdir(parents=True, exist_ok=True)
  try:
    best, found = aot_compile.best(program.lowered, mesh, variants)
  except aot_compile.DoesNotFit as error:
    room = _room(args, mesh)
    report = request | aot_report.misfit(error) | {"modelled_bytes": room}
    _write(args.dump_dir, report)
    name = args.model or args.op
    parts = ", ".join(f"{n} {aot_compile.gib(b)}" for n, b in room.items())
    raise ValueError(
      f"{name} on {args.topology} {error} (by our model of it: {parts})"
    ) from error
  compiled = found[best]
  report = request | {"compiler_options": variants[best]}
  report |= aot_report.describe(program, compiled)
  if by_mode:
    report |= {"mode": best, "modes": aot_report.modes(program, found)}
  (args.dump_dir / "module.hlo.txt").write_text(compiled.text)
  places = json.dumps(compiled.devices)
  (args.dump_dir / "devices.json").write_text(f"{places}\n")
  _write(args.dump_dir, report)
  print(aot_report.summary(report))


def _program(args: argparse.Namespace, mesh):
  """The program that was asked for, and what the report says of it."""
  from models.vit_config import get_config
  from profiling import aot_programs

  schedule = _schedule(args.schedule)
  how = {"schedule": args.schedule}
  if args.baseline:
    how = {"partitioned_by": args.baseline}
  _needs(args, "op" if args.op else "model", "model" if args.op else "op")
  if args.op:
    _needs(args, "shape", "batch", "depth", "blocks")
    if args.baseline not in (None, "compiler"):
      raise ValueError(f"--baseline={args.baseline} is of a model, got --op")
    shape = _numbers(args, "shape", 3)
    method = "compiler" if args.baseline else schedule
    program = aot_programs.op_step(args.op, shape, mesh, method=method)
    return {"op": args.op, "shape": shape, **how}, program
  _needs(args, "batch", "shape")
  changes = {} if args.depth is None else {"depth": args.depth}
  cfg = get_config(args.model, **changes)
  what = {"model": args.model, "depth": cfg.depth, "batch": args.batch, **how}
  if args.baseline:
    _needs(args, "model", "blocks")
    if args.baseline == "compiler":
      program = aot_programs.compiler_vit_step(cfg, mesh, batch=args.batch)
    else:
      program = aot_programs.twin_vit_step(
        args.baseline, cfg, mesh, batch=args.batch
      )
    return what, program
  make = aot_programs.vit_blocks if args.blocks else aot_programs.vit_step
  program = make(
    cfg, mesh, batch=args.batch, layout=args.layout, schedule=schedule
  )
  return what | {"layout": args.layout, "blocks": bool(args.blocks)}, program


def _room(args: argparse.Namespace, mesh) -> dict[str, int]:
  """What takes the room in what was asked for, which the compiler won't say."""
  from models.vit_config import get_config
  from profiling import plan_model

  if args.op:
    tokens, width, features = _numbers(args, "shape", 3)
    return plan_model.op_memory(tokens, width, features, mesh)
  changes = {} if args.depth is None else {"depth": args.depth}
  cfg = get_config(args.model, **changes)
  return plan_model.memory(cfg, mesh, args.batch)


def _needs(args: argparse.Namespace, flag: str, *others: str) -> None:
  """Refuses a command without `flag`, or with flags that are not for it."""
  if getattr(args, flag) is None:
    raise ValueError(f"--{flag} must be given")
  for other in others:
    if getattr(args, other) is not None:
      raise ValueError(f"--{other} must not be given beside --{flag}")


def _write(folder: Path, report: dict) -> None:
  text = json.dumps(report, indent=2)
  (folder / "report.json").write_text(f"{text}\n")


def _numbers(args: argparse.Namespace, flag: str, count: int):
  text = getattr(args, flag)
  numbers = text.split(",")
  if len(numbers) != count or not all(n.isdecimal() for n in numbers):
    what = {2: "data,model", 3: "tokens,width,features"}[count]
    raise ValueError(
      f"--{flag} must be {count} whole numbers, {what}, got {text!r}"
    )
  return tuple(map(int, numbers))


def _schedule(text: str) -> str | tuple[str, str]:
  from collective_mm.op_arguments import SCHEDULES

  parts = tuple(text.split(","))
  if len(parts) > 2 or any(part not in SCHEDULES for part in parts):
    raise ValueError(
      f"--schedule must be one of {', '.join(SCHEDULES)}, or two of them, "
      f"forward,backward, got {text!r}"
    )
  return parts[0] if len(parts) == 1 else parts


def _options(args: argparse.Namespace, chip: str) -> dict[str, str]:
  from collective_mm import gate

  if args.chip_options == "none":
    return {}
  options = gate.compiler_options(
    chip, prefetch=args.model is not None, whole_dims=args.whole_dims
  )
  return options | command.chip_options(args.chip_options)


def _modes(args: argparse.Namespace, chip: str) -> dict[str, dict[str, str]]:
  """What the compiler is given as a baseline, by the name of the mode."""
  modes = {"no_options": {}, "default": _options(args, chip)}
  for mode in ("none", "post_spmd_conservative"):
    options = command.collective_matmul_mode(mode)
    modes[mode] = modes["default"] | options
  return modes if args.mode is None else {args.mode: modes[args.mode]}


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
