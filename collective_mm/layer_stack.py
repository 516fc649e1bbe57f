"""Forward and backward of a scan over layers, weights gathered ahead.

Forward carries what was gathered for the next layers; backward is written out,
so that it gathers again, and reduces the gradients of a layer while it computes
those of the next.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm import float_trees
from collective_mm.mesh import empty_like_varying
from collective_mm.weights import Wire


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerStack:
  """A stack of layers, without its arrays.

  The methods take all arrays as one tree `(shared, params, carry, xs)`, in two
  halves of which each has None where the other has a leaf: `floats`, which have
  gradients, and `rest`. `params` is a list.

  Attributes:
    function: of one layer; `prefetch_scan` has its arguments.
    wire: how the weights of a layer travel.
    treedef: of a layer's weights.
    dtypes: of the stacked weights, and of their gradients.
    length: how many layers there are.
    distance: how many layers ahead a gather begins, less than `length`.
    has_xs, has_aux, has_microbatches: what `function` takes and returns.
  """

  function: Callable[..., Any]
  wire: Wire
  treedef: jax.tree_util.PyTreeDef
  dtypes: tuple[jnp.dtype, ...]
  length: int
  distance: int
  has_xs: bool
  has_aux: bool
  has_microbatches: bool

  def run(self, floats, rest):
    """`(carry, aux)` after all layers."""
    return self._scan(floats, rest, keep=False)[0]

  def forward(self, floats, rest):
    """The same, and what `backward` needs of it."""
    out, kept = self._scan(floats, rest, keep=True)
    shared, _, _, xs = float_trees.merge(floats, rest)
    return out, (shared, xs, *kept)

  def backward(self, residuals, cotangents):
    """The gradients of `floats`, from the last layer to the first."""
    shared, xs, params, carries, queue = residuals
    dout, daux = float_trees.floats(cotangents)
    last = self.length - 1
    waiting = self._room_for_stages(queue[0]) if queue else []
    late = len(waiting)
    dparams = [
      empty_like_varying(p.shape, dtype, like=p)
      if float_trees.is_float(p)
      else None
      for p, dtype in zip(params, self.dtypes, strict=True)
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

    def pull(weights, i, dcarry, arriving=()):
      carry, x, daux = of_layer(i)
      return self._pull(shared, weights, carry, x, dcarry, daux, arriving)

    def step(state, i):
      queue, waiting, dparams, dshared, dcarry = state
      queue = [*queue, self._gather(params, jnp.maximum(i - self.distance, 0))]
      arrived = self._sent(waiting)
      (more, dweights, dcarry, dx), _ = pull(queue[0], i, dcarry)
      # What was sent first has until here to arrive.
      arrived, dcarry = float_trees.barrier((arrived, dcarry))
      waiting = [self._packed(dweights), *self._added(waiting, arrived)]
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
    # What they send first has until it is recomputed to arrive, what they send
    # next until the carry's gradient is known.
    queue, others, dparams, dshared, dcarry = state
    others = others[:last]
    weights = queue[0] if queue else self._gather(params, 0)
    (more, dweights, dcarry, dx), arrived = pull(
      weights, 0, dcarry, self._sent(others)
    )
    others = self._added(others, arrived)
    arrived, dcarry = float_trees.barrier((self._sent(others, 1), dcarry))
    others = self._added(others, arrived, 1)
    # The last of them is ready first, and what is stored waits for the others.
    for k, grads in reversed([*enumerate(others)]):
      dparams = store(dparams, self._all_stages(k + 2, grads), k + 1)
    grads = self._all_stages(0, self._packed(dweights))
    dparams = store(dparams, grads, 0)
    dshared = jax.tree.map(jnp.add, dshared, more)
    dxs = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), dx, dxs)
    return (dshared, dparams, dcarry, dxs), None

  def _scan(self, floats, rest, *, keep):
    """All layers: `(carry, aux)`; and for backward the weights' shards as they
    travel, the carries before the layers if `keep`, and what is gathered."""
    shared, params, carry, xs = float_trees.merge(floats, rest)
    queue = []
    if self.distance:
      first, params = self.wire.gather_first(params)
      more = [self._gather(params, i) for i in range(1, self.distance)]
      queue = [first, *more]

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
    return (out, aux), (params, carries, queue)

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

  def _pull(self, shared, weights, carry, x, dout, daux, arriving):
    """Gradients of a layer, as the tree of its inputs, and `arriving`, which is
    there when the layer has been computed again."""

    def pull(carry, dout, daux, arriving=()):
      floats, rest = float_trees.split((shared, weights, carry, x))
      _, vjp = jax.vjp(
        lambda f: float_trees.floats(self._call(*float_trees.merge(f, rest))),
        floats,
      )
      if arriving:
        arriving, vjp = float_trees.barrier((arriving, vjp))
      return vjp((dout, daux))[0], arriving

    if not self.has_microbatches:
      return pull(carry, dout, daux, arriving)

    def add(sums, of_microbatch):
      (dshared, dweights, dcarry, dx), _ = pull(*of_microbatch)
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
    return (dshared, dweights, dcarry, dx), arriving

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

  def _sent(self, grads, first=0):
    """What arrives of `grads`, of the k-th in stage `first + k`."""
    return [
      self.wire.send(k, packed) if k < self.wire.stages else []
      for k, (packed, _) in enumerate(grads, first)
    ]

  def _added(self, grads, arrived, first=0):
    """`grads` after that stage."""
    added = []
    for k, (packed, whole) in enumerate(grads, first):
      if k < self.wire.stages:
        packed = self.wire.add(k, packed, arrived[k - first])
      added.append((packed, whole))
    return added

  def _next(self, k, grads):
    """`grads` after stage `k`."""
    [after] = self._added([grads], self._sent([grads], k), k)
    return after

  def _all_stages(self, first, grads):
    for k in range(first, self.wire.stages):
      grads = self._next(k, grads)
    return grads

  def _room_for_stages(self, weights):
    """An uninitialised input for each stage of a reduction."""
    rooms = [self._packed(self._room_for_gradients(weights))]
    for k in range(self.wire.stages - 1):
      shapes = jax.eval_shape(functools.partial(self._next, k), rooms[-1])
      rooms.append(
        jax.tree.map(
          lambda s, like: empty_like_varying(s.shape, s.dtype, like=like),
          shapes,
          rooms[-1],
        )
      )
    return rooms
