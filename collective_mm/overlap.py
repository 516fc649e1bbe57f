"""Tells from the schedule of a compiled function what hides behind what.

A collective is *hidden* as far as the device computes while the data travels,
in the schedule that the compiler chose, not in what the program asked for.
"""

import dataclasses
from typing import Any

import jax

from collective_mm import hlo
from collective_mm.chips import find_chip, timed_chip
from collective_mm.hlo import Module
from collective_mm.link_costs import LinkCosts
from collective_mm.overlap_checks import (
  CarryCopy,
  Places,
  carry_copies,
  faults,
  members,
)
from collective_mm.walk import Span, Walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One collective of the schedule.

  Attributes:
    kind: its opcode, such as "collective-permute".
    start: the line that starts it, or that blocks on it.
    done: the line that waits for it; None if it blocks.
    computation: the loop body or entry that holds the start.
    runs: how often it runs, trip counts multiplied.
    nbytes: bytes of the whole array that is gathered, scattered or summed, or
      that a permute sends, each time.
    dtype: what travels, in HLO's words ("bf16").
    axes: the mesh axes that it joins; None where the mesh is not known.
    devices: how many devices it joins, the length of the ring for a permute.
    hops: links of the longest route of a permute; None where the devices'
      places are not known.
    products: products between the start and the done.
    transfer_s: modelled seconds of each run; 0 without a chip model.
    hidden: the part of it beside which the device computes, from 0 to 1.
    faults: what is wrong with it, in words.
    op_name: the jax name stack that made it.
    source: "file:line" that made it.
  """

  kind: str
  start: str
  done: str | None
  computation: str
  runs: int
  nbytes: int
  dtype: str
  axes: tuple[str, ...] | None
  devices: int
  hops: int | None
  products: int
  transfer_s: float
  hidden: float
  faults: tuple[str, ...]
  op_name: str
  source: str

  @property
  def blocks(self) -> bool:
    """Whether nothing can run beside it."""
    return self.done is None

  @property
  def weight(self) -> float:
    """Seconds of all runs together; bytes without a chip model."""
    return self.runs * (self.transfer_s or self.nbytes)

  @property
  def exposed(self) -> float:
    """The part of `weight` that is not hidden."""
    return self.weight * (1 - self.hidden)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlapReport:
  """What hides behind what in a compiled function.

  Attributes:
    collectives: every collective, the most exposed first.
    carry_copies: copies of what a ring carries from trip to trip.
    chip: short name of the chip whose links and clock make the times; None
      where a collective counts as hidden when it does not block and a product
      stands between its start and its done.
  """

  collectives: tuple[Collective, ...]
  carry_copies: tuple[CarryCopy, ...]
  chip: str | None

  @property
  def hidden(self) -> float:
    """The hidden part of all transfers together, by time or else by bytes."""
    whole = sum(c.weight for c in self.collectives)
    exposed = sum(c.exposed for c in self.collectives)
    return 1 - exposed / whole if whole else 1.0

  @property
  def faults(self) -> tuple[str, ...]:
    """Every fault of every collective, and every copy, one line each."""
    return tuple(
      f"{c.start}: {fault} ({_summary(c)})"
      for c in self.collectives
      for fault in c.faults
    ) + tuple(
      f"{c.name}: copies {_megabytes(c.nbytes)} of a ring's carry {c.runs} "
      f"times in {c.computation}"
      for c in self.carry_copies
    )

  def assert_overlapped(self, min_hidden: float = 0.95) -> None:
    """Raises AssertionError, listing the worst, if less is hidden than asked.

    Args:
      min_hidden: the least part of all transfers that must be hidden, 0 to 1.
    """
    if not 0 <= min_hidden <= 1:
      raise ValueError(f"min_hidden must be from 0 to 1, got {min_hidden}")
    if self.hidden < min_hidden:
      worst = "\n".join(
        f"  {c.start}: {100 * c.hidden:.1f} % hidden, {_summary(c)}"
        + "".join(f"; {fault}" for fault in c.faults)
        for c in self.collectives[:5]
      )
      raise AssertionError(
        f"{100 * self.hidden:.1f} % of the communication is hidden, less than "
        f"{100 * min_hidden:.1f} %; the most exposed of "
        f"{len(self.collectives)} collectives:\n{worst}"
      )

  def __str__(self) -> str:
    rows = [
      ("kind", "axes", "runs", "MB", "dtype", "products", "hidden", "what")
    ]
    alike: dict[tuple, list[Collective]] = {}
    for c in self.collectives:
      key = (c.kind, c.axes, c.nbytes, c.dtype, c.blocks, c.faults, c.source)
      alike.setdefault(key, []).append(c)
    for found in alike.values():
      c, runs = found[0], sum(c.runs for c in found)
      hidden = sum(c.runs * c.hidden for c in found) / max(runs, 1)
      rows.append(
        (
          c.kind,
          ",".join(c.axes) if c.axes else f"{c.devices} devices",
          str(runs),
          f"{c.nbytes / 1e6:.2f}",
          c.dtype,
          "blocks" if c.blocks else f"{min(c.products for c in found)}+",
          f"{100 * hidden:.1f} %",
          "; ".join((*c.faults, c.source)),
        )
      )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
      "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()
      for row in rows
    ]
    model = f"modelled on a {self.chip}" if self.chip else "by products between"
    lines.append(
      f"{len(self.collectives)} collectives, {100 * self.hidden:.1f} % hidden "
      f"({model})"
    )
    copies = [line for line in self.faults if "ring's carry" in line]
    return "\n".join(lines + copies)


def overlap_report(
  compiled: Any,
  *,
  mesh: jax.sharding.Mesh | None = None,
  chip: str | None = None,
) -> OverlapReport:
  """Reads off the schedule which collectives hide behind compute.

  With a chip and the TPU compiler's cycles, the report walks the schedule with
  a clock: compute takes its cycles, a permute its latency and its bytes over
  one link, a gather or scatter of `b` bytes over `n` devices `b (n - 1) / n`
  over two links, an all-reduce both; transfers that join the same devices the
  same way share their links. `hidden` is the part of a transfer's time in which
  the device computes. Without (a GPU's text, a CPU's, or no chip named) it is 1
  where a product stands between start and done. On a CPU every collective
  blocks.

  Args:
    compiled: a compiled jax function, or the text of one
      (`compiled.as_text()`).
    mesh: the mesh that it runs on, to name axes and count hops; the mesh of its
      arguments if not given.
    chip: the chip's short name ("v5e"); that of the mesh if not given.

  Raises:
    ValueError: if there is no scheduled text, the chip is unknown or the mesh
      does not have the module's devices.

  Example:
    >>> double = jax.jit(lambda x: 2 * x).lower(1.0).compile()
    >>> print(overlap_report(double))
    kind  axes  runs  MB  dtype  products  hidden  what
    0 collectives, 100.0 % hidden (by products between)
  """
  text = compiled if isinstance(compiled, str) else compiled.as_text()
  if not text:
    raise ValueError("compiled must have a text, got none (compiled.as_text())")
  module = hlo.parse(text)
  if mesh is None:
    mesh = _mesh_of(compiled, module.partitions)
  elif mesh.size != module.partitions:
    raise ValueError(
      f"mesh must have the module's {module.partitions} devices, got "
      f"{mesh.size}"
    )
  if chip is not None:
    link = timed_chip(chip)
  else:
    link = mesh and find_chip(mesh.devices.flat[0].device_kind)
  timed = any(line.cycles is not None for line in module.instructions.values())
  costs = LinkCosts(link if timed else None)
  walk = Walk(module, costs, unknown_trips=1)
  found: dict[tuple[str, str], list[Span]] = {}
  for span in walk.spans:
    if span.what == "transfer" and span.transfer is not None:
      key = span.line.computation, span.line.name
      found.setdefault(key, []).append(span)
  places = Places(mesh, link)
  collectives = [
    _collective(module, spans, places, costs) for spans in found.values()
  ]
  return OverlapReport(
    collectives=tuple(sorted(collectives, key=lambda c: (-c.exposed, c.start))),
    carry_copies=carry_copies(module),
    chip=costs.chip and costs.chip.name,
  )


def _collective(
  module: Module, spans: list[Span], places: Places, costs: LinkCosts
) -> Collective:
  """Puts the runs of one collective together."""
  span, transfer = spans[0], spans[0].transfer
  runs = sum(s.runs for s in spans)
  products = min(s.products for s in spans)
  blocks = span.ended_by is None
  seconds = sum(s.runs * s.seconds for s in spans)
  if costs.chip is None:
    hidden = float(products > 0)
  else:
    hidden = sum(s.runs * s.hidden for s in spans) / seconds if seconds else 1.0
  hops = places.hops(transfer)
  found = faults(module, transfer, blocks=blocks, products=products, hops=hops)
  return Collective(
    kind=transfer.kind,
    start=span.line.name,
    done=None if blocks else span.ended_by.name,
    computation=span.line.computation,
    runs=runs,
    nbytes=transfer.nbytes,
    dtype=transfer.dtype,
    axes=places.axes(transfer),
    devices=members(transfer),
    hops=hops,
    products=products,
    transfer_s=seconds / runs,
    hidden=hidden,
    faults=found,
    op_name=transfer.inner.op_name or span.line.op_name,
    source=module.source(transfer.inner) or module.source(span.line),
  )


def _mesh_of(compiled: Any, partitions: int) -> jax.sharding.Mesh | None:
  """The mesh of the arguments of a compiled function, if they have one."""
  shardings = jax.tree.leaves(getattr(compiled, "input_shardings", ()))
  for sharding in shardings:
    mesh = getattr(sharding, "mesh", None)
    if isinstance(mesh, jax.sharding.Mesh) and mesh.size == partitions:
      return mesh
  return None


def _summary(c: Collective) -> str:
  axes = f"over {','.join(c.axes)}" if c.axes else f"of {c.devices} devices"
  return (
    f"{c.kind} {axes}, {_megabytes(c.nbytes)} of {c.dtype}, {c.runs} times, "
    f"{c.source or c.op_name or c.computation}"
  )


def _megabytes(nbytes: int) -> str:
  return f"{nbytes / 1e6:.2f} MB"
