"""Wall-clock times of several methods, measured side by side."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
  """The spread of one method's times, in seconds.

  Attributes:
    median_s: median over the rounds.
    min_s: fastest round.
    max_s: slowest round.
    rounds: how many calls were timed.
    times_s: each call's.
  """

  median_s: float
  min_s: float
  max_s: float
  rounds: int
  times_s: tuple[float, ...]


def time_interleaved(
  methods: dict[str, Callable[[], Any]], rounds: int = 10, warmup: int = 1
) -> dict[str, Timing]:
  """Times `methods` in turns, so that a slow spell of the machine hits each.

  Every round calls every method once, in the order of the dict, and waits for
  the arrays that it returns before the next one starts.

  Args:
    methods: what to call, by name; each returns a pytree of jax arrays.
    rounds: timed calls of each method.
    warmup: calls of each method before them, untimed; the first compiles.

  Returns:
    A `Timing` for each name of `methods`, in the same order.

  Raises:
    ValueError: if `rounds` is less than 1 or `warmup` is negative.
  """
  if rounds < 1:
    raise ValueError(f"rounds must be at least 1, got {rounds}")
  if warmup < 0:
    raise ValueError(f"warmup must be at least 0, got {warmup}")
  for _ in range(warmup):
    for method in methods.values():
      jax.block_until_ready(method())
  seconds = {name: [] for name in methods}
  for _ in range(rounds):
    for name, method in methods.items():
      start = time.perf_counter()
      jax.block_until_ready(method())
      seconds[name].append(time.perf_counter() - start)
  return {
    name: Timing(
      median_s=statistics.median(times),
      min_s=min(times),
      max_s=max(times),
      rounds=rounds,
      times_s=tuple(times),
    )
    for name, times in seconds.items()
  }
