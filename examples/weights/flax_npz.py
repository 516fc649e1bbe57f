"""Public `.npz` weights of big_vision and vision_transformer, both ways."""

import re
from pathlib import Path

import ml_dtypes
import numpy as np

from examples.leaves import named
from examples.weights.names import (
  FLAX,
  FLAX_BLOCK,
  FLAX_LEAVES,
  FLAX_OLD,
  as_params,
  check_public,
  inferred,
  joined_positions,
  split_positions,
  stacked,
)
from models.vit_config import ViTConfig

# Before the names of the image tower, in the order in which they are looked
# for: of a two-tower model, a training state, big_vision, vision_transformer.
_PREFIXES = ("params/img/", "opt/target/", "params/", "")
_OLD_POSITION = "Transformer/posembed_input/pos_embedding"
_BLOCK = re.compile(r"Transformer/encoderblock(?:_(\d+))?/(.+)")


def read(path: Path) -> tuple[ViTConfig, dict]:
  """Returns the config that the shapes tell, and the parameters in float32.

  Nothing in the file is run: arrays of Python objects are refused. Blocks may
  stand one by one or stacked. What is not of the image tower is left out.

  Raises:
    ValueError: if the file is no such `.npz`; leaves that differ are listed.
  """
  try:
    # Opened here: NumPy leaves open what it cannot read.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
      if damaged := file.zip.testzip():  # NumPy itself does not look
        raise ValueError(f"{damaged} is damaged")
      arrays = {name: _floats(file[name]) for name in file.files}
  except (OSError, ValueError):
    raise
  except Exception as error:  # NumPy passes on whatever unpacking meets
    raise ValueError(f"not a whole .npz file: {error}") from error
  for prefix in _PREFIXES:
    if f"{prefix}embedding/kernel" in arrays:
      break
  else:
    raise ValueError("no embedding/kernel: not a ViT of big_vision's naming")
  arrays = {
    name.removeprefix(prefix): x
    for name, x in arrays.items()
    if name.startswith(prefix)
  }
  leaves = _ours(arrays)
  if leaves["embed/kernel"].ndim != 4:
    raise ValueError("embedding/kernel must be [patch, patch, C, D]")
  split_positions(leaves)
  patch, _, channels, _ = leaves["embed/kernel"].shape
  query = leaves["blocks/q/kernel"]
  cfg = inferred(
    leaves,
    heads=query.shape[-2],
    patch=patch,
    channels=channels,
    gelu="tanh",
  )
  return cfg, as_params(cfg, leaves)


def write(
  path: Path, cfg: ViTConfig, params: dict, *, scanned: bool = False
) -> None:
  """Writes parameters as vision_transformer would, or as big_vision.

  The former if there is a class token, since only its positions count it.

  Args:
    path: a `.npz` file.
    cfg: the model.
    params: the tree of `init_params`.
    scanned: blocks in one array each, as big_vision's scan leaves them.

  Raises:
    ValueError: if the naming has no names for some of them.
  """
  np.savez(path, **public(cfg, params, scanned=scanned))


def public(
  cfg: ViTConfig, params: dict, *, scanned: bool = False
) -> dict[str, np.ndarray]:
  """Returns the arrays that `write` writes, by name."""
  check_public(cfg)
  if cfg.qk_norm:
    raise ValueError("big_vision has no names for QK-norm")
  if scanned and cfg.cls:
    raise ValueError("scanned blocks and a class token are of two namings")
  leaves = {name: np.asarray(x) for name, x in named(params).items()}
  joined_positions(leaves)
  arrays = {}
  for name, x in leaves.items():
    if name in FLAX_LEAVES:
      arrays[FLAX_LEAVES[name]] = x
      continue
    layer, leaf = name.rsplit("/", 1)
    x = _flax_shape(layer.split("/")[-1], leaf, x, cfg)
    if not layer.startswith("blocks/"):
      arrays[f"{FLAX[layer]}/{leaf}"] = x
      continue
    inner = f"{FLAX_BLOCK[layer.removeprefix('blocks/')]}/{leaf}"
    if scanned:
      arrays[f"Transformer/encoderblock/{inner}"] = x
    else:
      for i, row in enumerate(x):
        arrays[f"Transformer/encoderblock_{i}/{inner}"] = row
  if "MAPHead_0/probe" in arrays:
    arrays["MAPHead_0/probe"] = arrays["MAPHead_0/probe"][None, None]
  if not cfg.cls:
    return {f"params/{name}": x for name, x in arrays.items()}
  new = {new: old for old, new in FLAX_OLD.items()}
  arrays[_OLD_POSITION] = arrays.pop("pos_embedding")
  return {_renamed_block(name, new): x for name, x in arrays.items()}


def _ours(arrays):
  """By our names, blocks stacked; unknown names stay as they are."""
  layers = {theirs: ours for ours, theirs in FLAX.items()}
  blocks = {theirs: ours for ours, theirs in FLAX_BLOCK.items()}
  leaves = {theirs: ours for ours, theirs in FLAX_LEAVES.items()}
  leaves[_OLD_POSITION] = "embed/position"
  found, rows = {}, {}
  for name, x in arrays.items():
    name = _renamed_block(name, FLAX_OLD)
    block = _BLOCK.fullmatch(name)
    layer, _, leaf = (block[2] if block else name).rpartition("/")
    if block:
      ours = f"{blocks.get(layer, layer)}/{leaf}"
      if block[1] is None:
        found[f"blocks/{ours}"] = x
      else:
        rows.setdefault(ours, {})[int(block[1])] = x
    elif name in leaves:
      found[leaves[name]] = x
    else:
      found[f"{layers[layer]}/{leaf}" if layer in layers else name] = x
  found |= stacked(rows)
  for name in ("embed/position", "blocks/q/kernel", "blocks/mlp_in/kernel"):
    if name not in found:
      raise ValueError(f"no {name}: not a ViT of big_vision's naming")
  return found


def _renamed_block(name, table):
  if not _BLOCK.fullmatch(name):
    return name
  return "/".join(table.get(part, part) for part in name.split("/"))


def _flax_shape(layer, leaf, x, cfg):
  """flax keeps the heads apart, and the rows and columns of a patch."""
  heads = cfg.heads, cfg.head_dim
  if layer in ("q", "k", "v"):
    return x.reshape(*x.shape[:-1], *heads)
  if layer in ("attention_out", "out") and leaf == "kernel":
    return x.reshape(*x.shape[:-2], *heads, x.shape[-1])
  if layer == "embed" and leaf == "kernel":
    return x.reshape(cfg.patch, cfg.patch, cfg.channels, -1)
  return x


def _floats(x):
  """big_vision writes bfloat16 as two bytes that NumPy has no name for."""
  if x.dtype == np.dtype("V2"):
    x = x.view(ml_dtypes.bfloat16)
  return x
