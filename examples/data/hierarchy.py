"""Labels that imply others: a child's, all of its ancestors'.

JFT's labels form a hierarchy, which training flattens: an image of a class has
the labels of the class and of every class above it (paper, "Training Dataset").
"""

import csv
import graphlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

Parents = Mapping[str, Iterable[str]]


def read(folder: Path) -> dict[str, list[str]]:
  """Returns the parents of each class, from a file in `folder` if there is one.

  It is `hierarchy.json`, `{"child": ["parent", ...], ...}`, where a single
  parent may stand without a list, or `hierarchy.csv`, a line `child,parent`
  for each edge, without a heading.

  Raises:
    ValueError: if the file does not read like that.
  """
  path = folder / "hierarchy.json"
  if path.exists():
    try:
      edges = json.loads(path.read_text())
      parents = {c: [p] if isinstance(p, str) else p for c, p in edges.items()}
      if not all(isinstance(p, str) for ps in parents.values() for p in ps):
        raise TypeError
    except (ValueError, AttributeError, TypeError) as error:
      raise ValueError(
        f'{path} must be {{"child": ["parent", ...], ...}}'
      ) from error
    return parents
  path = folder / "hierarchy.csv"
  parents = {}
  if path.exists():
    lines = csv.reader(path.read_text().splitlines())
    for number, row in enumerate(lines, start=1):
      if len(row) != 2:
        raise ValueError(
          f"{path} line {number} must be child,parent, got {','.join(row)!r}"
        )
      parents.setdefault(row[0].strip(), []).append(row[1].strip())
  return parents


def flatten(
  classes: Iterable[str], parents: Parents
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
  """Gives a label to every class and ancestor, and each class its labels.

  Args:
    classes: names of the classes that images have.
    parents: of any class or ancestor, by name.

  Returns:
    The names of all labels, `classes` first and in order, then their ancestors
    by name; and the labels of each class, its own first, then rising ones.

  Raises:
    ValueError: if a class is its own ancestor.

  Example:
    >>> flatten(["cat", "dog"], {"cat": ["pet"], "dog": ["pet"]})
    (('cat', 'dog', 'pet'), {'cat': [0, 2], 'dog': [1, 2]})
  """
  try:
    graphlib.TopologicalSorter(parents).prepare()
  except graphlib.CycleError as error:
    ring = " -> ".join(reversed(error.args[1]))
    raise ValueError(f"a class cannot be its own ancestor: {ring}") from error
  above = {name: _ancestors(name, parents) for name in classes}
  extra = {a for names in above.values() for a in names} - above.keys()
  every = (*above, *sorted(extra))
  number = {name: i for i, name in enumerate(every)}
  return every, {
    name: [number[name], *sorted(number[a] for a in ancestors)]
    for name, ancestors in above.items()
  }


def _ancestors(name: str, parents: Parents) -> set[str]:
  found, todo = set(), [name]
  while todo:
    new = set(parents.get(todo.pop(), ())) - found
    found |= new
    todo += new
  return found
