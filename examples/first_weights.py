"""Weights of another model as the first of a run: resized, with a new head."""

import dataclasses

import jax

from examples.presets import TrainConfig
from examples.usage import blame
from examples.weights.adapt import at_resolution, with_new_head
from examples.weights.load import load as load_weights


def load(
  config: TrainConfig, mesh: jax.sharding.Mesh
) -> tuple[TrainConfig, dict]:
  """Returns the config with the model of `config.init_from`, and its weights.

  The model is the file's, but for the size of the images and the classes, which
  are the config's. Position embeddings are resampled to the new grid, and a
  head of another number of classes is left for one of zeros.

  Args:
    config: with the classes of the data.
    mesh: to lay the weights on.

  Raises:
    UsageError: if the file cannot be read.
  """
  wanted = config.model
  with blame(f"--init_from={config.init_from}"):
    model, params = load_weights(config.init_from, mesh=mesh)
    if model.image != wanted.image:
      model, params = at_resolution(model, params, wanted.image)
    if model.classes != wanted.classes:
      model, params = with_new_head(
        model, params, wanted.classes, wanted.head_bias_init
      )
  return dataclasses.replace(config, model=model), params
