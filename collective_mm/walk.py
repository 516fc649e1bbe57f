"""Walks a schedule with a clock: what each line costs and what hides behind it.

All devices run the same schedule in lockstep. A line of compute moves the clock
on; a transfer travels beside it from its start, slower where others share its
links, and the line that ends it waits for it. How long anything takes is for
the caller's `Costs` to say.
"""

import bisect
import dataclasses
from typing import Protocol

from collective_mm import hlo_flow, hlo_loops
from collective_mm.hlo import Computation, Instruction, Module
from collective_mm.hlo_flow import COPY, PRODUCTS, REST, Step, Transfer

_INSTANT = 1e-14  # seconds; less is rounding


class Costs(Protocol):
  """How long things take, in seconds."""

  def compute(self, line: Instruction) -> float:
    """Seconds of a line of compute."""

  def alone(self, transfer: Transfer) -> float:
    """Seconds of a transfer that has its links to itself."""

  def rates(self, transfers: tuple[Transfer, ...]) -> tuple[float, ...]:
    """The speed, from 0 to 1, of each of the transfers that travel together."""

  def move(self, nbytes: int) -> float:
    """Seconds of a copy between memories of one device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """A stretch of the walk; all times in seconds from its start.

  Attributes:
    what: "compute", "wait", "transfer" (from start to arrival), "move" (the
      same of a copy inside the device), "loop" (a whole one) or "repeat" (trips
      of it that are not walked because they are like the last one).
    kind: "products", "kernels" or "rest" of compute; a collective's opcode or
      "copy" of the others.
    line: the line that computes, waits or started the transfer.
    begin: when it began.
    end: when it ended.
    runs: how often this happens in the program.
    trips: how often the loop turns meanwhile, for "loop" and "repeat".
    transfer: what travels, for a transfer; what is waited for, for a wait.
    ended_by: the line that ends the transfer, None for a blocking one.
    hidden: seconds of compute beside a transfer.
    products: lines with a product beside a transfer.
  """

  what: str
  kind: str
  line: Instruction
  begin: float
  end: float
  runs: int = 1
  trips: int = 0
  transfer: Transfer | None = None
  ended_by: Instruction | None = None
  hidden: float = 0.0
  products: int = 0

  @property
  def seconds(self) -> float:
    return self.end - self.begin


@dataclasses.dataclass(kw_only=True, eq=False)
class _Job:
  """Something under way; `left` are its seconds at full speed."""

  what: str
  kind: str
  line: Instruction
  transfer: Transfer | None
  begin: float
  left: float
  products: int
  end: float | None = None


class Walk:
  """Walks `module` from its entry.

  Attributes:
    spans: everything that took time, in the order in which it ended.
    seconds: where the clock stands.

  Raises:
    ValueError: if a loop's trip count is not a constant and `unknown_trips` is
      None.
  """

  def __init__(
    self, module: Module, costs: Costs, *, unknown_trips: int | None = None
  ):
    self.module, self.costs, self.unknown_trips = module, costs, unknown_trips
    self.spans: list[Span] = []
    self.seconds = 0.0
    self._at = 0.0  # until when the transfers under way have been followed
    self._memory = 0.0  # when the copies inside the device will be done
    self._under_way: list[_Job] = []
    self._products = 0
    # Compute done until each time, to tell how much of it ran beside what.
    self._times, self._computed = [0.0], [0.0]
    self._steps: dict[str, tuple[hlo_flow.Step, ...]] = {}
    self._run(module.entry, {})

  def _run(self, computation: Computation, carried: dict[int, _Job]):
    """Walks `computation`; returns jobs by the line or loop element they are.

    Args:
      computation: what to walk.
      carried: jobs among the elements of its parameter.
    """
    jobs: dict[tuple[str, int | None], _Job] = {}
    if computation.name not in self._steps:
      self._steps[computation.name] = hlo_flow.steps(self.module, computation)
    for step in self._steps[computation.name]:
      line = step.line
      if line.opcode == "while":
        self._loop(line, jobs, carried)
      elif line.opcode == "call":
        self._run(self.module.computations[line.called["to_apply"][0]], {})
      elif line.opcode == "conditional":
        self._slowest_branch(line)
      elif step.does == "starts":
        jobs[line.name, None] = self._start(step)
      elif step.does == "moves":
        jobs[line.name, None] = self._move(line)
      elif step.does == "ends":
        # What was sent may have been copied meanwhile; its semaphores are not.
        found = (
          self._job(line, i, jobs, carried) for i in range(len(line.operands))
        )
        job = next(filter(None, found), None)
        if job is None:
          raise ValueError(f"{line.name} must end something that has started")
        self._end(line, job)
      elif step.does == "blocks":
        self._end(None, self._start(step))
        if line.cycles is not None:
          self._compute(line, REST)
      else:
        self._compute(line, step.kind)
    return jobs

  def _compute(self, line: Instruction, kind: str):
    seconds = self.costs.compute(line)
    self._products += kind == PRODUCTS
    if seconds:
      begin, self.seconds = self.seconds, self.seconds + seconds
      self._times += [begin, self.seconds]
      self._computed += [self._computed[-1], self._computed[-1] + seconds]
      self.spans.append(
        Span(
          what="compute", kind=kind, line=line, begin=begin, end=self.seconds
        )
      )

  def _start(self, step: Step) -> _Job:
    self._follow(self.seconds)
    self._products += step.kind == PRODUCTS
    job = _Job(
      what="transfer",
      kind=step.kind,
      line=step.line,
      transfer=step.transfer,
      begin=self.seconds,
      left=self.costs.alone(step.transfer) if step.transfer else 0.0,
      products=self._products,
    )
    if step.transfer:
      self._under_way.append(job)
    else:
      job.end = self.seconds  # compute of another stream
    return job

  def _move(self, line: Instruction) -> _Job:
    # The second array of the result is the source or the target; as long.
    moved = line.arrays[min(1, len(line.arrays) - 1)].nbytes
    begin = max(self._memory, self.seconds)
    self._memory = begin + self.costs.move(moved)
    return _Job(
      what="move",
      kind=COPY,
      line=line,
      transfer=None,
      begin=begin,
      left=0.0,
      products=self._products,
      end=self._memory,
    )

  def _end(self, line: Instruction | None, job: _Job):
    """Waits for `job` at `line`, or at its own line if that blocks."""
    began = self.seconds
    self._follow(self.seconds)
    while job.end is None:
      self._follow()
    self.seconds = max(self.seconds, job.end)
    blocks = line is None
    self.spans.append(
      Span(
        what=job.what,
        kind=job.kind,
        line=job.line,
        begin=job.begin,
        end=job.end,
        transfer=job.transfer,
        ended_by=line,
        hidden=self._compute_until(job.end) - self._compute_until(job.begin),
        products=0 if blocks else self._products - job.products,
      )
    )
    if self.seconds > began:
      self.spans.append(
        Span(
          what="wait",
          kind=job.kind,
          line=job.line if blocks else line,
          begin=began,
          end=self.seconds,
          transfer=job.transfer,
        )
      )

  def _follow(self, until: float | None = None):
    """Moves the transfers under way on to `until`, or to the next arrival."""
    while self._under_way:
      jobs = self._under_way
      rates = self.costs.rates(tuple(job.transfer for job in jobs))
      left = [job.left / rate for job, rate in zip(jobs, rates, strict=True)]
      arrival = self._at + min(left)
      reached = arrival if until is None else min(arrival, until)
      for job, rate, time in zip(jobs, rates, left, strict=True):
        job.left -= rate * (reached - self._at)
        if job.left <= _INSTANT or (reached == arrival and time == min(left)):
          job.end = reached
      self._at = reached
      self._under_way = [job for job in jobs if job.end is None]
      if until is None or reached == until:
        break
    if until is not None:
      self._at = max(self._at, until)

  def _compute_until(self, time: float) -> float:
    """Seconds of compute until `time`."""
    i = bisect.bisect_right(self._times, time)
    if i == len(self._times):
      return self._computed[-1]
    t0, t1 = self._times[i - 1 : i + 1]
    c0, c1 = self._computed[i - 1 : i + 1]
    return c0 + (c1 - c0) * (time - t0) / (t1 - t0)

  def _loop(self, line: Instruction, jobs, carried):
    trips = hlo_loops.trip_count(self.module, line)
    trips = self.unknown_trips if trips is None else trips
    if trips is None:
      raise ValueError(
        f"every loop must turn a constant number of times, got {line.name}"
      )
    body = self.module.computations[line.called["body"][0]]
    inside = self._passed(self.module.operand(line), jobs, carried)
    entered, before = self.seconds, None
    for trip in range(1, trips + 1):
      mark = self._mark()
      inside = self._passed(body.root, self._run(body, inside), inside)
      after = self._state(inside)
      if trip < trips and before is not None and _alike(before, after):
        self._repeat(line, trips - trip, mark, entered, inside)
        break
      before = after
    self.spans.append(
      Span(
        what="loop",
        kind=REST,
        line=line,
        begin=entered,
        end=self.seconds,
        trips=trips,
      )
    )
    for index, job in inside.items():
      jobs[line.name, index] = job

  def _passed(self, carry: Instruction, jobs, carried) -> dict[int, _Job]:
    """Jobs among the elements of the tuple `carry`."""
    passed = {}
    if carry.opcode == "tuple" and (jobs or carried):
      for i in range(len(carry.operands)):
        if job := self._job(carry, i, jobs, carried):
          passed[i] = job
    return passed

  def _job(self, line: Instruction, i: int, jobs, carried) -> _Job | None:
    """The job that operand `i` of `line` stands for."""
    made, index = hlo_flow.origin(self.module, line, i)
    if made.opcode == "parameter":
      return carried.get(index)
    return jobs.get((made.name, None)) or jobs.get((made.name, index))

  def _state(self, inside: dict[int, _Job]) -> tuple[tuple, list[float]]:
    """All that the next trip's course depends on, seen from now."""
    self._follow(self.seconds)
    times = [job.left for job in self._under_way]
    ends = [self._memory, *(job.end or 0.0 for job in inside.values())]
    times += [max(end - self.seconds, 0.0) for end in ends]
    under_way = tuple(
      (id(job.transfer), tuple(i for i in inside if inside[i] is job))
      for job in self._under_way
    )
    return (under_way, tuple(inside)), times

  def _mark(self):
    return (
      len(self.spans),
      len(self._times),
      self.seconds,
      self._products,
      self._at,
      self._memory,
      [(job, job.left) for job in self._under_way],
    )

  def _repeat(self, line, times: int, mark, entered: float, inside):
    """Adds `times` trips of the loop at `line` that are like the last one."""
    spans, breaks, begin, products, *_ = mark
    self.spans[spans:] = [
      dataclasses.replace(span, runs=span.runs * (times + 1))
      for span in self.spans[spans:]
    ]
    shift = times * (self.seconds - begin)
    self.spans.append(
      Span(
        what="repeat",
        kind=REST,
        line=line,
        begin=self.seconds,
        end=self.seconds + shift,
        runs=times,
        trips=times,
      )
    )
    # What was computed when, up to now, as the last of the trips leaves it.
    more = times * (self._computed[-1] - self._computed[breaks - 1])
    self._computed += [c + more for c in self._computed[breaks:]]
    self._times += [t + shift for t in self._times[breaks:]]
    more_products = times * (self._products - products)
    for job in {*inside.values(), *self._under_way}:
      if job.begin >= entered:
        job.begin += shift
        job.products += more_products
        job.end = None if job.end is None else job.end + shift
    self._products += more_products
    self.seconds += shift
    self._at += shift
    self._memory += shift

  def _slowest_branch(self, line: Instruction):
    names = [name for called in line.called.values() for name in called]
    mark, seconds = self._mark(), {}
    for name in names:
      self._run(self.module.computations[name], {})
      seconds[name] = self.seconds
      self._undo(mark)
    slowest = max(names, key=lambda name: seconds[name])
    self._run(self.module.computations[slowest], {})

  def _undo(self, mark):
    spans, breaks, *clocks, under_way = mark
    del self.spans[spans:], self._times[breaks:], self._computed[breaks:]
    self.seconds, self._products, self._at, self._memory = clocks
    self._under_way = [job for job, _ in under_way]
    for job, left in under_way:
      job.left, job.end = left, None


def _alike(a: tuple[tuple, list[float]], b: tuple[tuple, list[float]]) -> bool:
  return a[0] == b[0] and all(
    abs(x - y) < 1e-12 for x, y in zip(a[1], b[1], strict=True)
  )
