"""Converts weights: `python -m examples.weights.convert IN OUT`.

    python -m examples.weights.convert B_16.npz b16.safetensors
    python -m examples.weights.convert --image=384 --nohead B_16.npz b16.npz
    python -m examples.weights.convert runs/digits-1 out.safetensors

IN is what `examples.weights.load` takes. OUT ends in `.safetensors` (our names,
or timm's with --timm) or `.npz` (big_vision's).
"""

import sys
from pathlib import Path

from absl import flags

from examples.usage import UsageError, blame
from profiling import platform


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  platform.select(devices=1)
  try:
    _convert(argv)
  except UsageError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def _convert(argv):
  given = _flags()
  try:
    paths = given(argv)[1:]
  except flags.Error as error:
    raise UsageError(str(error).removeprefix("flag ")) from error
  if given.help:
    print(__doc__, given.get_help())
    return
  if len(paths) != 2:
    raise UsageError(f"two paths, IN OUT, got {len(paths)}")
  source, target = map(Path, paths)
  if target.suffix not in (".npz", ".safetensors"):
    raise UsageError(f"{target}: must end in .npz or .safetensors")
  if target.exists():
    raise UsageError(f"{target}: is there already")

  from examples.weights import adapt, flax_npz, tensors
  from examples.weights.load import load

  cfg, params = load(source, heads=given.heads)
  if given.image:
    with blame(f"--image={given.image}"):
      cfg, params = adapt.at_resolution(cfg, params, given.image)
  if not given.head:
    cfg, params = adapt.without_head(cfg, params)
  with blame(str(target)):
    if target.suffix == ".npz":
      flax_npz.write(target, cfg, params, scanned=given.scanned)
    elif given.timm:
      tensors.write_timm(target, cfg, params)
    else:
      tensors.write(target, cfg, params)
  rows, columns = cfg.grid
  print(
    f"{target}: width {cfg.width}, depth {cfg.depth}, {cfg.heads} heads, "
    f"{rows} x {columns} patches of {cfg.patch}, {cfg.classes} classes"
  )


def _flags():
  values = flags.FlagValues()
  options = {"flag_values": values}
  flags.DEFINE_bool("help", False, "show this help", short_name="h", **options)
  flags.DEFINE_integer(
    "image", None, "resample the positions for images of this size", **options
  )
  flags.DEFINE_bool("head", True, "keep the classifier", **options)
  flags.DEFINE_integer("heads", None, "of a file that does not tell", **options)
  flags.DEFINE_bool("timm", False, "timm's names in the file", **options)
  flags.DEFINE_bool(
    "scanned", False, "blocks of the .npz in one array each", **options
  )
  return values


if __name__ == "__main__":
  sys.exit(main(sys.argv))
