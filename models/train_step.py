"""One training step and one evaluation step of the sharded ViT."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import tree_leaves_with_path, tree_map_with_path

from collective_mm.mesh import pmax, psum, vary_over, varying_axes
from models.loss import LOSSES
from models.param_groups import path_name
from models.params import init_params
from models.sharding import param_specs
from models.vit import ShardedViT
from models.vit_config import ViTConfig

Batch = dict[str, jax.Array]
_EXAMPLES = jax.P(("data", "model"))


class TrainState(NamedTuple):
  """All that a run carries from step to step.

  Attributes:
    step: int32 scalar, steps done.
    params: the tree of `models.params.init_params`.
    opt_state: the optimiser's.
    ema: a moving average of the parameters, the tree of `params`; None if the
      run keeps none.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  ema: dict | None = None


def state_shardings(
  cfg: ViTConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  *,
  ema: bool = False,
) -> TrainState:
  """Returns the `NamedSharding` of every leaf of the state.

  Optimiser state of the shape of a parameter lies as the parameter does; the
  rest (counts, factored moments) is small and lies whole on every device.
  """
  specs = param_specs(cfg, mesh)
  params = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  named = {
    path: (leaf.shape, spec)
    for (path, leaf), spec in zip(
      tree_leaves_with_path(params), jax.tree.leaves(specs), strict=True
    )
  }

  def place(path, leaf):
    # State of a parameter stands under its path, whatever wraps the optimiser.
    for start in range(len(path)):
      shape, spec = named.get(path[start:], (None, None))
      if leaf.shape == shape:
        return spec
    return jax.P()

  opt_specs = tree_map_with_path(place, jax.eval_shape(optimizer.init, params))
  return jax.tree.map(
    lambda spec: jax.NamedSharding(mesh, spec),
    TrainState(jax.P(), specs, opt_specs, specs if ema else None),
  )


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """Returns the sharding of a batch: examples over both axes of the mesh."""
  return jax.NamedSharding(mesh, _EXAMPLES)


def init_state(
  key: jax.Array,
  cfg: ViTConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  *,
  ema: bool = False,
) -> TrainState:
  """Draws the parameters, each device its own shards.

  The numbers depend on the key alone, not on the mesh.
  """

  def make(key):
    return _first(init_params(key, cfg), optimizer, ema)

  shardings = state_shardings(cfg, optimizer, mesh, ema=ema)
  return jax.jit(make, out_shardings=shardings)(key)


def state_from(
  params: dict,
  cfg: ViTConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  *,
  ema: bool = False,
) -> TrainState:
  """Returns the first state of a run that starts from given parameters.

  Args:
    params: the tree of `init_params`, on the mesh or in the host's memory.
    cfg, optimizer, mesh, ema: as for `init_state`.
  """
  shardings = state_shardings(cfg, optimizer, mesh, ema=ema)
  params = jax.device_put(params, shardings.params)
  make = jax.jit(
    lambda params: _first(params, optimizer, ema), out_shardings=shardings
  )
  return make(params)


def _first(params, optimizer, ema):
  return TrainState(
    jnp.int32(0), params, optimizer.init(params), params if ema else None
  )


def abstract_state(
  cfg: ViTConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  *,
  ema: bool = False,
) -> TrainState:
  """Returns what `init_state` would, as shapes with their shardings."""
  shapes = jax.eval_shape(
    lambda key: _first(init_params(key, cfg), optimizer, ema),
    jax.random.key(0),
  )
  return abstract(shapes, state_shardings(cfg, optimizer, mesh, ema=ema))


def abstract_batch(
  cfg: ViTConfig, mesh: jax.sharding.Mesh, batch_size: int
) -> Batch:
  """Returns a batch for `make_train_step`, as shapes with their shardings."""
  shapes = {
    "image": (batch_size, cfg.image, cfg.image, cfg.channels),
    "label": (batch_size, cfg.classes),
    "mask": (batch_size,),
  }
  return {
    name: jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=batch_sharding(mesh)
    )
    for name, shape in shapes.items()
  }


