"""What can be wrong with a collective, and with what a ring carries."""

import dataclasses
import re

import jax
import numpy as np

from collective_mm import hlo_flow, placement
from collective_mm.chips import ChipLink
from collective_mm.hlo import Computation, Instruction, Module
from collective_mm.hlo_flow import PRODUCTS, Transfer
from collective_mm.hlo_groups import joined_axes
from collective_mm.hlo_loops import run_counts

_SMALL = 1 << 20
"""Bytes below which a collective is bookkeeping (losses, norms, biases)."""
_ASKED_FOR = re.compile("all_gather|sharding_constraint|reshard|device_put")
_PASSES_ON = frozenset(
  (
    *("bitcast", "convert", "copy", "dynamic-slice", "reshape", "slice"),
    *("transpose", "copy-done", "copy-start", "slice-done", "slice-start"),
  )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CarryCopy:
  """A copy, on every trip, of what a ring carries through a loop.

  Attributes:
    name: the copying line.
    computation: the loop's body.
    runs: how often the body runs.
    nbytes: bytes that it copies each time.
  """

  name: str
  computation: str
  runs: int
  nbytes: int


class Places:
  """Where the partitions of a module are: in the mesh, and on the torus."""

  def __init__(self, mesh: jax.sharding.Mesh | None, chip: ChipLink | None):
    self._mesh = mesh
    self._coords = None
    devices = [] if mesh is None else list(mesh.devices.flat)
    if chip and all(hasattr(d, "coords") for d in devices) and devices:
      coords = np.array([d.coords[: chip.torus_dims] for d in devices])
      self._coords = coords - coords.min(axis=0)
      self._sizes = self._coords.max(axis=0) + 1
      self._wraps = placement.wraps(chip.kind, self._sizes)

  def axes(self, transfer: Transfer) -> tuple[str, ...] | None:
    """The mesh axes along which `transfer` joins devices."""
    if self._mesh is None:
      return None
    joined = transfer.groups if transfer.pairs is None else transfer.pairs
    return joined_axes(joined, dict(self._mesh.shape))

  def hops(self, transfer: Transfer) -> int | None:
    """Links of the longest route of a permute."""
    if self._coords is None or transfer.pairs is None:
      return None
    way = np.abs(np.diff(self._coords[transfer.pairs], axis=1)[:, 0])
    around = np.where(self._wraps, self._sizes - way, way)
    return int(np.minimum(way, around).sum(axis=1).max(initial=0))


def members(transfer: Transfer) -> int:
  """How many devices `transfer` joins; for a permute, in its longest chain."""
  if transfer.pairs is None:
    return transfer.groups.shape[1]
  after = dict(transfer.pairs.tolist())
  firsts, seen, longest = set(after) - set(after.values()), set(), 0
  for first in (*sorted(firsts), *sorted(after)):
    at, count = first, 0
    while at is not None and at not in seen:
      seen.add(at)
      at, count = after.get(at), count + 1
    longest = max(longest, count)
  return longest


def faults(
  module: Module,
  transfer: Transfer,
  *,
  blocks: bool,
  products: int,
  hops: int | None,
) -> tuple[str, ...]:
  """What is wrong with a collective of a MiB or more, in words."""
  if transfer.nbytes < _SMALL:
    return ()
  found = []
  if blocks:
    found.append("blocks")
  elif not products:
    found.append("no product between its start and its done")
  if transfer.dtype in ("f32", "f64"):
    found.append(f"{transfer.dtype} on the wire")
  if hops is not None and hops > 1:
    found.append(f"{hops} hops between neighbours of the ring")
  if (
    transfer.kind == "all-gather"
    and not _ASKED_FOR.search(transfer.inner.op_name)
    and not _is_input(module, transfer.line)
  ):
    found.append("gathers an activation, which the program did not ask for")
  return tuple(found)


def carry_copies(module: Module) -> tuple[CarryCopy, ...]:
  """Copies between a ring's permutes and the carry of the loop around them."""
  runs = run_counts(module)
  return tuple(
    CarryCopy(
      name=copy.name,
      computation=name,
      runs=runs.get(name, 0),
      nbytes=copy.nbytes,
    )
    for line in module.instructions.values()
    for name in line.called.get("body", ())
    for copy in _ring_copies(module, module.computations[name])
  )


def _ring_copies(module: Module, body: Computation) -> list[Instruction]:
  copies: dict[str, Instruction] = {}
  for line in body.instructions:
    if line.opcode in ("collective-permute", "collective-permute-start"):
      made, passed = _trace(module, line, 0)
      if made.opcode == "parameter":
        copies |= passed
  for i in range(len(body.root.operands)):
    made, passed = _trace(module, body.root, i)
    if made.opcode in ("collective-permute", "collective-permute-done"):
      copies |= passed
  return list(copies.values())


def _trace(
  module: Module, line: Instruction, i: int
) -> tuple[Instruction, dict[str, Instruction]]:
  """What made operand `i` of `line`, and the copies on the way from there."""
  at, copies = module.operand(line, i), {}
  while at.opcode in ("bitcast", "copy", "get-tuple-element"):
    if at.opcode == "copy":
      copies[at.name] = at
    at = module.operand(at)
  return at, copies


def _is_input(module: Module, line: Instruction) -> bool:
  """Whether what `line` takes is an argument of the program, or a part of it.

  Follows what only moves or converts data, and what loops carry unchanged.
  """
  at, index = module.operand(line), None
  while at.opcode != "parameter" or at.computation != module.entry.name:
    if at.opcode == "get-tuple-element":
      at, index = module.operand(at), at.index
    elif at.opcode == "tuple" and index is not None:
      at, index = module.operand(at, index), None
    elif at.opcode == "parameter":
      loop = next(
        (
          outer
          for outer in module.instructions.values()
          if at.computation in outer.called.get("body", ())
        ),
        None,
      )
      if loop is None or index is None:
        return False
      after, after_index = hlo_flow.origin(
        module, module.computations[at.computation].root, index
      )
      if after is not at or after_index != index:
        return False
      at = module.operand(loop)
    elif at.opcode == "fusion":
      arrays = [module.operand(at, i) for i in range(len(at.operands))]
      large = [array for array in arrays if array.nbytes >= 1024]
      if len(large) != 1 or hlo_flow.kind_of(module, at) == PRODUCTS:
        return False
      at = large[0]
    elif at.opcode in _PASSES_ON:
      at = module.operand(at)
    else:
      return False
  return True
