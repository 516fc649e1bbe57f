"""A profiler's trace of a few early steps."""

from pathlib import Path

import jax

_WARM_UP = 2  # the first steps, which still load programs and fill buffers


class StepTrace:
  """Traces `count` steps of a run.

  A context manager; leaving it ends a trace that is under way. The trace opens
  in xprof, TensorBoard or Perfetto.
  """

  def __init__(self, folder: Path, start: int, count: int):
    """Args:
    folder: for the trace, `plugins/profile/...` below it.
    start: the step that the run continues from.
    count: steps to trace; 0 for none.
    """
    self._folder = folder
    self._first = start + 1 + _WARM_UP
    self._last = self._first + count - 1
    self._running = False

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._end()

  def before(self, number: int) -> None:
    """Begins the trace if the step `number`, which comes next, is its first."""
    if self._first <= number <= self._last and not self._running:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # its calls would drown the rest
      jax.profiler.start_trace(str(self._folder), profiler_options=options)
      self._running = True

  def after(self, number: int) -> None:
    """Ends the trace if the step `number`, which is done, was its last."""
    if number >= self._last:
      self._end()

  def _end(self):
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
