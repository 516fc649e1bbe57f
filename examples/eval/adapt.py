"""Makes a pretrained ViT another task's, and trains all of it."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from examples.data.pipeline import train_batches
from examples.data.source import Source
from examples.eval import training
from examples.weights.adapt import at_resolution, with_new_head
from models.sharding import check_mesh, param_specs
from models.vit import ShardedViT
from models.vit_config import ViTConfig

DEMO = {"image": 48, "steps": 150, "warmup": 15, "train_batch": 64, "lr": 0.05}
_AXES = ("data", "model")


def adapted(
  cfg: ViTConfig, params: dict, classes: int, image: int
) -> tuple[ViTConfig, dict]:
  """Returns the model with a zero head, for images of another size.

  Args:
    cfg: the model's shape.
    params: its parameters.
    classes: of the new task.
    image: height and width, in pixels; the position embedding is resampled to
      the whole patches of it.

  Raises:
    ValueError: if the image is smaller than a patch.
  """
  return with_new_head(*at_resolution(cfg, params, image), classes)


def finetune(
  cfg: ViTConfig,
  params: dict,
  mesh: jax.sharding.Mesh,
  source: Source,
  *,
  steps: int,
  warmup: int,
  batch: int,
  lr: float,
  seed: int = 0,
  folder: Path | None = None,
  key: Any = None,
) -> tuple[dict, np.ndarray]:
  """Trains every parameter by softmax cross-entropy.

  Args:
    cfg, params: as `adapted` returns them.
    mesh: with the axes "data" and "model".
    source: to learn from.
    steps: of the training.
    warmup: steps of them.
    batch: images a step, over all devices.
    lr: peak learning rate.
    seed: of the order and the augmentation.
    folder: for checkpoints; the same call goes on from the newest one.
    key: what else makes a training another one.

  Returns:
    The parameters on the mesh, and the loss of every step.

  Raises:
    ValueError: if the mesh does not divide the model or the batch, or a number
      is out of range.
  """
  check_mesh(cfg, mesh, batch, "tokens")
  if not 0 <= warmup < steps:
    raise ValueError(
      f"warmup must be less than steps={steps}, got warmup={warmup}"
    )
  vit = ShardedViT(cfg, mesh)
  batches = train_batches(source, cfg, batch=batch, seed=seed)

  def loss(params, frozen, batch):
    del frozen
    logits, _ = vit(params, batch["image"])
    label, mask = batch["label"], batch["mask"]
    label = label / jnp.maximum(label.sum(axis=-1, keepdims=True), 1)
    nats = -(jax.nn.log_softmax(logits) * label).sum(axis=-1)
    total = lax.psum((nats * mask).sum(), _AXES)
    return total / jnp.maximum(lax.psum(mask.sum(), _AXES), 1)

  schedule = optax.warmup_cosine_decay_schedule(
    0.0 if warmup else lr, lr, warmup, steps
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.sgd(schedule, momentum=0.9, accumulator_dtype=jnp.bfloat16),
  )
  name = hashlib.sha256(
    repr((cfg, steps, warmup, batch, lr, seed, key)).encode()
  ).hexdigest()[:8]
  return training.train(
    loss,
    params,
    param_specs(cfg, mesh),
    optimizer,
    mesh,
    lambda step: batches[step],
    steps=steps,
    folder=folder and folder / f"checkpoints-{name}",
    title="fine-tuning",
  )
