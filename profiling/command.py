"""What the commands that compile for TPUs share: flags, versions, one line."""

import argparse
import sys
from collections.abc import Callable
from importlib import metadata

COMPILER_MODES = {
  "compiler_none": "none",
  "compiler_default": None,
  "compiler_post_spmd": "post_spmd_conservative",
}
"""Methods of a bench by the mode of the compiler's own collective matmul."""


class Parser(argparse.ArgumentParser):
  """A parser whose errors are ValueErrors, of one line."""

  def __init__(self, prog: str, description: str):
    super().__init__(
      prog=prog,
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )

  def error(self, message):
    raise ValueError(message)


def run(prog: str, body: Callable[[], None]) -> int:
  """Calls `body`; says what cannot be in one line and returns the exit code."""
  try:
    body()
  except (OSError, ValueError) as error:
    print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  return 0


def chip_options(text: str | None) -> dict[str, str]:
  """Compiler options from `--chip_options=name=value,...`."""
  options = {}
  for part in text.split(",") if text else ():
    name, equals, value = part.partition("=")
    if not (name and equals):
      raise ValueError(
        f"--chip_options must be name=value,..., or none, got {part!r}"
      )
    options[name] = value
  return options


def versions() -> dict[str, str]:
  """The versions that a compiled program depends on.

  Raises:
    ValueError: if the TPU compiler is not installed.
  """
  try:
    return {n: metadata.version(n) for n in ("jax", "jaxlib", "libtpu")}
  except metadata.PackageNotFoundError as error:
    raise ValueError(
      "the TPU compiler must be here: the libtpu wheel of jax[tpu], which "
      "exists for Linux on x86-64"
    ) from error


def collective_matmul_mode(mode: str | None) -> dict[str, str]:
  """The options for a mode of the compiler's own collective matmul.

  Args:
    mode: such as "none" or "post_spmd_conservative"; None for its default.
  """
  if mode is None:
    return {}
  kinds = "all_gather", "reduce_scatter"
  return {f"xla_tpu_{kind}_collective_matmul_mode": mode for kind in kinds}
