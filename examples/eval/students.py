"""Trains a ViT on labels, or on a teacher's predictions of the same images."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from examples.eval import training
from examples.eval.metrics.distillation import distillation_kl
from examples.usage import UsageError
from models.params import init_params
from models.sharding import check_mesh, param_specs
from models.vit import ShardedViT
from models.vit_config import ViTConfig, get_config

DEMO = {"steps": 300, "batch": 64, "lr": 3e-3, "mixup": 0.2}
TEACHER_STEPS = 400  # of the demo's
_LABELLED = 60  # images whose labels the demo's students are told
_AXES = ("data", "model")


def few(source):
  """Returns the first digits, as many as have labels in the demo."""
  return dataclasses.replace(
    source,
    scans=source.scans[:_LABELLED],
    labels=source.labels[:_LABELLED],
  )


def shape_of(name: str, teacher: ViTConfig) -> ViTConfig:
  """The shape of a student: a public ViT that sees what its teacher sees.

  Raises:
    UsageError: if its patches are larger than the image.
  """
  return get_config(
    name,
    classes=teacher.classes,
    image=teacher.image,
    channels=teacher.channels,
    head_bias_init=0.0,
  )


def train(
  cfg: ViTConfig,
  mesh: jax.sharding.Mesh,
  batches: Sequence[dict],
  *,
  steps: int,
  lr: float,
  teacher_cfg: ViTConfig,
  teacher: dict | None,
  start: dict | None = None,
  temperature: float = 1.0,
  seed: int = 0,
  folder: Path | None = None,
  key: Any = None,
) -> tuple[dict, np.ndarray]:
  """Trains a student with Adam.

  Args:
    cfg: its shape.
    mesh: with the axes "data" and "model"; must divide both models.
    batches: item `i` is the batch of step `i`; both models see it.
    steps: of the training.
    lr: peak learning rate, after a tenth of the steps, falling as a cosine.
    teacher_cfg: the teacher's shape.
    teacher: its parameters; None trains on the labels, by softmax
      cross-entropy.
    start: parameters to start from; None draws them.
    temperature: of the divergence.
    seed: of the first parameters.
    folder: for checkpoints; the same call goes on from the newest one.
    key: what else makes a training another one.

  Returns:
    The parameters on the mesh and the loss of every step.

  Raises:
    UsageError: if the teacher has other classes, or the mesh does not divide.
  """
  if teacher is not None and teacher_cfg.classes != cfg.classes:
    raise UsageError(
      f"teacher and student must have the same classes, got "
      f"{teacher_cfg.classes} and {cfg.classes}"
    )
  for model in (cfg, teacher_cfg):
    try:
      check_mesh(model, mesh, mesh.size, "tokens")
    except ValueError as error:
      raise UsageError(f"--mesh: {error}") from error
  student, wise = ShardedViT(cfg, mesh), ShardedViT(teacher_cfg, mesh)

  def loss(params, frozen, batch):
    logits, _ = student(params, batch["image"])
    if frozen:
      target, _ = wise(frozen, batch["image"])
      nats = distillation_kl(logits, target, temperature)
    else:
      nats = -(jax.nn.log_softmax(logits) * batch["label"]).sum(axis=-1)
    total = lax.psum((nats * batch["mask"]).sum(), _AXES)
    return total / jnp.maximum(lax.psum(batch["mask"].sum(), _AXES), 1)

  schedule = optax.warmup_cosine_decay_schedule(
    0.0, lr, max(1, steps // 10), steps
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4)
  )
  told = teacher is not None
  name = hashlib.sha256(
    repr((cfg, teacher_cfg, steps, lr, told, temperature, seed, key)).encode()
  ).hexdigest()[:8]
  if start is None:
    start = init_params(jax.random.key(seed), cfg)
  return training.train(
    loss,
    start,
    param_specs(cfg, mesh),
    optimizer,
    mesh,
    lambda step: batches[step],
    steps=steps,
    frozen=teacher if told else {},
    frozen_specs=wise.specs if told else {},
    folder=folder and folder / f"checkpoints-{name}",
    title="with a teacher" if told else "without a teacher",
  )
