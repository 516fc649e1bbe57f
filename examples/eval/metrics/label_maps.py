"""Which classes of ImageNet a data set has, and logits over those alone.

ImageNet-A and ImageNet-R have 200 classes each, of which 86 are in both: they
are not the same set, though the paper says so. ObjectNet's 313 classes overlap
with 125 of ImageNet's in 113. The lists are in `label_sets.json`: for A and R
those of robustness_metrics `datasets/tfds.py`, for ObjectNet
`objectnet_to_imagenet_1k.json` of its own download (CC BY 4.0, Barbu et al.
2019), as class indices.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.eval.metrics.classification import top1

SETS = ("imagenet_a", "imagenet_r", "objectnet")
IMAGENET_CLASSES = 1000
OBJECTNET_CLASSES = 313  # of which 113 are in the map


@functools.cache
def _lists() -> dict:
  return json.loads(Path(__file__).with_name("label_sets.json").read_text())


def label_map(name: str) -> dict[str, tuple[int, ...]]:
  """Returns the classes of ImageNet behind each class of a data set.

  Args:
    name: "imagenet_a", "imagenet_r" or "objectnet".

  Returns:
    Groups of class indices by name: ObjectNet's folder, or the index itself.

  Raises:
    ValueError: if the name is none of these.

  Example:
    >>> label_map("objectnet")["alarm_clock"]  # analog clock, digital clock
    (409, 530)
    >>> len(label_map("imagenet_a")), len(label_map("objectnet"))
    (200, 113)
  """
  if name not in SETS:
    raise ValueError(
      f"label set must be one of {', '.join(SETS)}, got {name!r}"
    )
  found = _lists()[name]
  if isinstance(found, dict):
    return {folder: tuple(classes) for folder, classes in found.items()}
  return {str(index): (index,) for index in found}


def by_folder(name: str, folders: Sequence[str]) -> list[int]:
  """Returns for each folder of a data set its class of `label_map`, or -1.

  ImageNet's classes are numbered in the order of their WordNet names, so that
  the sorted folders of ImageNet-A and -R are their sorted classes.

  Args:
    name: as for `label_map`.
    folders: names of the data set's class folders.

  Returns:
    Indices into the map; -1 for the 200 classes of ObjectNet that ImageNet
    does not have.

  Raises:
    ValueError: if the folders cannot be this data set's.
  """
  names = list(label_map(name))
  if name == "objectnet":
    if missing := sorted(set(names) - set(folders)):
      raise ValueError(
        f"objectnet must have a folder {missing[0]!r} and all others of the "
        f"113 that its map knows, got {len(folders)} folders"
      )
    return [names.index(f) if f in names else -1 for f in folders]
  if len(set(folders)) != len(names):
    raise ValueError(
      f"{name} must have {len(names)} class folders, got {len(set(folders))}"
    )
  order = sorted(folders)
  return [order.index(folder) for folder in folders]


def restrict(logits: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
  """Returns probabilities over groups of classes alone.

      p[n, g] = sum_{v in g} exp(z[n, v]) / sum_{all groups} of the same

  As robustness_metrics does with `use_dataset_labelset`: the softmax is over
  the classes of the data set, not over all of ImageNet.

  Args:
    logits: `[N, V]`.
    groups: classes of each group, as `label_map(...).values()`.

  Returns:
    `[N, G]` float64.

  Raises:
    ValueError: if a group has a class that the logits do not.

  Example:
    >>> restrict(np.log([[1.0, 2.0, 5.0, 1.0]]), [[0, 3], [1]])
    array([[0.5, 0.5]])
  """
  flat = [v for group in groups for v in group]
  if not flat or min(flat) < 0 or max(flat) >= logits.shape[1]:
    wrong = [v for v in flat if not 0 <= v < logits.shape[1]]
    raise ValueError(
      f"the label map needs classes that the logits do not have: there are "
      f"{logits.shape[1]}, got class {wrong[0] if wrong else 'none'}"
    )
  z = np.asarray(logits, np.float64)[:, flat]
  z = np.exp(z - z.max(axis=1, keepdims=True))
  starts = np.cumsum([0, *map(len, groups)])[:-1]
  grouped = np.add.reduceat(z, starts, axis=1)
  return grouped / grouped.sum(axis=1, keepdims=True)


def top1_among(
  logits: np.ndarray,
  labels: np.ndarray,
  groups: Sequence[Sequence[int]] | None,
) -> float:
  """Returns `top1` among the classes that a data set has.

  Args:
    logits: `[N, V]`.
    labels: `[N, G]`, or `[N, V]` without groups.
    groups: as for `restrict`; None for all classes.
  """
  return top1(logits if groups is None else restrict(logits, groups), labels)


def relabel(
  labels: Sequence[int], groups: Sequence[Sequence[int]]
) -> list[int]:
  """Returns the group of each of ImageNet's labels.

  Raises:
    ValueError: if a label is in no group.
  """
  group_of = {v: i for i, group in enumerate(groups) for v in group}
  for n, label in enumerate(labels):
    if label not in group_of:
      raise ValueError(
        f"the label map does not know class {label} of image {n}; it has "
        f"{len(group_of)} classes"
      )
  return [group_of[label] for label in labels]
