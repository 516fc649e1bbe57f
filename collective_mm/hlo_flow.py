"""Tells the transfers in a schedule from its compute, and ends from starts.

A collective comes in several forms: one blocking line; a `-start` line and a
`-done` line; a call of a SparseCore, which gets its arrays at the `call-start`
or, of libtpu 0.0.50, in a `call-update`; fusions that hold the collective and
are marked as its start and its end (`AsyncCollectiveStart`,
`AsyncCollectiveDone`), with fusions between that compute while they carry it;
and a fusion without a cycle estimate around an all-reduce, of which it keeps
one shard: a blocking reduce-scatter.
"""

import dataclasses
import re

import numpy as np

from collective_mm.hlo import Computation, Instruction, Module

PRODUCTS, KERNELS, REST, COPY = "products", "kernels", "rest", "copy"

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)
"""Opcodes that move data between devices."""
MOVES = ("copy", "slice", "dynamic-slice", "dynamic-update-slice")
"""Opcodes whose `-start` moves data between memories of one device."""
_NOTHING = frozenset(
  (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("partition-id", "replica-id", "after-all", "opt-barrier", "domain"),
    *("add-dependency", "collective-permute-update", "async-update"),
  )
)
# What `origin` sees through.
_SAME = frozenset(
  (
    *("bitcast", "copy", "opt-barrier"),
    *("async-update", "collective-permute-update"),
  )
)
# The libraries' products on a GPU and on a CPU.
_PRODUCT_TARGET = re.compile("gemm|matmul|conv|dot", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Transfer:
  """One collective, however the schedule writes it.

  Attributes:
    kind: the opcode of what it does; a fused all-reduce of which one shard is
      kept counts as the reduce-scatter that it is.
    line: the blocking line, or the start.
    inner: the collective's own line, `line` or one inside of it.
    nbytes: bytes of the whole array that is gathered, scattered, summed or
      exchanged, or the bytes that a permute sends.
    dtype: what travels.
    groups: replica groups `[groups, size]`, or None for a permute.
    pairs: source-target pairs `[pairs, 2]`, or None.
  """

  kind: str
  line: Instruction
  inner: Instruction
  nbytes: int
  dtype: str
  groups: np.ndarray | None
  pairs: np.ndarray | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A line of the schedule that may take time.

  Attributes:
    line: the line.
    does: "computes", "starts" or "ends" a transfer, "blocks" on one, or "moves"
      data inside the device (and starts that).
    kind: "products", "kernels" (Pallas) or "rest" of compute, "copy" of a move,
      the kind of a transfer.
    transfer: what it starts or blocks on.
  """

  line: Instruction
  does: str
  kind: str
  transfer: Transfer | None = None


def steps(module: Module, computation: Computation) -> tuple[Step, ...]:
  """The lines of `computation` that may take time, in schedule order."""
  found = []
  for line in computation.instructions:
    if line.opcode in _NOTHING:
      continue
    does, inner = _role(module, line)
    if does == "ends" and _is_synchronous(origin(module, line)[0]):
      continue
    if inner is not None and does in ("starts", "blocks"):
      transfer = _transfer(module, line, inner)
      if transfer.pairs is None and transfer.groups.shape[1] == 1:
        continue  # among one device nothing travels
      found.append(
        Step(line=line, does=does, kind=transfer.kind, transfer=transfer)
      )
    else:
      kind = COPY if does == "moves" else kind_of(module, line)
      found.append(Step(line=line, does=does, kind=kind))
  return tuple(found)


def _role(module: Module, line: Instruction) -> tuple[str, Instruction | None]:
  """What `line` does, and the collective's own line where there is one."""
  if line.opcode in COLLECTIVES:
    return "blocks", line
  if line.opcode in ("send", "recv"):
    return "starts", None
  base, _, part = line.opcode.rpartition("-")
  if base and part == "done":
    return "ends", None
  if line.opcode == "call-start" and not line.operands:
    return "computes", None  # a SparseCore gets ready; an update has the arrays
  if base and part in ("start", "update"):
    at = line if part == "start" else module.operand(line)
    inside = (i for i in module.inside(at) if i.opcode in COLLECTIVES)
    inner = next(inside, line if base in COLLECTIVES else None)
    if inner is None:
      return ("moves" if base in MOVES else "starts"), None
    return ("blocks" if _is_synchronous(line) else "starts"), inner
  if line.opcode != "fusion":
    return "computes", None
  inside = list(module.inside(line))
  inner = next((i for i in inside if i.opcode in COLLECTIVES), None)
  if inner is None:
    return "computes", None
  targets = {i.target for i in inside}
  if "AsyncCollectiveStart" in targets:
    return "starts", inner
  if "AsyncCollectiveDone" in targets:
    return "ends", None
  carries = "async_collective_fusion_config" in inner.attributes
  return ("computes", None) if carries else ("blocks", inner)


def _is_synchronous(line: Instruction) -> bool:
  """Whether a `-start` blocks all the same, as a GPU's text may say."""
  return '"is_sync":true' in line.attributes


def kind_of(module: Module, line: Instruction) -> str:
  """Whether a line of compute is "products", "kernels" or the "rest"."""
  if line.target == "tpu_custom_call":
    return KERNELS
  for at in (line, *module.inside(line)):
    if at.opcode in ("convolution", "dot") or (
      at.target and _PRODUCT_TARGET.search(at.target)
    ):
      return PRODUCTS
  return REST


def _transfer(
  module: Module, line: Instruction, inner: Instruction
) -> Transfer:
  """The transfer that `line` starts or blocks on."""
  kind = inner.opcode.removesuffix("-start")
  operands = [module.operand(inner, i) for i in range(len(inner.operands))]
  arrays = [array for operand in operands for array in operand.arrays]
  nbytes = sum(array.nbytes for array in arrays)
  groups = inner.groups
  if groups is None and kind != "collective-permute":
    groups = np.arange(module.partitions)[None]
  if kind == "all-gather":
    nbytes *= groups.shape[1]
  if kind == "all-reduce" and inner is not line and line.nbytes < nbytes:
    kind = "reduce-scatter"
  return Transfer(
    kind=kind,
    line=line,
    inner=inner,
    nbytes=nbytes,
    dtype=max(arrays, key=lambda array: array.nbytes).dtype,
    groups=groups,
    pairs=inner.pairs,
  )


def origin(
  module: Module, line: Instruction, i: int = 0
) -> tuple[Instruction, int | None]:
  """Where operand `i` of `line` was made, through tuples and carriers.

  Returns:
    The line that made it and which element of its result it is; a parameter of
    the computation for what a loop carries.
  """
  at, index = module.operand(line, i), None
  while True:
    if at.opcode == "get-tuple-element":
      at, index = module.operand(at), at.index
    elif at.opcode in _SAME:
      at = module.operand(at)
    elif at.opcode == "tuple" and index is not None:
      at, index = module.operand(at, index), None
    elif (
      at.opcode == "fusion"
      and at.aliases
      and _role(module, at)[0] != "starts"
      and (index or 0) in at.aliases
    ):
      at, index = module.operand(at, at.aliases[index or 0]), None
    else:
      return at, index
