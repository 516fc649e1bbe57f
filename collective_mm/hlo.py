"""Reads the text of a compiled, scheduled HLO module.

A scheduled module lists the instructions of each computation in the order in
which the device issues them, so the text alone says what runs while data
travels. Nothing here knows what an instruction costs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

from collective_mm import hlo_groups

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_HEADER = re.compile(r"(ENTRY )?%?([^\s(]+)\s.*\{$")
_INSTRUCTION = re.compile(
  r"\s+(ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\("
)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_PAREN = re.compile(r"[()]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
  r"(?:^|, )(calls|to_apply|body|condition|true_computation|"
  r"false_computation|branch_computations|called_computations)="
  r"(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
  """One array of an instruction's result; `space` 0 is HBM."""

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def nbytes(self) -> int:
    """Bytes of the elements, without the padding of a tiled layout."""
    return math.ceil(math.prod(self.dims) * _bits(self.dtype) / 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
  """One line of the schedule.

  Attributes:
    name: unique in the module, without the leading `%`.
    opcode: such as `fusion` or `collective-permute-start`.
    type_text: the result's type as it is written.
    operands: names of the operands, in order.
    operand_text: what stands between the parentheses.
    attributes: everything after the operands.
    computation: name of the computation that holds the line.
    is_root: whether the line is its computation's result.
  """

  name: str
  opcode: str
  type_text: str
  operands: tuple[str, ...]
  operand_text: str
  attributes: str
  computation: str
  is_root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    """The arrays of the result, a tuple's in order, nested ones flattened."""
    return _arrays(self.type_text)

  @property
  def nbytes(self) -> int:
    """Bytes of the whole result."""
    return sum(array.nbytes for array in self.arrays)

  @functools.cached_property
  def called(self) -> dict[str, tuple[str, ...]]:
    """Computations that the line calls, by attribute (`calls`, `body`...)."""
    return {
      key: tuple(re.findall(r"[\w.\-]+", names))
      for key, names in _CALLED.findall(self.attributes)
    }

  @functools.cached_property
  def cycles(self) -> int | None:
    """The compiler's estimate of the line's device cycles, if it has one."""
    return self._integer(r'"estimated_cycles":"(\d+)"')

  @functools.cached_property
  def channel(self) -> int | None:
    """`channel_id` of a collective."""
    return self._integer(r"channel_id=(\d+)")

  @functools.cached_property
  def index(self) -> int | None:
    """The element that a get-tuple-element takes."""
    return self._integer(r"index=(\d+)")

  @functools.cached_property
  def target(self) -> str | None:
    """`custom_call_target` of a custom call."""
    found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
    return found and found[1]

  @functools.cached_property
  def op_name(self) -> str:
    """The jax name stack that made the line, empty where unknown."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""

  @functools.cached_property
  def groups(self) -> np.ndarray | None:
    """Replica groups `[groups, size]`; None for no groups, or `{}` for all."""
    found = hlo_groups.GROUPS.search(self.attributes)
    return hlo_groups.parse_groups(found[1]) if found else None

  @functools.cached_property
  def pairs(self) -> np.ndarray | None:
    """Source-target pairs `[pairs, 2]` of a collective-permute."""
    found = hlo_groups.PAIRS.search(self.attributes)
    return found and hlo_groups.parse_pairs(found[1])

  @functools.cached_property
  def aliases(self) -> dict[int, int]:
    """Which operand shares its buffer with each element of the result."""
    found = re.search(
      r"output_to_operand_aliasing=\{(.*?\}\))\}", self.attributes
    )
    return {
      int(out or 0): int(operand)
      for out, operand in re.findall(
        r"\{(\d*)\}: \((\d+),", found[1] if found else ""
      )
    }

  def _integer(self, pattern: str) -> int | None:
    found = re.search(pattern, self.attributes)
    return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
  """A computation's instructions in schedule order."""

  name: str
  instructions: tuple[Instruction, ...]

  @property
  def root(self) -> Instruction:
    """The line whose value the computation returns."""
    return next(i for i in reversed(self.instructions) if i.is_root)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
  """A parsed module.

  Attributes:
    name: the module's name, `jit_` and the function.
    partitions: devices that run it together.
    computations: by name.
    entry: the computation where it starts.
    instructions: every line of every computation, by name.
    frames: stack frame id to "file:line" of its innermost frame.
  """

  name: str
  partitions: int
  computations: dict[str, Computation]
  entry: Computation
  instructions: dict[tuple[str, str], Instruction]
  frames: dict[int, str]

  def operand(self, line: Instruction, i: int = 0) -> Instruction:
    """Operand `i` of `line`."""
    return self.instructions[line.computation, line.operands[i]]

  def inside(self, line: Instruction) -> Iterator[Instruction]:
    """Every line of the computations that `line` calls, nested ones too."""
    for names in line.called.values():
      for name in names:
        for inner in self.computations[name].instructions:
          yield inner
          yield from self.inside(inner)

  def source(self, line: Instruction) -> str:
    """ "file:line" of the Python that made `line`, empty where unknown."""
    frame = line._integer(r"stack_frame_id=(\d+)")
    if frame is not None:
      return self.frames.get(frame, "")
    file = re.search(r'source_file="([^"]*)"', line.attributes)
    number = re.search(r"source_line=(\d+)", line.attributes)
    return f"{file[1]}:{number[1]}" if file and number else ""


def parse(text: str) -> Module:
  """Parses the text of a compiled module, `compiled.as_text()`.

  Raises:
    ValueError: if `text` is not HLO, or its instructions are not scheduled.
  """
  header, _, _ = text.lstrip().partition("\n")
  if not header.startswith("HloModule"):
    raise ValueError(
      "text must be the HLO of a compiled module (compiled.as_text()) and "
      f"start with 'HloModule', got {header[:60]!r}"
    )
  if "is_scheduled=true" not in header:
    raise ValueError(
      "text must be scheduled HLO (is_scheduled=true in its first line), got "
      f"{header[:60]!r}: take the text after .compile(), not before"
    )
  computations, entry = {}, None
  instructions: dict[tuple[str, str], Instruction] = {}
  name, is_entry, lines = None, False, []
  for line in text.splitlines():
    if name is None:
      if line.endswith("{") and (found := _HEADER.match(line)):
        is_entry, name, lines = bool(found[1]), found[2], []
    elif line.startswith("}"):
      computation = Computation(name=name, instructions=tuple(lines))
      computations[name] = computation
      entry = computation if is_entry else entry
      name = None
    elif found := _INSTRUCTION.match(line):
      instruction = _instruction(line, found, name)
      lines.append(instruction)
      instructions[name, instruction.name] = instruction
  if entry is None:
    raise ValueError("text must hold an ENTRY computation, got none")
  replicas = re.search(r"replica_count=(\d+)", header)
  partitions = re.search(r"num_partitions=(\d+)", header)
  return Module(
    name=header.split()[1].rstrip(","),
    partitions=math.prod(int(n[1]) for n in (replicas, partitions) if n),
    computations=computations,
    entry=entry,
    instructions=instructions,
    frames=_frames(text),
  )


def _instruction(line: str, found: re.Match, computation: str) -> Instruction:
  depth, end = 1, len(line)
  for paren in _PAREN.finditer(line, found.end()):
    depth += 1 if paren[0] == "(" else -1
    if not depth:
      end = paren.start()
      break
  operands = line[found.end() : end]
  names = _OPERAND.findall(operands)
  if not names and found[4] not in ("constant", "parameter", "iota"):
    names = re.findall(r"[A-Za-z_][\w.\-]*(?=,|$)", operands)
  return Instruction(
    name=found[2],
    opcode=found[4],
    type_text=found[3],
    operands=tuple(names),
    operand_text=operands,
    attributes=line[end + 1 :].lstrip(", "),
    computation=computation,
    is_root=bool(found[1]),
  )


@functools.cache
def _bits(dtype: str) -> int:
  """Bits of one element; most names say: `bf16`, `s4`, `f8e4m3fn`."""
  if dtype in _BITS:
    return _BITS[dtype]
  bits = re.match(r"[a-z]+(\d+)", dtype)
  if not bits:
    raise ValueError(f"dtype must be one that HLO knows, got {dtype!r}")
  return int(bits[1])


@functools.lru_cache(maxsize=4096)
def _arrays(type_text: str) -> tuple[Array, ...]:
  arrays = []
  for dtype, dims, layout in _ARRAY.findall(type_text):
    space = re.search(r"S\((\d+)\)", layout)
    arrays.append(
      Array(
        dtype=dtype,
        dims=tuple(int(d.strip("<= ")) for d in dims.split(",") if d),
        space=int(space[1]) if space else 0,
      )
    )
  return tuple(arrays)


def _frames(text: str) -> dict[int, str]:
  """Stack frame ids to "file:line", from the tables above the computations."""
  tables: dict[str, dict[int, str]] = {}
  table = None
  for line in text.splitlines():
    if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
      table = tables.setdefault(line, {})
    elif line.startswith(("%", "ENTRY")):
      break
    elif not line:
      table = None
    elif table is not None:
      number, _, rest = line.partition(" ")
      table[int(number)] = rest
  frames = {}
  for frame, rest in tables.get("StackFrames", {}).items():
    at = tables["FileLocations"][int(re.search(r"location_id=(\d+)", rest)[1])]
    file = tables["FileNames"][int(re.search(r"file_name_id=(\d+)", at)[1])]
    number = re.search(r"\bline=(\d+)", at)[1]
    frames[frame] = file.strip('"') + ":" + number
  return frames
