"""Several processes, one run: how they meet, and how they agree."""

import dataclasses
import os
import sys
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from examples.usage import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts:
  """How this process finds the others of its run.

  Attributes:
    coordinator: "address:port" of the first process; None asks the cluster
      that started this one (TPU, Slurm, Open MPI).
    processes: how many there are; None asks the cluster.
    index: which of them this one is, from 0; None asks the cluster.
    timeout_s: how long to wait for a process that does not come or no longer
      answers.
  """

  coordinator: str | None = None
  processes: int | None = None
  index: int | None = None
  timeout_s: int = 100

  def meet(self) -> None:
    """Makes the processes one job; before anything asks jax for devices.

    If one does not come in time, this process ends, with 1 and a line that says
    so: jax would abort it.

    Raises:
      UsageError: if there is no cluster to ask.
    """
    # What CPUs of several processes exchange data by; other platforms do not
    # look at it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    timers = [
      threading.Timer(self.timeout_s / 4, self._tell),
      threading.Timer(self.timeout_s, self._give_up),
    ]
    for timer in timers:
      timer.daemon = True
      timer.start()
    try:
      jax.distributed.initialize(
        self.coordinator,
        self.processes,
        self.index,
        initialization_timeout=2 * self.timeout_s,  # ours comes first
        heartbeat_timeout_seconds=self.timeout_s,
        shutdown_timeout_seconds=self.timeout_s,
      )
    except ValueError as error:
      raise UsageError(
        "--distributed needs a TPU slice, Slurm or Open MPI, or all of "
        f"--coordinator, --num_processes and --process_id: {error}"
      ) from error
    finally:
      for timer in timers:
        timer.cancel()

  def _tell(self):
    print(
      f"still waiting for the other processes; this one ends after "
      f"{self.timeout_s} s",
      file=sys.stderr,
    )

  def _give_up(self):
    print(
      f"error: the processes of the run did not all come within "
      f"--host_timeout={self.timeout_s} s",
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)  # jax waits in C++, where no exception gets through


def is_first() -> bool:
  """Tells whether this process writes the logs and speaks."""
  return jax.process_index() == 0


def first_does(body) -> None:
  """Calls `body` in the first process while the others wait.

  Raises:
    UsageError: in every process, if `body` raised one in the first.
  """
  said = None
  if is_first():
    try:
      body()
    except UsageError as error:
      said = error
  failed = said is not None
  if jax.process_count() > 1:
    failed = multihost_utils.broadcast_one_to_all(np.int32(failed)) > 0
  if said:
    raise said
  if failed:
    raise UsageError("the first process could not start the run")


class Agreement:
  """The largest of what the processes each ask for, known to all of them.

  Processes whose clocks and signals differ must still take the same steps.
  """

  def __init__(self, mesh: jax.sharding.Mesh):
    """Compiles the exchange, unless there is one process alone."""
    self._alone = jax.process_count() == 1
    self._rows = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
    self._devices = mesh.size
    self._largest = jax.jit(
      lambda asked: asked.max(axis=0),
      out_shardings=jax.NamedSharding(mesh, jax.P()),
    )

  def ask(self, *numbers: int):
    """Begins an exchange of int32 numbers, for `answer`."""
    if self._alone:
      return numbers
    return self._largest(
      jax.make_array_from_callback(
        (self._devices, len(numbers)),
        self._rows,
        lambda _: np.array([numbers], np.int32),
      )
    )

  def answer(self, asked) -> list[int]:
    """Waits for an exchange; returns the largest of each number."""
    return [int(number) for number in np.asarray(asked)]
