"""A small ViT trained here in seconds, for `--demo`, and kept under `runs/`."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tqdm

from collective_mm import make_mesh
from examples.data import digits as scans
from examples.data.pipeline import eval_batches, train_batches
from examples.data.sources import open_source
from examples.weights import tensors
from models import train_step
from models.optimizer import OptimizerConfig, make_optimizer
from models.vit_config import ViTConfig, get_config

FOLDER = Path("runs") / "demo"
_DRAWN = 4096  # shapes to learn from
_STEPS = 800  # to learn them in


def digits(*, steps: int = 150, folder=FOLDER):
  """A ViT that has learned the training part of the digits.

  Returns:
    Its config and its parameters.
  """
  cfg = get_config("vit_tiny", head_bias_init=math.log(1 / 9))
  source = scans.load("train")
  batches = iter(train_batches(source, cfg, batch=128, seed=0))
  return cfg, kept("digits", cfg, batches, steps=steps, folder=folder)


def shapes(*, folder=FOLDER):
  """A ViT that has learned colours, shapes and sizes of the drawn shapes.

  Apart from each other, as JFT's labels are: no label says which colour goes
  with which shape.

  Returns:
    Its config and its parameters.
  """
  source = dataclasses.replace(
    open_source("shapes:all", "train"), by_attribute=True, count=_DRAWN
  )
  cfg = get_config(
    "vit_tiny",
    width=48,
    depth=3,
    mlp=96,
    channels=3,
    classes=len(source.classes),
    head_bias_init=math.log(0.2),
  )
  batches = _shuffled(source, cfg, batch=128)
  return cfg, kept("shapes", cfg, batches, steps=_STEPS, folder=folder)


def _shuffled(source, cfg, *, batch: int) -> Iterator[dict]:
  """Endless batches of images that are drawn once, since drawing takes longer
  than learning."""
  (whole,) = eval_batches(source, cfg, batch=len(source))
  rng = np.random.default_rng(0)
  while True:
    rows = rng.integers(len(source), size=batch)
    yield {name: x[rows] for name, x in whole.items()}


def digit_images(source: scans.Digits, size: int = 32) -> list[np.ndarray]:
  """The scans of a part of the digits as images `[size, size, 1]`."""
  return [scans.render(scan, size) for scan in source.scans]


def kept(
  name: str,
  cfg: ViTConfig,
  batches: Iterator[dict],
  *,
  steps: int,
  lr: float = 3e-3,
  folder: Path = FOLDER,
) -> dict:
  """Returns what `fit` does, from `folder` if it was trained before.

  On one device: there a small model is done soonest.
  """
  key = hashlib.sha256(json.dumps([repr(cfg), steps, lr]).encode())
  path = folder / f"{name}-{key.hexdigest()[:8]}.safetensors"
  if path.exists():
    return tensors.read(path)[1]
  print(f"training the demo's model once, {steps} steps: {path}")
  one = make_mesh(data=1, model=1, devices=jax.devices()[:1])
  params = jax.device_get(fit(cfg, one, batches, steps=steps, lr=lr))
  folder.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(f".{os.getpid()}.tmp")
  tensors.write(partial, cfg, params)
  os.replace(partial, path)
  return params


def fit(
  cfg: ViTConfig,
  mesh: jax.sharding.Mesh,
  batches: Iterator[dict],
  *,
  steps: int,
  lr: float = 3e-3,
  seed: int = 0,
) -> dict:
  """Trains from scratch with Adam and returns the parameters, on `mesh`.

  Args:
    cfg: the model's shape.
    mesh: with the axes "data" and "model"; must divide model and batch.
    batches: as `models.train_step.make_train_step` reads them.
    steps: how many of them.
    lr: peak learning rate, after a tenth of the steps.
    seed: of the first parameters.
  """
  optimizer = make_optimizer(
    OptimizerConfig(
      peak_lr=lr,
      total_steps=steps,
      warmup_steps=steps // 10,
      cooldown_steps=steps // 3,
      timescale=max(1, steps // 5),
      b2=0.99,
      weight_decay_head=0.3,
    )
  )
  state = train_step.init_state(jax.random.key(seed), cfg, optimizer, mesh)
  step = train_step.make_train_step(cfg, optimizer, mesh)
  sharding = train_step.batch_sharding(mesh)
  metrics = {}
  bar = tqdm.trange(steps, unit="step", desc="demo", disable=None, leave=False)
  for _ in bar:
    batch = jax.device_put(next(batches), sharding)
    jax.block_until_ready(metrics)  # one step in flight on virtual devices
    state, metrics = step(state, batch)
  return state.params
