"""A loaded ViT made ready for another resolution, another task, a mesh."""

import dataclasses

import jax
import numpy as np

from models.positions import resample
from models.sharding import param_specs
from models.vit_config import ViTConfig


def at_resolution(
  cfg: ViTConfig, params: dict, image: int
) -> tuple[ViTConfig, dict]:
  """Returns the model for images of another size, its positions resampled.

  Pixels beyond the last whole patch are left out: patches of 14 make 27 x 27
  tokens of an image of 384.
  """
  larger = dataclasses.replace(cfg, image=image)
  embed = params["embed"]
  position = resample(np.asarray(embed["position"]), cfg.grid, larger.grid)
  return larger, params | {"embed": embed | {"position": position}}


def without_head(cfg: ViTConfig, params: dict) -> tuple[ViTConfig, dict]:
  """Returns the model without its classifier and the layer before it."""
  dropped = ("head", "pre_logits")
  bare = dataclasses.replace(cfg, classes=0, pre_logits=False)
  return bare, {k: v for k, v in params.items() if k not in dropped}


def with_new_head(
  cfg: ViTConfig, params: dict, classes: int, bias: float = 0.0
) -> tuple[ViTConfig, dict]:
  """Returns the model with a classifier of zeros for another task.

  The layer before the old classifier goes with it (big_vision
  configs/transfer.py leaves both out).

  Args:
    cfg, params: the model.
    classes: of the new task.
    bias: of every class.
  """
  bare, params = without_head(cfg, params)
  cfg = dataclasses.replace(bare, classes=classes, head_bias_init=bias)
  head = {
    "kernel": np.zeros((cfg.width, classes), np.float32),
    "bias": np.full(classes, bias, np.float32),
  }
  return cfg, params | {"head": head}


def place(params: dict, cfg: ViTConfig, mesh: jax.sharding.Mesh) -> dict:
  """Lays parameters on a mesh, each device its own shards."""
  shardings = jax.tree.map(
    lambda spec: jax.NamedSharding(mesh, spec), param_specs(cfg, mesh)
  )
  return jax.tree.map(jax.device_put, params, shardings)
