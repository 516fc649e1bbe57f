"""Ctrl-C and SIGTERM: asked to stop, a run finishes its step and saves."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
  """A run that stopped when it was asked to, with its state saved.

  Attributes:
    signal: which signal asked; the command exits with 128 more, as shells say
      of a process that one has ended: 130 for Ctrl-C, 143 for SIGTERM.
  """

  def __init__(self, number: int, message: str):
    super().__init__(message)
    self.signal = signal.Signals(number)


class Request:
  """Whether this process was asked to stop.

  Attributes:
    signal: the number of the signal that asked; 0 if none has.
  """

  def __init__(self):
    self.signal = 0

  def hear(self, number, frame) -> None:
    """The signal handler; a second signal ends the process at once."""
    del frame
    self.signal = int(number)
    for each in SIGNALS:
      signal.signal(each, signal.SIG_DFL)
    # Not `print`: the signal may have come in the middle of one.
    name = signal.Signals(number).name
    os.write(2, f"\n{name}: stopping after this step\n".encode())


@contextlib.contextmanager
def listening() -> Iterator[Request]:
  """Takes signals as requests; outside the main thread there are none."""
  request = Request()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return
  before = {number: signal.getsignal(number) for number in SIGNALS}
  for number in SIGNALS:
    signal.signal(number, request.hear)
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
