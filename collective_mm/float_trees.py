"""Trees of arrays, of which the floating ones have gradients."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm.mesh import varying_axes


def is_float(x: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def floats(tree: Any) -> Any:
  """`tree` with None for every leaf that has no gradient."""
  return jax.tree.map(lambda x: x if is_float(x) else None, tree)


def split(tree: Any) -> tuple[Any, Any]:
  rest = jax.tree.map(lambda x: None if is_float(x) else x, tree)
  return floats(tree), rest


def merge(floats: Any, rest: Any) -> Any:
  return jax.tree.map(
    lambda x, y: y if x is None else x,
    floats,
    rest,
    is_leaf=lambda x: x is None,
  )


def barrier(tree: Any) -> Any:
  """An optimization barrier for all leaves that vary over the same axes.

  One for all would make all vary over the axes of any.
  """
  leaves, treedef = jax.tree.flatten(tree)
  for axes in {varying_axes(x) for x in leaves}:
    alike = [i for i, x in enumerate(leaves) if varying_axes(x) == axes]
    tied = lax.optimization_barrier([leaves[i] for i in alike])
    for i, x in zip(alike, tied, strict=True):
      leaves[i] = x
  return jax.tree.unflatten(treedef, leaves)


def varying_everywhere(carry: Any) -> frozenset[str]:
  """The axes over which every floating leaf of `carry` varies."""
  axes = [varying_axes(x) for x in jax.tree.leaves(floats(carry))]
  return frozenset.intersection(*axes) if axes else frozenset()
