"""Weights a layer ahead: a scan over layers whose weights are sharded.

A scan that gathers in its body cannot start on layer `l + 1` before layer `l`
is done, and what autodiff makes of it keeps every gathered weight for backward.
Here the loop carries what was gathered for the next layer, and one custom VJP
over the whole stack gathers again and reduces a layer late.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from collective_mm import float_trees
from collective_mm.axis_rings import AxisRing
from collective_mm.layer_stack import LayerStack
from collective_mm.mesh import (
  AxisName,
  axis_size,
  device_kind,
  vary_over,
)
from collective_mm.prefetch_checks import (
  check_microbatches,
  cut_dims,
  ring_parts,
  stack_length,
)
from collective_mm.prefetch_gate import backends
from collective_mm.weights import Wire, gathered_size, group_small


def prefetch_scan(
  layer: Callable[..., Any],
  carry: Any,
  stacked_params: Any,
  *,
  axis_name: AxisName = "data",
  specs: Any,
  xs: Any = None,
  has_aux: bool = False,
  distance: int = 1,
  gather_dtype: jax.typing.DTypeLike | None = jnp.bfloat16,
  reduce_dtype: jax.typing.DTypeLike = jnp.float32,
  hold_across_microbatches: bool = False,
  backend: str | tuple[str, str] = "auto",
  rings: tuple[AxisRing | int, ...] | None = None,
) -> Any:
  """Returns `carry` after all layers, each layer's weights gathered ahead.

      for l in range(L): carry = layer(gather(stacked_params[l]), carry)

  While layer `l` computes, the weights of layer `l + distance` are on their
  way. Forward keeps the sharded weights, rounded as they travel, and the carry
  before each layer; of gathered weights only those of the last `distance`
  layers, with which backward begins. It goes through the layers from the last:
  while it computes layer `l` (again from its carry, and its gradients), it
  gathers the weights of layer `l - distance` and reduce-scatters the gradients
  of layer `l + 1`.

  Call inside `jax.shard_map`. Values and gradients are those of a `lax.scan`
  whose body gathers with `lax.all_gather`.

  Args:
    layer: `layer(params, carry)`, or `layer(params, carry, x)` if there are
      `xs`, returns the next carry. It may hold rings over other axes and
      `jax.checkpoint`s. Arrays that all layers share and that need a gradient
      come in as `jax.tree_util.Partial(function, *arrays)`, which calls
      `function(*arrays, params, carry)`.
    carry: what goes from layer to layer, a pytree.
    stacked_params: pytree of this device's shards, `[L, ...]`.
    axis_name: mesh axis that cuts the weights, or a tuple in mesh order.
    specs: the tree of the `PartitionSpec`s of `stacked_params`. A leaf whose
      spec does not name the axis lies whole on every device and is not sent.
    xs: pytree of `[L, ...]` for each layer its own: keys, rates; not sent.
    has_aux: whether `layer` returns `(carry, aux)`.
    distance: how many layers ahead a gather begins; 0 gathers each layer's
      weights right before it, and is the oracle for the rest.
    gather_dtype: floating weights are rounded to it before they travel, and
      `layer` sees them in it; those that lie whole, and all with None, keep
      their own.
    reduce_dtype: gradients are summed in it.
    hold_across_microbatches: whether every leaf of `carry` has a leading dim of
      microbatches. `layer` then runs on one after the other while it holds the
      gathered weights, and the sum of their gradients is reduced once. A leaf
      of `aux` gets a dim of microbatches behind that of layers.
    backend: "native" leaves gathers and reductions to the compiler's own
      collectives, "ring" makes them of permutes, which TPUs send beside compute
      without any option; or a pair for (gathers, reductions). "auto" takes what
      `prefetch_gate.explain` says costs a layer less, given that the program is
      compiled with `gate.compiler_options(chip, prefetch=True)`.
    rings: the rings that the axis is made of, outermost first, or their sizes:
      (4, 4) for an axis that runs through a torus of 4 x 4 row by row, as
      `axis_rings.axis_rings(mesh, axis_name)` tells; one ring if not given.

  Returns:
    The last carry; `(carry, aux)`, each leaf of it `[L, ...]`, with `has_aux`.

  Raises:
    ValueError: if the trees do not fit, naming the leaf, or an option does not.
      A leaf that the axis does not divide never comes here: `jax.shard_map`
      refuses it and names it, and inside every shard looks whole.

  Cost: `L + distance` gathers of a layer in forward, `L - 1` in backward, `L`
    reductions. `distance + 1` layers of gathered weights are held at most, and
    in backward two layers of gradients.

  Example (four devices):
    >>> mesh = make_mesh(data=4, model=1, devices=jax.devices()[:4])
    >>> specs = {"w": jax.P(None, "data", None)}
    >>> stack = jax.shard_map(
    ...     lambda x, params: prefetch_scan(
    ...         lambda p, x: x @ p["w"], x, params, specs=specs,
    ...         gather_dtype=None),
    ...     mesh=mesh, in_specs=(jax.P("data"), specs), out_specs=jax.P("data"))
    >>> y = jax.jit(stack)(jnp.ones((4, 8)), {"w": jnp.ones((3, 8, 8))})
    >>> y.shape, float(y.max())
    ((4, 8), 512.0)
  """
  if not isinstance(layer, jax.tree_util.Partial):
    layer = jax.tree_util.Partial(layer)
  axis_size(axis_name)  # names what is wrong outside `jax.shard_map`
  if not isinstance(distance, int) or distance < 0:
    raise ValueError(f"distance must be a whole number from 0, got {distance}")
  length = stack_length(stacked_params, xs)
  if hold_across_microbatches:
    check_microbatches(carry)
  shared = (layer.args, layer.keywords)
  params, treedef = jax.tree.flatten(stacked_params)
  # What differs between devices anyway makes the gradients of what they share
  # differ too: their sum is then taken once, after the loop, not in its body.
  names = float_trees.varying_everywhere(carry)
  shared, params, xs = jax.tree.map(
    lambda x: vary_over(x, names) if float_trees.is_float(x) else x,
    (shared, params, xs),
  )
  gather_dtype = None if gather_dtype is None else jnp.dtype(gather_dtype)
  reduce_dtype = jnp.dtype(reduce_dtype)
  dims = cut_dims(stacked_params, specs, axis_name)
  parts = ring_parts(rings, axis_name)
  count, nbytes = gathered_size(params, dims, gather_dtype, axis_name)
  gather_by, reduce_by = backends(
    backend,
    nbytes=nbytes,
    rings=tuple(part.size for part in parts),
    chip=device_kind(),
    sums_per_byte=reduce_dtype.itemsize * count / max(nbytes, 1),
  )
  groups = group_small(params, dims, gather_dtype)
  stack = LayerStack(
    function=layer.func,
    wire=Wire(
      axis_name=axis_name,
      shapes=tuple(p.shape[1:] for p in params),
      dims=dims,
      groups=groups,
      reduced_groups=tuple(
        g for g in groups if float_trees.is_float(params[g[0]])
      ),
      gather_dtype=gather_dtype,
      reduce_dtype=reduce_dtype,
      gather_by=gather_by,
      reduce_by=reduce_by,
      parts=parts,
    ),
    treedef=treedef,
    dtypes=tuple(p.dtype for p in params),
    length=length,
    distance=min(distance, length - 1),
    has_xs=xs is not None,
    has_aux=has_aux,
    has_microbatches=hold_across_microbatches,
  )
  op = jax.custom_vjp(stack.run)
  op.defvjp(stack.forward, stack.backward)
  out, aux = op(*float_trees.split((shared, params, carry, xs)))
  return (out, aux) if has_aux else out
