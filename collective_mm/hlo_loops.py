"""How often the loops of a schedule turn."""

import collections
import re

from collective_mm.hlo import Instruction, Module


def trip_count(module: Module, line: Instruction) -> int | None:
  """How often the body of the `while` at `line` runs, None if not constant.

  The bound comes from the comparison in the condition, the step from what the
  body adds to the index: the compiler's own windowed loops advance by two.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line.attributes)
  if known:
    return int(known[1])
  condition = module.computations[line.called["condition"][0]].root
  body = module.computations[line.called["body"][0]].root
  bindings = None
  if condition.opcode == "fusion":
    bindings = [
      _affine(module, module.operand(condition, i), None)
      for i in range(len(condition.operands))
    ]
    condition = module.computations[condition.called["calls"][0]].root
  if condition.opcode != "compare":
    return None
  left = _affine(module, module.operand(condition, 0), bindings)
  right = _affine(module, module.operand(condition, 1), bindings)
  direction = re.search(r"direction=(\w+)", condition.attributes)[1]
  if left is None or right is None or direction == "EQ":
    return None
  if left[0] is None or (
    right[0] is not None and _step(module, body, left[0]) == 0
  ):
    left, right = right, left
    direction = {"GT": "LT", "GE": "LE", "LT": "GT", "LE": "GE"}.get(
      direction, direction
    )
  if left[0] is None:
    return None
  step = _step(module, body, left[0])
  start = _initial(module, line, left[0])
  bound = _value(module, line, body, right)
  if not step or start is None or bound is None:
    return None
  span = bound - (start + left[1])
  if direction in ("LE", "GE"):
    span += 1 if step > 0 else -1
  return max(0, -(-span // step))


def run_counts(module: Module) -> dict[str, int]:
  """How often each computation of the schedule runs, by name.

  A loop without a constant trip count counts once, a branch as if taken.
  """
  counts: collections.Counter[str] = collections.Counter()

  def visit(name: str, times: int) -> None:
    counts[name] += times
    for line in module.computations[name].instructions:
      if line.opcode == "while":
        trips = trip_count(module, line)
        visit(line.called["body"][0], times * (1 if trips is None else trips))
      elif line.opcode in ("call", "conditional"):
        for names in line.called.values():
          for called in names:
            visit(called, times)

  visit(module.entry.name, 1)
  return dict(counts)


def _affine(module, line, bindings):
  """`line` as `(element of the loop's carry or None, constant to add)`."""
  opcode = line.opcode
  if opcode == "constant":
    number = re.fullmatch(r"-?\d+", line.operand_text)
    return (None, int(number[0])) if number else None
  if opcode == "parameter":
    return bindings[int(line.operand_text)] if bindings else None
  if opcode in ("copy", "bitcast", "convert", "reshape"):
    return _affine(module, module.operand(line), bindings)
  if opcode == "get-tuple-element":
    of = module.operand(line)
    if of.opcode == "parameter" and not bindings:
      return line.index, 0
    if of.opcode == "tuple":
      return _affine(module, module.operand(of, line.index), bindings)
    if of.opcode == "fusion":
      return _affine_of_fusion(module, of, line.index, bindings)
    return None
  if opcode == "fusion":
    return _affine_of_fusion(module, line, None, bindings)
  if opcode in ("add", "subtract"):
    left = _affine(module, module.operand(line, 0), bindings)
    right = _affine(module, module.operand(line, 1), bindings)
    if left is None or right is None:
      return None
    if opcode == "subtract":
      if right[0] is not None:
        return None
      return left[0], left[1] - right[1]
    if left[0] is not None and right[0] is not None:
      return None
    carried = left[0] if left[0] is not None else right[0]
    return carried, left[1] + right[1]
  return None


def _affine_of_fusion(module, line, index, bindings):
  inner = [
    _affine(module, module.operand(line, i), bindings)
    for i in range(len(line.operands))
  ]
  root = module.computations[line.called["calls"][0]].root
  if index is not None:
    if root.opcode != "tuple":
      return None
    root = module.operand(root, index)
  return _affine(module, root, inner)


def _step(module, body, index):
  """What one trip adds to element `index` of the carry, None if not fixed."""
  if body.opcode != "tuple":
    return None
  after = _affine(module, module.operand(body, index), None)
  return after[1] if after and after[0] == index else None


def _initial(module, line, index):
  """The number with which element `index` enters the loop at `line`."""
  carry = module.operand(line)
  if carry.opcode != "tuple":
    return None
  return _outside(module, module.operand(carry, index))


def _value(module, line, body, affine):
  """The number that `affine` is on every trip of the loop at `line`."""
  index, offset = affine
  if index is None:
    return offset
  if _step(module, body, index) != 0:
    return None
  start = _initial(module, line, index)
  return None if start is None else start + offset


def _outside(module, line):
  affine = _affine(module, line, None)
  if affine is None or affine[0] is None:
    return affine and affine[1]
  # A number that an outer loop carries unchanged.
  for outer in module.instructions.values():
    if line.computation in outer.called.get("body", ()):
      body = module.computations[line.computation].root
      return _value(module, outer, body, affine)
  return None
