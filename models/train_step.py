"""One training step and one evaluation step of the sharded ViT."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from collective_mm.mesh import pmax, psum
from models.loss import sigmoid_xent
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
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState


def state_shardings(
  cfg: ViTConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> TrainState:
  """Returns the `NamedSharding` of every leaf of the state.

  Optimiser state of the shape of a parameter lies as the parameter does; the
  rest (counts, factored moments) is small and lies whole on every device.
  """
  specs = param_specs(cfg, mesh)
  params = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))

  def place(leaf, spec, param):
    return spec if leaf.shape == param.shape else jax.P()

  opt_specs = optax.tree_utils.tree_map_params(
    optimizer,
    place,
    jax.eval_shape(optimizer.init, params),
    specs,
    params,
    transform_non_params=lambda _: jax.P(),
  )
  return jax.tree.map(
    lambda spec: jax.NamedSharding(mesh, spec),
    TrainState(jax.P(), specs, opt_specs),
  )


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """Returns the sharding of a batch: examples over both axes of the mesh."""
  return jax.NamedSharding(mesh, _EXAMPLES)


def init_state(
  key: jax.Array,
  cfg: ViTConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> TrainState:
  """Draws the parameters, each device its own shards.

  The numbers depend on the key alone, not on the mesh.
  """

  def make(key):
    params = init_params(key, cfg)
    return TrainState(jnp.int32(0), params, optimizer.init(params))

  shardings = state_shardings(cfg, optimizer, mesh)
  return jax.jit(make, out_shardings=shardings)(key)


def abstract_state(
  cfg: ViTConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> TrainState:
  """Returns what `init_state` would, as shapes with their shardings."""
  shapes = jax.eval_shape(
    lambda key: init_state(key, cfg, optimizer, mesh), jax.random.key(0)
  )
  return abstract(shapes, state_shardings(cfg, optimizer, mesh))


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
  remat: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the jitted `step(state, batch) -> (state, metrics)`.

  A batch is `{"image": [B_dm, H, W, C], "label": [B_dm, V], "mask": [B_dm]}`;
  the loss is the mean sigmoid cross-entropy of the examples that the mask
  keeps. The state is donated.

  Args:
    cfg: the model's shape.
    optimizer: as made by `models.optimizer.make_optimizer`.
    mesh: with the axes "data" and "model".
    layout: "tokens" or "features"; see `models.vit`.
    schedule: of every ring.
    compute_dtype: of matmul operands and of the tokens between blocks.
    remat: recompute each block in backward instead of saving its inside.

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
  )

  def loss_of(params, batch):
    logits, out = vit(params, batch["image"])
    nats = sigmoid_xent(logits, batch["label"])
    kept = psum(batch["mask"].sum(), ("data", "model"))
    loss = psum((nats * batch["mask"]).sum(), ("data", "model"))
    return loss / jnp.maximum(kept, 1), out["max_attention_logit"]

  @jax.shard_map(
    mesh=mesh,
    in_specs=(vit.specs, _EXAMPLES),
    out_specs=(jax.P(), jax.P(), vit.specs),
    check_vma=_tracks(mesh),
  )
  def gradients(params, batch):
    (loss, max_logit), grads = jax.value_and_grad(loss_of, has_aux=True)(
      params, batch
    )
    return loss, pmax(max_logit, ("data", "model")), grads

  def step(state, batch):
    return updated(state, optimizer, *gradients(state.params, batch))

  shardings = state_shardings(cfg, optimizer, mesh)
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
  return TrainState(state.step + 1, params, opt_state), metrics


def make_eval_step(
  cfg: ViTConfig,
  mesh: jax.sharding.Mesh,
  *,
  layout: str = "tokens",
  schedule: str | tuple[str, str] = "auto",
  compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> Callable[[dict, Batch], dict[str, jax.Array]]:
  """Returns the jitted `evaluate(params, batch) -> sums over the batch`.

  The sums are float32 scalars over the examples that the mask keeps: "loss" in
  nats, "correct" (the largest logit is one of the labels) and "count".

  Args:
    cfg, mesh, layout, schedule, compute_dtype: as in `make_train_step`.
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
      "loss": (sigmoid_xent(logits, label) * mask).sum(),
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
