"""Which devices a collective joins, from the forms that HLO writes them in."""

import functools
import itertools
import math
import re

import numpy as np

# The groups of a mesh are named by axes, `mesh['data'=2,'model'=4] {'model'}`,
# where the devices may stand in an order of their own and an axis may be split,
# `'model':(2)2` being its middle or inner part of 2 below an outer part of 2.
GROUPS = re.compile(
  r"replica_groups=(\{\}|\{\{.*?\}\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?"
  r"|mesh\[[^\]]*\](?:, device_ids=\((?:\[.*?\)|[\d,]*)\))? \{[^}]*\})"
)
PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
  r"mesh\[([^\]]*)\](?:, device_ids=\((\[.*?\)|[\d,]*)\))? \{([^}]*)\}"
)
_AXIS = re.compile(r"'?(\w+)'?(?::\((\d+)\)(\d+))?")


@functools.lru_cache(maxsize=1024)
def parse_pairs(text: str) -> np.ndarray:
  """Source-target pairs `[pairs, 2]` from `{0,1},{1,0}`."""
  return _integers(text).reshape(-1, 2)


@functools.lru_cache(maxsize=1024)
def parse_groups(text: str) -> np.ndarray | None:
  """Replica groups `[groups, size]` from any of their forms.

  The forms are a list, an iota that is reshaped and transposed, and axes of a
  mesh. `{}` stands for one group of all devices and gives None.

  Raises:
    ValueError: if the groups differ in size or the form is unknown.

  Example:
    >>> parse_groups("[2,2]<=[2,2]T(1,0)").tolist()
    [[0, 2], [1, 3]]
    >>> parse_groups("mesh['data'=2,'model'=2] {'model'}").tolist()
    [[0, 1], [2, 3]]
  """
  if text == "{}":
    return None
  if text.startswith("{"):
    groups = [_integers(g) for g in re.findall(r"\{([\d,]*)\}", text[1:-1])]
    if len({len(group) for group in groups}) != 1:
      raise ValueError(f"replica groups must be of one size, got {text}")
    return np.stack(groups)
  if iota := _IOTA.fullmatch(text):
    return _iota(iota[2], iota[3]).reshape(_integers(iota[1]))
  if mesh := _MESH.fullmatch(text):
    return _of_mesh(*mesh.groups())
  raise ValueError(f"replica groups must be in a known form, got {text!r}")


def joined_axes(joined: np.ndarray, mesh: dict[str, int]) -> tuple[str, ...]:
  """The axes of a mesh along which `joined` joins its devices.

  Args:
    joined: groups or pairs of partitions, `[groups, size]`.
    mesh: the size of each axis; partitions are numbered in its order.

  Example:
    >>> joined_axes(parse_groups("{{0,2},{1,3}}"), {"data": 2, "model": 2})
    ('data',)
  """
  spots = np.stack(np.unravel_index(joined, tuple(mesh.values())), -1)
  varies = (spots != spots[:, :1]).any(axis=(0, 1))
  return tuple(itertools.compress(mesh, varies.tolist()))


def _of_mesh(axes: str, order: str | None, chosen: str) -> np.ndarray:
  sizes = {
    name: int(size) for name, size in re.findall(r"'?(\w+)'?=(\d+)", axes)
  }
  devices = np.arange(math.prod(sizes.values()))
  if order and (iota := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order)):
    devices = _iota(iota[1], iota[2]).ravel()
  elif order:
    devices = _integers(order)
  # Every axis becomes three dims, the outer, middle and inner part of it.
  parts = {name: [size, 1, 1] for name, size in sizes.items()}
  inside = []
  for name, before, size in re.findall(
    r"'?(\w+)'?(?::\((\d+)\)(\d+))?", chosen
  ):
    at = 3 * list(sizes).index(name)
    if size:
      outer, middle = int(before), int(size)
      parts[name] = [outer, middle, sizes[name] // (outer * middle)]
      inside.append(at + 1)
    else:
      inside += range(at, at + 3)
  shape = [n for part in parts.values() for n in part]
  outside = [i for i in range(len(shape)) if i not in inside]
  members = math.prod(shape[i] for i in inside)
  grid = devices.reshape(shape).transpose(outside + inside)
  return grid.reshape(-1, members)


def _iota(shape: str, order: str | None) -> np.ndarray:
  sizes = _integers(shape)
  grid = np.arange(sizes.prod()).reshape(sizes)
  return grid.transpose(_integers(order)) if order else grid


def _integers(text: str) -> np.ndarray:
  return np.array([int(n) for n in re.findall(r"\d+", text)], np.int64)
