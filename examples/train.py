"""Trains a Vision Transformer: `python -m examples.train --help`.

Without flags: a small one in the style of ViT-22B, on scikit-learn's digits,
over a (data=2, model=4) mesh of eight virtual CPU devices.
"""

import logging
import sys

import absl.logging

from examples.usage import UsageError
from profiling import platform


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  platform.select(devices=8)
  # These import jax, which reads the platform then.
  from examples.train_flags import parse
  from examples.train_loop import run

  # Orbax tells of its own tidying up at the level of warnings.
  absl.logging.set_verbosity(absl.logging.ERROR)
  # A font cache that another environment left names fonts that are gone.
  logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
  try:
    request = parse(argv)
    if request:
      run(request.config, request.workdir, resume=request.resume)
  except UsageError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except FloatingPointError as error:
    print(f"error: {error}; try a lower --lr", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
