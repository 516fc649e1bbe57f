"""CelebA's public files: attributes, parts and the images they name."""

from pathlib import Path

import numpy as np

_PARTS = {"train": 0, "val": 1, "test": 2}


def read_attributes(
  root: Path, names: list[str]
) -> dict[str, tuple[list[str], np.ndarray]]:
  """Reads `list_attr_celeba.txt` and `list_eval_partition.txt`.

  Args:
    root: their folder, in which `img_align_celeba/` is too.
    names: the attributes to read.

  Returns:
    For "train", "val" and "test" the images' paths below `root` and `[N, A]`
    of 0 and 1.

  Raises:
    ValueError: if an attribute is unknown, or naming the images that only one
      of the two files has and the lines that are not as they should be.
  """
  path = root / "list_attr_celeba.txt"
  lines = path.read_text().splitlines()
  columns = lines[1].split() if len(lines) > 1 else []
  unknown = [name for name in names if name not in columns]
  if unknown:
    raise ValueError(
      f"{path} must have the attributes {', '.join(names)}; "
      f"{', '.join(unknown)} missing, it has {', '.join(columns)}"
    )
  wanted = [columns.index(name) + 1 for name in names]
  rows = {}
  for number, line in enumerate(lines[2:], 3):
    fields = line.split()
    values = [fields[i] for i in wanted] if len(fields) > max(wanted) else []
    if not values or not set(values) <= {"-1", "1"}:
      raise ValueError(f"{path} line {number} must have -1 or 1: {line[:60]!r}")
    rows[fields[0]] = [value == "1" for value in values]
  parts = dict(
    line.split()
    for line in (root / "list_eval_partition.txt").read_text().splitlines()
    if line.strip()
  )
  alone = sorted(rows.keys() ^ parts.keys())
  if alone:
    raise ValueError(
      f"both lists must have the same images: {len(alone)} are in one alone, "
      f"the first {alone[0]}"
    )
  return {
    part: (
      [f"img_align_celeba/{image}" for image in rows if parts[image] == str(i)],
      np.array(
        [rows[image] for image in rows if parts[image] == str(i)], int
      ).reshape(-1, len(names)),
    )
    for part, i in _PARTS.items()
  }
