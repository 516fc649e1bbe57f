r"""Simulates a block of Llama-3 8B before and after: compiled, and replayed.

    python -m examples.drop_in.bench_llama --slices=v5e:2x2,v5e:2x4

Compiles forward and all gradients of one block of `llama_nnx`, which the
compiler partitions from the sharding of its arguments, and of
`llama_nnx_sharded`, for slices that are not here, whose devices are the model
axis, and replays the compiler's schedules: a minute on a core for each. Prints
a Markdown table; in brackets is the part of a time that waits for other
devices. With `--data=2` half of them are the model axis; gradients are then
added up over the data axis too, at the end and in nobody's ring. With
`--by_batch` a device has whole sequences, in place of a part of each.

    unoverlapped        sharded, schedule="unoverlapped", no compiler options
    compiler_none       as it was, the compiler's collective matmul off
    compiler_default    as it was, and as the compiler has it by default
    compiler_post_spmd  as it was, in its mode "post_spmd_conservative"
    auto                sharded, schedule="auto"

All but "unoverlapped" are compiled with `gate.compiler_options`.
"""

import shlex
import sys

from profiling import command, platform

PROG = "python -m examples.drop_in.bench_llama"
METHODS = ("unoverlapped", *command.COMPILER_MODES, "auto")
BASELINES = {
  "unoverlapped / auto": ("unoverlapped",),
  "best compiler / auto": tuple(command.COMPILER_MODES),
}
SLICES = (
  "v5e:2x2",
  "v5e:2x4",
  "v5p:2x2x1",
  "v5p:2x2x2",
  "v4:2x2x1",
  "v4:2x2x2",
  "v6e:2x2",
  "v6e:2x4",
)


def parser() -> command.Parser:
  """The flags."""
  flags = command.Parser(PROG, __doc__)
  add = flags.add_argument
  add("--slices", default=",".join(SLICES), help="TPU slices")
  add("--data", type=int, default=1, help="size of the data axis")
  add("--batch", type=int, default=8, help="sequences in each data group")
  add("--sequence", type=int, default=2048, help="tokens in each")
  add("--by_batch", action="store_true", help="shard sequences, not tokens")
  add("--methods", default=",".join(METHODS), help="some of them")
  add("--schedule", help="forward,backward in place of auto")
  add("--chip_options", help="compiler options k=v,... beside the chip's own")
  add("--verbose", action="store_true", help="say where the time goes")
  return flags


def main(argv: list[str] | None = None) -> int:
  """Prints the table; returns the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  platform.compile_only()
  return command.run(PROG, lambda: _run(parser().parse_args(argv), argv))


def _run(args, argv: list[str]) -> None:
  more = command.chip_options(args.chip_options)
  from profiling import aot_compile, aot_programs, topology

  versions = command.versions()
  methods = args.methods.split(",")
  if unknown := set(methods) - set(METHODS):
    raise ValueError(
      f"--methods must be some of {','.join(METHODS)}, got {unknown.pop()}"
    )
  meshes = {}
  for name in args.slices.split(","):
    count = len(topology.devices(name))
    if args.data < 1 or count % args.data:
      raise ValueError(
        f"--data must divide the {count} devices of {name}, got {args.data}"
      )
    if args.by_batch and args.batch * args.data % count:
      raise ValueError(
        f"--by_batch needs sequences for each of the {count} devices of "
        f"{name}, got {args.batch * args.data}"
      )
    meshes[name] = aot_programs.mesh_on(name, args.data, count // args.data)
  print(
    f"Simulated, jax {versions['jax']}, libtpu {versions['libtpu']}: one block "
    f"of Llama-3 8B in bfloat16, forward and all gradients, {args.batch} "
    f"sequences of {args.sequence} tokens in each data group, ms.\n"
    f"`{shlex.join([*PROG.split(), *argv])}`\n"
  )
  ratios = {
    title: among
    for title, among in BASELINES.items()
    if "auto" in methods and set(methods) & set(among)
  }
  header = ("slice", "model axis", *methods, *ratios)
  print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
  for name, mesh in meshes.items():
    times, cells = {}, []
    for method in methods:
      compiled = aot_compile.compile_and_replay(
        lower(method, mesh, args),
        mesh,
        options(method, name.partition(":")[0]) | more,
      )
      times[method] = 1e3 * compiled.replayed.step_time_s
      waits = 1e3 * compiled.replayed.exposed_communication_s
      cells.append(f"{times[method]:.2f} ({waits:.2f})")
      if args.verbose:
        print(f"{name}, {method}:\n{compiled.replayed}\n", file=sys.stderr)
    for among in ratios.values():
      best = min(t for method, t in times.items() if method in among)
      cells.append(f"{best / times['auto']:.3f}")
    row = (name, str(mesh.shape["model"]), *cells)
    print(f"| {' | '.join(row)} |", flush=True)


def options(method: str, chip: str) -> dict[str, str]:
  """The compiler's options for a method."""
  from collective_mm import gate

  if method == "unoverlapped":
    return {}
  found = gate.compiler_options(chip)
  return found | command.collective_matmul_mode(
    command.COMPILER_MODES.get(method)
  )


def lower(method: str, mesh, args):
  """Forward and all gradients of one block, lowered for the mesh."""
  import jax.numpy as jnp

  from examples.drop_in import llama_nnx, programs

  schedule = "unoverlapped" if method == "unoverlapped" else "auto"
  if args.schedule and method == "auto":
    schedule = tuple(args.schedule.split(","))
  return programs.llama_block(
    not method.startswith("compiler"),
    mesh,
    cfg=llama_nnx.Config(param_dtype=jnp.bfloat16),
    batch=args.batch * mesh.shape["data"],
    sequence=args.sequence,
    schedule=schedule,
    by_batch=args.by_batch,
  )


if __name__ == "__main__":
  sys.exit(main())
