"""Runs of the trainer as processes of their own, to be ended from outside."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = [*("--width=16", "--mlp=32", "--depth=1", "--batch=16", "--log_every=1")]
_PATIENCE_S = 240  # a busy machine may take this long to compile


def lines(path: Path) -> list[dict]:
  """The records of a JSON lines file, without a last line that is half."""
  if not path.exists():
    return []
  return [
    json.loads(line)
    for line in path.read_text().splitlines(keepends=True)
    if line.endswith("\n")
  ]


def metrics(folder: Path, group: str) -> list[dict]:
  """The records of a run, without the speeds, which differ between runs."""
  return [
    {name: x for name, x in record.items() if not name.startswith("speed/")}
    for record in lines(folder / "metrics.jsonl")
    if any(name.startswith(group) for name in record)
  ]


def checkpoints(folder: Path) -> list[int]:
  """The steps of the finished checkpoints of a run."""
  found = (folder / "checkpoints").glob("*")
  return sorted(int(path.name) for path in found if path.name.isdigit())


class Trainer:
  """`python -m examples.train` in a process; a context manager that ends it."""

  def __init__(self, *flags: str, **environment: str):
    self._process = subprocess.Popen(
      [sys.executable, "-m", "examples.train", *flags],
      cwd=ROOT,
      env=os.environ | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._process.poll() is None:
      self._process.kill()
    self._process.communicate()

  def send(self, number: signal.Signals) -> None:
    self._process.send_signal(number)

  def limit_files(self, size: int) -> None:
    """Lets no file that it writes grow beyond `size` bytes."""
    resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, size))

  def wait_for(self, condition) -> None:
    """Returns when `condition()` holds, or the process has ended."""
    end = time.monotonic() + _PATIENCE_S
    while not condition() and self._process.poll() is None:
      assert time.monotonic() < end, "the run does not get on"
      time.sleep(0.01)

  def end(self) -> tuple[int, str, str]:
    """Waits for its end; returns its exit code, stdout and stderr."""
    out, err = self._process.communicate(timeout=_PATIENCE_S)
    return self._process.returncode, out, err


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]
