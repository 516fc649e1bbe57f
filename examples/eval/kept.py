"""Trees of arrays and models in files, written whole or not at all."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from models.params import init_params
from models.vit_config import ViTConfig


def save_tree(path: Path, tree: Any) -> None:
  """Writes the leaves of a tree to an `.npz` file, by their paths."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(f".{os.getpid()}.tmp")
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
  with partial.open("wb") as file:
    np.savez(file, **{jax.tree_util.keystr(p): x for p, x in leaves})
  os.replace(partial, path)


def load_tree(path: Path, like: Any) -> Any:
  """Returns the tree that `save_tree` wrote.

  Args:
    path: the file.
    like: a tree of the same structure, with leaves of the same shapes.

  Raises:
    ValueError: if a leaf is missing or has another shape.
  """
  with np.load(path) as file:

    def read(key, leaf):
      name = jax.tree_util.keystr(key)
      found = file[name] if name in file.files else None
      if found is None or found.shape != leaf.shape:
        raise ValueError(
          f"{path} must hold {name} of shape {leaf.shape}, got "
          f"{'none' if found is None else found.shape}"
        )
      return found

    return jax.tree_util.tree_map_with_path(read, like)


def shapes_of(cfg: ViTConfig) -> dict:
  """Returns the shapes of the parameters of a ViT."""
  return jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))


def save_model(folder: Path, cfg: ViTConfig, params: dict) -> None:
  """Writes a model to a folder: `model.npz`, then `model.json`."""
  save_tree(folder / "model.npz", params)
  partial = folder / "model.tmp"
  partial.write_text(json.dumps(dataclasses.asdict(cfg), indent=2) + "\n")
  os.replace(partial, folder / "model.json")


def load_model(folder: Path) -> tuple[ViTConfig, dict]:
  """Returns what `save_model` wrote.

  Raises:
    ValueError: if it does not fit together.
    OSError: if it is not there.
  """
  cfg = ViTConfig(**json.loads((folder / "model.json").read_text()))
  return cfg, load_tree(folder / "model.npz", shapes_of(cfg))
