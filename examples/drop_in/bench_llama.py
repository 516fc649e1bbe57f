r"""Simulates a block of Llama-3 8B before and after: compiled, and replayed.

    python -m examples.drop_in.bench_llama --slices=v5e:2x4,v5p:2x2x2

Compiles forward and all gradients of one block of `llama_nnx`, which the
compiler partitions from the sharding of its arguments, and of
`llama_nnx_sharded`, for slices that are not here, on meshes with a model axis
of 4 and of 8, and replays the compiler's schedules. Prints a Markdown table.

    unoverlapped      sharded, schedule="unoverlapped", no compiler options
    compiler_none     as it was, the compiler's collective matmul off
    compiler_default  as it was, and as the compiler has it by default
    auto              sharded, schedule="auto"

All but "unoverlapped" are compiled with `gate.compiler_options`.
"""

import shlex
import statistics
import sys

from profiling import command, platform

PROG = "python -m examples.drop_in.bench_llama"
METHODS = ("unoverlapped", "compiler_none", "compiler_default", "auto")
SLICES = ("v5e:2x4", "v5p:2x2x2", "v4:2x2x2", "v6e:2x4")


def parser() -> command.Parser:
  """The flags."""
  flags = command.Parser(PROG, __doc__)
  add = flags.add_argument
  add("--slices", default=",".join(SLICES), help="TPU slices of 8 devices")
  add("--model", default="4,8", help="sizes of the model axis")
  add("--batch", type=int, default=8, help="sequences in each data group")
  add("--sequence", type=int, default=2048, help="tokens in each")
  add("--methods", default=",".join(METHODS), help="some of them")
  add("--schedule", help="forward,backward in place of auto")
  return flags


def main(argv: list[str] | None = None) -> int:
  """Prints the table; returns the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  platform.compile_only()
  return command.run(PROG, lambda: _run(parser().parse_args(argv), argv))


def _run(args, argv: list[str]) -> None:
  from profiling import aot_compile, aot_programs

  versions = command.versions()
  methods = args.methods.split(",")
  if unknown := set(methods) - set(METHODS):
    raise ValueError(
      f"--methods must be some of {','.join(METHODS)}, got {unknown.pop()}"
    )
  sizes = args.model.split(",")
  if any(not size.isdecimal() or 8 % (int(size) or 9) for size in sizes):
    raise ValueError(f"--model must be sizes that divide 8, got {args.model}")
  print(
    f"Simulated, jax {versions['jax']}, libtpu {versions['libtpu']}: one block "
    f"of Llama-3 8B in bfloat16, forward and all gradients, {args.batch} "
    f"sequences of {args.sequence} tokens in each data group, ms.\n"
    f"`{PROG} {shlex.join(argv)}`\n"
  )
  ratio = "best compiler / auto"
  header = ("slice", "model axis", *methods, ratio)
  print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
  found = []
  for name in args.slices.split(","):
    for size in map(int, sizes):
      mesh = aot_programs.mesh_on(name, 8 // size, size)
      times = {}
      for method in methods:
        lowered = lower(method, mesh, args)
        compiled = aot_compile.compile_and_replay(
          lowered, mesh, options(method, name.partition(":")[0])
        )
        times[method] = 1e3 * compiled.replayed.step_time_s
        print(f"{name} {size} {method}\n{compiled.replayed}", file=sys.stderr)
      best = min((t for m, t in times.items() if "compiler" in m), default=0)
      gain = best / times["auto"] if "auto" in times else float("nan")
      found.append(gain)
      cells = (*(f"{t:.2f}" for t in times.values()), f"{gain:.3f}")
      print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)
  print(
    f"\n{ratio}: {statistics.geometric_mean(found):.3f} in geometric mean, "
    f"{min(found):.3f} at least."
  )


def options(method: str, chip: str) -> dict[str, str]:
  """The compiler's options for a method."""
  from collective_mm import gate

  if method == "unoverlapped":
    return {}
  found = gate.compiler_options(chip)
  if method == "compiler_none":
    for kind in ("all_gather", "reduce_scatter"):
      found[f"xla_tpu_{kind}_collective_matmul_mode"] = "none"
  return found


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
  )


if __name__ == "__main__":
  sys.exit(main())
