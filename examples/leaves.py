"""Trees of arrays as flat tables: leaves by path, compared and summed."""

import re

import jax
import jax.numpy as jnp
from jax import lax

_MOST_LISTED = 4


def named(tree) -> dict:
  """Returns the leaves by their path in the tree.

  Example:
    >>> named({"params": {"head": {"bias": 1}}, "opt": (2, 3)})
    {'opt/0': 2, 'opt/1': 3, 'params/head/bias': 1}
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def nested(leaves: dict) -> dict:
  """Returns a tree of dicts alone, whose `named` are `leaves`.

  Example:
    >>> nested({"opt/0": 2, "opt/1": 3})
    {'opt': {'0': 2, '1': 3}}
  """
  tree = {}
  for path, leaf in leaves.items():
    *folders, name = path.split("/")
    inside = tree
    for folder in folders:
      inside = inside.setdefault(folder, {})
    inside[name] = leaf
  return tree


def matching(leaves: dict, pattern: str) -> dict:
  """Returns the leaves whose whole path the regex matches."""
  found = re.compile(pattern)
  return {name: x for name, x in leaves.items() if found.fullmatch(name)}


def described(leaf) -> str:
  """Returns dtype and shape, such as `float32[4, 64]`."""
  return f"{leaf.dtype}{list(leaf.shape)}"


def differences(there: dict, here: dict) -> str:
  """Says how two tables of leaves differ, in one line; "" if they do not.

  Example:
    >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4})
    'b is 2 there and 3 here; c is missing there'
  """
  said = []
  for name in sorted(there.keys() | here.keys()):
    if name not in there:
      said.append(f"{name} is missing there")
    elif name not in here:
      said.append(f"{name} is missing here")
    elif there[name] != here[name]:
      said.append(f"{name} is {there[name]} there and {here[name]} here")
  more = len(said) - _MOST_LISTED
  if more > 0:
    said[_MOST_LISTED:] = [f"and {more} more"]
  return "; ".join(said)


def sums_of_bits(leaves: dict[str, jax.Array]) -> dict[str, int]:
  """Returns the sum of each array's bit patterns, modulo `2**32`.

  Exact, and the same however the array is sharded, so that a sum taken before
  an array was saved tells whether it came back as it was.

  Example:
    >>> sums_of_bits({"x": jnp.array([1.0, 2.0])})  # 0x3f800000 + 0x40000000
    {'x': 2139095040}
  """
  return {name: int(x) for name, x in jax.device_get(_sums(leaves)).items()}


@jax.jit
def _sums(leaves):
  return {name: _sum(x) for name, x in leaves.items()}


def _sum(x):
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = min(8 * x.dtype.itemsize, 32)  # of 64, each half counts
  x = lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}"))
  return x.astype(jnp.uint32).sum(dtype=jnp.uint32)
