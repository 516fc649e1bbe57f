"""How long programs ran on a device, out of a profiler trace."""

import glob
import pathlib

import jax

# A TPU's plane in the trace has a line with one event for each program run.
_PROGRAMS = "XLA Modules"


def program_seconds(folder: str | pathlib.Path) -> list[float] | None:
  """Returns the seconds of each program that ran, in order, on one device.

  Args:
    folder: where `jax.profiler.trace` wrote; its newest trace is read.

  Returns:
    The times of the first TPU that the trace knows; None if it knows none, as
    on a CPU. A GPU's trace has kernels alone, which may overlap, and gives None
    too.
  """
  pattern = f"{glob.escape(str(folder))}/**/*.xplane.pb"
  paths = glob.glob(pattern, recursive=True)
  if not paths:
    return None
  newest = max(paths, key=lambda path: pathlib.Path(path).stat().st_mtime)
  return seconds_of(jax.profiler.ProfileData.from_file(newest))


def seconds_of(profile: jax.profiler.ProfileData) -> list[float] | None:
  """The same, of a trace that has been read."""
  for plane in sorted(profile.planes, key=lambda plane: plane.name):
    if not plane.name.startswith("/device:TPU:"):
      continue
    for line in plane.lines:
      if line.name == _PROGRAMS:
        events = sorted(line.events, key=lambda event: event.start_ns)
        return [event.duration_ns / 1e9 for event in events]
  return None
