"""Trains a Vision Transformer: `python -m examples.train --help`.

Without flags: a small one in the style of ViT-22B, on scikit-learn's digits,
over a (data=2, model=4) mesh of eight virtual CPU devices.

Exit codes: 0 done; 1 stopped by an error that it names; 2 the request cannot
be; 130 stopped by Ctrl-C and 143 by SIGTERM, its state saved.
"""

import logging
import os
import sys

import absl.logging

from examples.usage import UsageError
from profiling import platform


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  platform.select(devices=8)
  # These import jax, which reads the platform then.
  from jax.errors import JaxRuntimeError

  from examples.checkpoints import CheckpointError
  from examples.stop import Stopped
  from examples.train_flags import parse
  from examples.train_loop import run

  _hush_orbax()
  # A font cache that another environment left names fonts that are gone.
  logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
  request = None
  try:
    request = parse(argv)
    if request:
      if request.hosts:
        request.hosts.meet()
      run(request.config, request.workdir, resume=request.resume)
    return 0
  except UsageError as error:
    code, said = 2, f"error: {error}"
  except FloatingPointError as error:
    code, said = 1, f"error: {error}; try a lower --lr"
  except Stopped as stopped:
    print(stopped, file=sys.stderr)
    return 128 + stopped.signal
  except CheckpointError as error:
    code, said = 1, f"error: {error}"
  except OSError as error:
    said = f"error: {error.strerror or error}"
    code, said = 1, said + (f": {error.filename}" if error.filename else "")
  except JaxRuntimeError as error:
    if not request or not request.hosts:
      raise
    line = str(error).splitlines()[0]
    code, said = 1, f"error: a process of the run was lost: {line}"
  except KeyboardInterrupt:
    code, said = 130, "interrupted"
  print(said, file=sys.stderr)
  if request and request.hosts:
    # Not by way of jax's own end, which waits for processes that are gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


def _hush_orbax() -> None:
  """Leaves out what orbax logs and we are told anyway.

  Its tidying up are warnings; a save that fails, which is an exception for us,
  is an error of each thread and each task that had a part in it.
  """
  absl.logging.set_verbosity(absl.logging.FATAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _hook(unraisable) -> None:
  """Leaves out what callbacks say that come after such a failure."""
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
  sys.unraisablehook = _hook
  sys.exit(main(sys.argv))
