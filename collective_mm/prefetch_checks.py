"""What `prefetch_scan` asks of its trees."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from collective_mm.axis_rings import AxisRing
from collective_mm.mesh import AxisName, axis_size
from collective_mm.ring import Part


def stack_length(stacked_params: Any, xs: Any) -> int:
  """The number of layers, which every leaf must lead with."""
  length = first = None
  for name, tree in (("stacked_params", stacked_params), ("xs", xs)):
    for path, leaf in tree_leaves_with_path(tree):
      where, shape = name + keystr(path), jnp.shape(leaf)
      if not shape or not shape[0]:
        raise ValueError(
          f"{where} must have a leading dim of at least one layer, got shape "
          f"{shape}"
        )
      if length is None:
        length, first = shape[0], where
      if shape[0] != length:
        raise ValueError(
          f"{where} must have a leading dim of {length} layers as {first} has, "
          f"got shape {shape}"
        )
    if length is None:
      raise ValueError("stacked_params must have at least one leaf, got none")
  return length


def check_microbatches(carry: Any) -> None:
  count = None
  for path, leaf in tree_leaves_with_path(carry):
    shape = jnp.shape(leaf)
    count = shape[0] if count is None and shape else count
    if not shape or shape[0] != count or not count:
      raise ValueError(
        f"carry{keystr(path)} must have a leading dim of "
        f"{count or 'at least one'} microbatches, got shape {shape}"
      )


def cut_dims(
  stacked_params: Any, specs: Any, axis_name: AxisName
) -> tuple[int | None, ...]:
  """The dim of each layer's leaf that its spec cuts over `axis_name`."""
  names = (axis_name,) if isinstance(axis_name, str) else axis_name
  leaves = dict(tree_leaves_with_path(stacked_params))
  given = dict(
    tree_leaves_with_path(
      specs, is_leaf=lambda x: x is None or isinstance(x, jax.P)
    )
  )
  odd = next(iter(set(leaves) ^ set(given)), None)
  if odd is not None:
    missing, present = (
      ("specs", "stacked_params")
      if odd in leaves
      else ("stacked_params", "specs")
    )
    raise ValueError(
      f"specs must be the tree of stacked_params: {present}{keystr(odd)} is "
      f"not in {missing}"
    )
  return tuple(
    _cut_dim(f"specs{keystr(path)}", leaf, given[path], names)
    for path, leaf in leaves.items()
  )


def _cut_dim(
  where: str, leaf: jax.Array, spec: Any, names: tuple[str, ...]
) -> int | None:
  if not isinstance(spec, jax.P) or len(spec) > leaf.ndim:
    raise ValueError(
      f"{where} must be a PartitionSpec of at most {leaf.ndim} dims, got {spec}"
    )
  found = None
  for dim, axes in enumerate(spec):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    if not set(axes) & set(names):
      continue
    if not dim or found is not None or tuple(axes[-len(names) :]) != names:
      raise ValueError(
        f"{where} must name {', '.join(names)} in one dim after that of "
        f"layers, last of its axes there, got {spec}"
      )
    found = dim - 1
  return found


def ring_parts(
  rings: tuple[AxisRing | int, ...] | None, axis_name: AxisName
) -> tuple[Part, ...]:
  """The rings of more than one device, outermost first."""
  size = axis_size(axis_name)
  rings = (size,) if rings is None else rings
  rings = tuple(
    AxisRing(r) if isinstance(r, int) else AxisRing(*r) for r in rings
  )
  sizes = tuple(ring.size for ring in rings)
  if math.prod(sizes) != size or any(n < 1 for n in sizes):
    raise ValueError(
      f"rings must be sizes whose product is that of axis {axis_name!r}, "
      f"{size}, got {sizes}"
    )
  return tuple(
    Part(ring.size, math.prod(sizes[i + 1 :]), ring.hops)
    for i, ring in enumerate(rings)
    if ring.size > 1
  )
