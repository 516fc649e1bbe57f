r"""Says what hides behind what in a model, as it was and with our layers.

    python -m examples.drop_in.report --model=llama --slice=v5e:2x4

Compiles forward and all gradients for a slice of eight chips that is not here,
with the options of `gate.compiler_options`, and prints the overlap report and
the replayed time of the original, which the compiler partitions, and of the
converted model.
"""

import sys

from profiling import command, platform

PROG = "python -m examples.drop_in.report"


def main(argv: list[str] | None = None) -> int:
  """Prints both reports; returns the exit code."""
  flags = command.Parser(PROG, __doc__)
  flags.add_argument("--model", required=True, help="llama, vit or mixer")
  flags.add_argument("--slice", default="v5e:2x4", help="of eight chips")
  flags.add_argument("--model_axis", type=int, default=8, help="2, 4 or 8")
  argv = sys.argv[1:] if argv is None else argv
  platform.compile_only()
  return command.run(PROG, lambda: _print(flags.parse_args(argv)))


def _print(args) -> None:
  from profiling import aot_programs

  size = args.model_axis
  if size < 1 or 8 % size:
    raise ValueError(f"--model_axis must divide 8, got {size}")
  mesh = aot_programs.mesh_on(args.slice, 8 // size, size)
  for when, sharded in (("before", False), ("after", True)):
    overlap, replayed = reported(args.model, sharded, mesh)
    print(f"{args.model} on {args.slice}, {when}:\n{overlap}")
    print(f"{replayed}\n", flush=True)


def reported(model: str, sharded: bool, mesh):
  """The overlap report of a model, and its replay.

  Args:
    model: "llama", "vit" or "mixer".
    sharded: the converted one, or the original.
    mesh: of TPU devices, with the axes "data" and "model".

  Raises:
    ValueError: if there is no such model.
  """
  import jax.numpy as jnp

  from collective_mm import gate, overlap_report
  from examples.drop_in import llama_nnx, programs, vit_linen
  from profiling import topology
  from profiling.replay import replay

  data = mesh.shape["data"]
  if model == "llama":
    cfg = llama_nnx.Config(
      heads=16, kv_heads=8, hidden=24576, param_dtype=jnp.bfloat16
    )
    lowered = programs.llama_block(
      sharded, mesh, cfg=cfg, batch=4 * data, sequence=1024
    )
  elif model == "vit":
    cfg = vit_linen.Config(
      depth=2, width=4096, hidden=24576, heads=32, dtype=jnp.bfloat16
    )
    lowered = programs.vit(
      sharded, mesh, cfg=cfg, batch=16 * data, image=(256, 256)
    )
  elif model == "mixer":
    lowered = programs.mixer(
      sharded, mesh, batch=4 * data, tokens=1024, patch=768, width=4096,
      token_hidden=16384, hidden=24576, depth=1, classes=1024,
    )  # fmt: skip
  else:
    raise ValueError(f"--model must be llama, vit or mixer, got {model!r}")
  devices = list(mesh.devices.flat)
  chip = devices[0].device_kind
  compiled = lowered.compile(compiler_options=gate.compiler_options(chip))
  replayed = replay(
    compiled.as_text(),
    devices=topology.coordinates(devices),
    chip=chip,
    mesh=dict(mesh.shape),
  )
  return overlap_report(compiled, mesh=mesh), replayed


if __name__ == "__main__":
  sys.exit(main())
