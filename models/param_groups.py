"""Parameters that are trained otherwise than the rest, named by patterns."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

SCHEDULES = ("rsqrt", "cosine", "constant")
REST = "rest"  # the name of those that no group claims


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamGroup:
  """How some parameters are trained.

  The first group whose pattern is the whole path of a parameter claims it, as
  "blocks/mlp_in/kernel"; `blocks/.*` claims all blocks, `.*/bias` all biases.

  Attributes:
    pattern: a regular expression (`re.fullmatch`).
    lr: times the learning rate of the run.
    weight_decay: of every parameter claimed, times the learning rate; None
      leaves it as it is.
    schedule: the shape of the learning rate over the steps; None for that of
      the run.
    warmup_steps: of the schedule; None for those of the run.
    freeze: not trained at all: no gradient, no moments.

  Raises:
    ValueError: if the pattern is no regular expression or a number is out of
      range.
  """

  pattern: str
  lr: float = 1.0
  weight_decay: float | None = None
  schedule: str | None = None
  warmup_steps: int | None = None
  freeze: bool = False

  def __post_init__(self):
    try:
      re.compile(self.pattern)
    except re.error as error:
      raise ValueError(
        f"pattern must be a regular expression, got {self.pattern!r}: {error}"
      ) from error
    for name in ("lr", "weight_decay", "warmup_steps"):
      value = getattr(self, name)
      if value is not None and not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    if self.schedule not in (None, *SCHEDULES):
      raise ValueError(
        f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}"
      )


def path_name(path: Sequence[Any]) -> str:
  """Returns a key path of the parameter tree as one string.

  Example:
    >>> tree = {"head": {"bias": 0}}
    >>> [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    ['head/bias']
  """
  return "/".join(str(key.key) for key in path)


def claimed(name: str, groups: Sequence[ParamGroup]) -> int | None:
  """Returns the index of the group that claims a parameter, None for none."""
  for i, group in enumerate(groups):
    if re.fullmatch(group.pattern, name):
      return i
  return None


def labels(groups: Sequence[ParamGroup]) -> Callable[[Any], Any]:
  """Returns a function from a tree to its leaves' groups: "0", "1", "rest"."""

  def label(path, _):
    group = claimed(path_name(path), groups)
    return REST if group is None else str(group)

  return lambda tree: jax.tree_util.tree_map_with_path(label, tree)


def is_frozen(name: str, groups: Sequence[ParamGroup]) -> bool:
  """Tells whether a group freezes the parameter of this path."""
  group = claimed(name, groups)
  return group is not None and groups[group].freeze


def check_groups(groups: Sequence[ParamGroup], params: Any) -> None:
  """Checks that every group claims something and that something is trained.

  Args:
    groups: of a run.
    params: the tree of `models.params.init_params`, or its shapes.

  Raises:
    ValueError: naming the pattern and the path that comes nearest to it.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  names = [path_name(path) for path, _ in leaves]
  found = [claimed(name, groups) for name in names]
  for i, group in enumerate(groups):
    if i in found:
      continue
    if any(re.fullmatch(group.pattern, name) for name in names):
      raise ValueError(
        f"pattern {group.pattern!r} must claim a parameter: groups before it "
        "claim all of its own"
      )
    (near,) = difflib.get_close_matches(group.pattern, names, n=1, cutoff=0)
    raise ValueError(
      f"pattern {group.pattern!r} must be the whole path of a parameter; the "
      f"nearest is {near!r}"
    )
  if groups and all(i is not None and groups[i].freeze for i in found):
    raise ValueError("groups must leave a parameter to train, all are frozen")
