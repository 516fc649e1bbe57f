"""Weights of another run as the first of a new one: resized, a new head."""

import dataclasses

import jax
import jax.numpy as jnp

from examples.presets import TrainConfig
from examples.usage import blame
from examples.weights.load import load as load_weights
from models.params import init_params
from models.positions import resample


def load(config: TrainConfig) -> tuple[TrainConfig, dict]:
  """Returns the config with the model of `config.init_from`, and its weights.

  The model is the file's, but for the size of the images and the classes, which
  are the config's. Position embeddings are resampled to the new grid. A head of
  another number of classes is left out for one of zeros.

  Raises:
    UsageError: if the file cannot be read or is not for images of so many
      channels.
  """
  with blame(f"--init_from={config.init_from}"):
    there, params = load_weights(config.init_from)
    here = config.model
    model = dataclasses.replace(
      there,
      image=here.image,
      classes=here.classes,
      head_bias_init=here.head_bias_init,
    )
  params = dict(params)
  if there.grid != model.grid:
    embed = params["embed"]
    position = resample(jnp.asarray(embed["position"]), there.grid, model.grid)
    params["embed"] = embed | {"position": position}
  if there.classes != model.classes:
    # Drawn on its own: a head depends on no other leaf.
    fresh = jax.jit(
      lambda: init_params(jax.random.key(config.seed), model)["head"]
    )
    params["head"] = fresh()
  return dataclasses.replace(config, model=model), params