def abstract(shapes, shardings):
  """Returns `shapes` as `jax.ShapeDtypeStruct`s that carry `shardings`."""
  return jax.tree.map(
    lambda shape, sharding: jax.ShapeDtypeStruct(
      shape.shape, shape.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )


def make_train_step(
  cfg: ViTConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  *,
  layout: str = "tokens",
  schedule: str | tuple[str, str] = "auto",
  compute_dtype: jax.typing.DTypeLike = jnp.float32,
  loss: str = "sigmoid",
  remat: bool = False,
  microbatches: int = 1,
  ema_decay: float | None = None,
  guard: bool = False,
  frozen: Callable[[str], bool] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the jitted `step(state, batch) -> (state, metrics)`.

  A batch is `{"image": [B_dm, H, W, C], "label": [B_dm, V], "mask": [B_dm]}`;
  the loss is the mean cross-entropy of the examples that the mask keeps. The
  state is donated.

  Args:
    cfg: the model's shape.
    optimizer: as made by `models.optimizer.make_optimizer`.
    mesh: with the axes "data" and "model".
    layout: "tokens" or "features"; see `models.vit`.
    schedule: of every ring.
    compute_dtype: of matmul operands and of the tokens between blocks.
    loss: "sigmoid" or "softmax"; see `models.loss`.
    remat: recompute each block in backward instead of saving its inside.
    microbatches: parts of a device's images that are computed one after the
      other, in less memory. The gradients are those of the whole batch but for
      the order of sums. With `remat` a block's weights are gathered once for
      all parts; without, for each part anew.
    ema_decay: decay of `state.ema` per step, which begins lower, at
      `min(ema_decay, (1 + t) / (10 + t))`; None for a state without.
    guard: leave parameters, moments and average as they were if the loss or
      the norm of the gradient is not finite.
    frozen: tells by its path, as "blocks/mlp_in/kernel", whether a parameter
      gets no gradient.

  Returns:
    A function whose metrics are float32 scalars: "loss" in nats per example,
    "grad_norm" before clipping, "max_attention_logit" over all layers.
  """
  vit = ShardedViT(
    cfg,
    mesh,
    layout=layout,
    schedule=schedule,
    compute_dtype=compute_dtype,
    remat=remat,
    microbatches=microbatches if remat else 1,
  )
  axes = ("data", "model")

  def loss_of(params, batch, kept):
    if frozen:
      params = tree_map_with_path(
        lambda path, p: lax.stop_gradient(p) if frozen(path_name(path)) else p,
        params,
      )
    logits, out = vit(params, batch["image"])
    nats = LOSSES[loss](logits, batch["label"]) * batch["mask"]
    mean = psum(nats.sum(), axes) / jnp.maximum(kept, 1)
    return mean, out["max_attention_logit"]

  gradient = jax.value_and_grad(loss_of, has_aux=True)

  def accumulated(params, batch, kept):
    """`gradient` as a sum over parts of this device's examples."""
    parts = jax.tree.map(
      lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch
    )

    def add(sums, part):
      (mean, max_logit), grads = gradient(params, part, kept)
      return jax.tree.map(jnp.add, sums, (mean, grads)), max_logit

    zeros = jax.tree.map(
      lambda p: vary_over(jnp.zeros_like(p), varying_axes(p)), params
    )
    (mean, grads), max_logits = lax.scan(add, (jnp.float32(0), zeros), parts)
    return (mean, max_logits.max()), grads

  @jax.shard_map(
    mesh=mesh,
    in_specs=(vit.specs, _EXAMPLES),
    out_specs=(jax.P(), jax.P(), vit.specs),
    check_vma=_tracks(mesh),
  )
  def gradients(params, batch):
    kept = psum(batch["mask"].sum(), axes)
    by_parts = microbatches > 1 and not remat
    (mean, max_logit), grads = (accumulated if by_parts else gradient)(
      params, batch, kept
    )
    return mean, pmax(max_logit, axes), grads

  def step(state, batch):
    new, metrics = updated(state, optimizer, *gradients(state.params, batch))
    if ema_decay is not None:
      new = new._replace(ema=_averaged(state, new.params, ema_decay))
    if guard:
      ok = jnp.isfinite(metrics["loss"] + metrics["grad_norm"])
      kept = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state)
      new = kept._replace(step=new.step)
    return new, metrics

  shardings = state_shardings(cfg, optimizer, mesh, ema=ema_decay is not None)
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def updated(
  state: TrainState,
  optimizer: optax.GradientTransformation,
  loss: jax.Array,
  max_logit: jax.Array,
  grads: dict,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Returns the state after one update, and the metrics of the step."""
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = {
    "loss": loss,
    "grad_norm": optax.tree.norm(grads),
    "max_attention_logit": max_logit,
  }
  return state._replace(
    step=state.step + 1, params=params, opt_state=opt_state
  ), metrics


def _averaged(state, params, decay):
  """The average after a step; TensorFlow's `ExponentialMovingAverage` with
  `num_updates` starts it as fast."""
  decay = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
  return jax.tree.map(
    lambda old, new: new + decay * (old - new), state.ema, params
  )


def make_eval_step(
  cfg: ViTConfig,
  mesh: jax.sharding.Mesh,
  *,
  layout: str = "tokens",
  schedule: str | tuple[str, str] = "auto",
  compute_dtype: jax.typing.DTypeLike = jnp.float32,
  loss: str = "sigmoid",
) -> Callable[[dict, Batch], dict[str, jax.Array]]:
  """Returns the jitted `evaluate(params, batch) -> sums over the batch`.

  The sums are float32 scalars over the examples that the mask keeps: "loss" in
  nats, "correct" (the largest logit is one of the labels) and "count".

  Args:
    cfg, mesh, layout, schedule, compute_dtype, loss: as in `make_train_step`.
  """
  vit = ShardedViT(
    cfg, mesh, layout=layout, schedule=schedule, compute_dtype=compute_dtype
  )

  @jax.jit
  @jax.shard_map(
    mesh=mesh,
    in_specs=(vit.specs, _EXAMPLES),
    out_specs=jax.P(),
    check_vma=_tracks(mesh),
  )
  def evaluate(params, batch):
    logits, _ = vit(params, batch["image"])
    label, mask = batch["label"], batch["mask"]
    top = logits.argmax(axis=-1, keepdims=True)
    sums = {
      "loss": (LOSSES[loss](logits, label) * mask).sum(),
      "correct": (jnp.take_along_axis(label, top, axis=-1)[:, 0] * mask).sum(),
      "count": mask.sum(),
    }
    return jax.tree.map(lambda x: psum(x, ("data", "model")), sums)

  return evaluate


def _tracks(mesh: jax.sharding.Mesh) -> bool:
  """Whether jax keeps track of what varies between devices.

  That puts in the sums of gradients; on one device, all-reduces of one member.
  """
  return mesh.size > 1
