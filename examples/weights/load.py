"""Loads a ViT from whatever holds one: a run, a checkpoint or a file."""

import json
from pathlib import Path

import jax
import numpy as np

from collective_mm import make_mesh
from examples.checkpoints import about, restore
from examples.usage import UsageError
from examples.weights import flax_npz, tensors
from examples.weights.adapt import place
from examples.weights.names import config_from
from models.params import init_params
from models.sharding import param_specs
from models.train_step import abstract
from models.vit_config import ViTConfig


def load(
  path: str | Path,
  *,
  mesh: jax.sharding.Mesh | None = None,
  heads: int | None = None,
) -> tuple[ViTConfig, dict]:
  """Returns the config and the parameters, the tree of `init_params`.

  Args:
    path: the folder of a run, its `checkpoints` or one of them, a public
      `.npz`, or a `.safetensors` file, ours or timm's.
    mesh: to lay the parameters on; without one they are NumPy arrays.
    heads: of a file that does not tell; see `tensors.read`.

  Raises:
    UsageError: in one line that names the path, if it holds no such model.
  """
  path = Path(path)
  if path.is_dir():
    return _from_checkpoint(path, mesh)
  try:
    if path.suffix == ".npz":
      cfg, params = flax_npz.read(path)
    elif path.suffix == ".safetensors":
      cfg, params = tensors.read(path, heads)
    else:
      raise ValueError("must be a folder, a .npz or a .safetensors file")
  except OSError as error:
    raise UsageError(f"{path}: {error.strerror or error}") from error
  except ValueError as error:
    raise UsageError(f"{path}: {error}") from error
  return cfg, params if mesh is None else place(params, cfg, mesh)


def _from_checkpoint(path, mesh):
  if (path / "checkpoints").is_dir():
    path = path / "checkpoints"
  step = None
  if path.name.isdigit():
    path, step = path.parent, int(path.name)
  cfg = _config(path, step)
  on = mesh or make_mesh(data=1, model=1, devices=jax.devices()[:1])
  shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  shardings = jax.tree.map(
    lambda spec: jax.NamedSharding(on, spec), param_specs(cfg, on)
  )
  params = restore(
    path,
    {"params": abstract(shapes, shardings)},
    step=step,
    only="params/.*",
    flag=str(path),
  )["params"]
  return cfg, params if mesh else jax.tree.map(np.asarray, params)


def _config(path, step):
  """The model of a run: its checkpoints say it, or its folder."""
  fields = about(path, step).get("config")
  beside = path.parent / "config.json"
  try:
    if fields is None:
      fields = json.loads(beside.read_text())
    return config_from(fields["model"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UsageError(f"{path}: no config of a model: {error}") from error
