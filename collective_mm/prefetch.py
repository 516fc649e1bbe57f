"""Weights a layer ahead: a scan over layers whose weights are sharded.

A scan that gathers in its body cannot start on layer `l + 1` before layer `l`
is done, and what autodiff makes of it keeps every gathered weight for backward.
Here the loop carries what was gathered for the next layer, and one custom VJP
over the whole stack gathers again and reduces a layer late.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm import float_trees
from collective_mm.mesh import (
  AxisName,
  axis_size,
  device_kind,
  empty_like_varying,
  vary_over,
)
from collective_mm.placement import AxisRing
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
  way. Forward keeps the sharded weights and the carry before each layer; of
  gathered weights only those of the last `distance` layers, with which backward
  begins. It goes through the layers from the last: while it computes layer `l`
  (again from its carry, and its gradients), it gathers the weights of layer
  `l - distance` and reduce-scatters the gradients of layer `l + 1`.

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
      `placement.axis_rings(mesh, axis_name)` tells; one ring if not given.

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
  stack = _Stack(
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Stack:
  """A stack of layers, without its arrays.

  The methods take all arrays as one tree `(shared, params, carry, xs)`, in two
  halves of which each has None where the other has a leaf: `floats`, which have
  gradients, and `rest`. `params` is a list.
  """

  function: Callable[..., Any]
  wire: Wire
  treedef: jax.tree_util.PyTreeDef
  length: int
  distance: int
  has_xs: bool
  has_aux: bool
  has_microbatches: bool

  def run(self, floats, rest):
    return self._scan(floats, rest, keep=False)[0]

  def forward(self, floats, rest):
    out, (carries, queue) = self._scan(floats, rest, keep=True)
    shared, params, _, xs = float_trees.merge(floats, rest)
    return out, (shared, params, carries, xs, queue)

  def backward(self, residuals, cotangents):
    shared, params, carries, xs, queue = residuals
    dout, daux = float_trees.floats(cotangents)
    last = self.length - 1
    waiting = self._room_for_stages(queue[0]) if queue else []
    late = len(waiting)
    dparams = [
      empty_like_varying(p.shape, p.dtype, like=p)
      if float_trees.is_float(p)
      else None
      for p in params
    ]
    dshared = jax.tree.map(jnp.zeros_like, float_trees.floats(shared))

    def store(dparams, packed_and_whole, i):
      def put(into, g):
        g = g.astype(into.dtype)
        return lax.dynamic_update_index_in_dim(into, g, i, axis=0)

      return jax.tree.map(put, dparams, self.wire.unpack(*packed_and_whole))

    def of_layer(i):
      return jax.tree.map(
        lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False),
        (carries, xs, daux),
      )

    def pull(weights, i, dcarry):
      carry, x, daux = of_layer(i)
      return self._pull(shared, weights, carry, x, dcarry, daux)

    def step(state, i):
      queue, waiting, dparams, dshared, dcarry = state
      queue = [*queue, self._gather(params, jnp.maximum(i - self.distance, 0))]
      arrived = [self.wire.send(k, p) for k, (p, _) in enumerate(waiting)]
      more, dweights, dcarry, dx = pull(queue[0], i, dcarry)
      # What was sent first has until here to arrive.
      arrived, dcarry = float_trees.barrier((arrived, dcarry))
      waiting = [
        self._packed(dweights),
        *(
          (self.wire.add(k, packed, shares), whole)
          for k, ((packed, whole), shares) in enumerate(
            zip(waiting, arrived, strict=True)
          )
        ),
      ]
      if not late:
        waiting = [self._all_stages(0, waiting[0])]
      # What the first trips store is nothing yet; a later one overwrites it.
      ready = waiting.pop()
      dparams = store(dparams, ready, jnp.minimum(i + late, last))
      dshared = jax.tree.map(jnp.add, dshared, more)
      return (queue[1:], waiting, dparams, dshared, dcarry), dx

    state, dxs = lax.scan(
      step,
      (queue, waiting, dparams, dshared, dout),
      jnp.arange(1, self.length),
      reverse=True,
    )
    # Beside the first layer, behind which nothing can hide, the others finish.
    queue, waiting, dparams, dshared, dcarry = state
    for k, grads in enumerate(waiting[:last]):
      dparams = store(dparams, self._all_stages(k, grads), k + 1)
    weights = queue[0] if queue else self._gather(params, 0)
    more, dweights, dcarry, dx = pull(weights, 0, dcarry)
    grads = self._all_stages(0, self._packed(dweights))
    dparams = store(dparams, grads, 0)
    dshared = jax.tree.map(jnp.add, dshared, more)
    dxs = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), dx, dxs)
    return (dshared, dparams, dcarry, dxs), None

  def _scan(self, floats, rest, *, keep):
    """All layers: `(carry, aux)`, and the carries before them if `keep`."""
    shared, params, carry, xs = float_trees.merge(floats, rest)
    queue = [self._gather(params, i) for i in range(self.distance)]

    def step(state, of_layer):
      queue, carry = state
      i, x = of_layer
      # The last gathers are those that backward begins with.
      ahead = i + self.distance
      ahead = jnp.minimum(ahead, 2 * self.length - 1 - ahead)
      shards = self._shards(params, ahead)
      # A gather travels beside this layer alone: not earlier, over weights in
      # use, nor later, beside a layer that has its own to hide.
      if queue:
        queue[0], shards, carry = float_trees.barrier((queue[0], shards, carry))
      queue = [*queue, self.wire.gather(shards)]
      out, aux = self._layer(shared, queue[0], carry, x)
      return (queue[1:], out), (aux, carry if keep else None)

    # Two layers a trip: with one the compiler writes what it gathers over the
    # weights in use, and waits for the end of the layer.
    (queue, out), (aux, carries) = lax.scan(
      step, (queue, carry), (jnp.arange(self.length), xs), unroll=2
    )
    return (out, aux), (carries, queue)

  def _gather(self, params, i):
    """The whole weights of layer `i`."""
    return self.wire.gather(self._shards(params, i))

  def _shards(self, params, i):
    return [lax.dynamic_index_in_dim(p, i, keepdims=False) for p in params]

  def _call(self, shared, weights, carry, x):
    """`layer` of one microbatch: `(carry, aux)`."""
    params = jax.tree.unflatten(self.treedef, weights)
    xs = (x,) if self.has_xs else ()
    args, keywords = shared
    out = self.function(*args, params, carry, *xs, **keywords)
    return out if self.has_aux else (out, None)

  def _layer(self, shared, weights, carry, x):
    if not self.has_microbatches:
      return self._call(shared, weights, carry, x)

    def one(_, carry):
      return None, self._call(shared, weights, carry, x)

    return lax.scan(one, None, carry)[1]

  def _pull(self, shared, weights, carry, x, dout, daux):
    """Gradients of a layer, as the tree of its inputs."""

    def pull(carry, dout, daux):
      floats, rest = float_trees.split((shared, weights, carry, x))
      _, vjp = jax.vjp(
        lambda f: float_trees.floats(self._call(*float_trees.merge(f, rest))),
        floats,
      )
      return vjp((dout, daux))[0]

    if not self.has_microbatches:
      return pull(carry, dout, daux)

    def add(sums, of_microbatch):
      dshared, dweights, dcarry, dx = pull(*of_microbatch)
      sums = jax.tree.map(
        lambda s, g: s + g.astype(s.dtype), sums, (dshared, dweights, dx)
      )
      return sums, dcarry

    zeros = jax.tree.map(jnp.zeros_like, float_trees.floats((shared, x)))
    room = jax.tree.map(jnp.zeros_like, self._room_for_gradients(weights))
    sums, dcarry = lax.scan(
      add, (zeros[0], room, zeros[1]), (carry, dout, daux)
    )
    dshared, dweights, dx = sums
    return dshared, dweights, dcarry, dx

  def _room_for_gradients(self, weights):
    """An uninitialised array for the gradient of each whole weight."""
    dtype = self.wire.reduce_dtype if self.has_microbatches else None
    return [
      empty_like_varying(w.shape, dtype or w.dtype, like=w)
      if float_trees.is_float(w)
      else None
      for w in weights
    ]

  def _packed(self, grads):
    """Gradients for the first stage, and those that are not sent."""
    whole = [
      g if dim is None else None
      for g, dim in zip(grads, self.wire.dims, strict=True)
    ]
    return self.wire.pack(grads), whole

  def _stage(self, k, packed_and_whole):
    packed, whole = packed_and_whole
    return self.wire.add(k, packed, self.wire.send(k, packed)), whole

  def _all_stages(self, first, packed_and_whole):
    for k in range(first, self.wire.stages):
      packed_and_whole = self._stage(k, packed_and_whole)
    return packed_and_whole

  def _room_for_stages(self, weights):
    """An uninitialised input for each stage of a reduction."""
    rooms = [self._packed(self._room_for_gradients(weights))]
    for k in range(self.wire.stages - 1):
      shapes = jax.eval_shape(functools.partial(self._stage, k), rooms[-1])
      rooms.append(
        jax.tree.map(
          lambda s, like: empty_like_varying(s.shape, s.dtype, like=like),
          shapes,
          rooms[-1],
        )
      )
    return rooms
