"""Safetensors, both ways: our own names and timm's."""

import json
import re
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, numpy, safe_open

from examples.leaves import named, nested
from examples.weights.names import (
  TIMM,
  TIMM_BLOCK,
  as_params,
  check_public,
  config_fields,
  config_from,
  inferred,
  joined_positions,
  split_positions,
  stacked,
)
from models.vit_config import ViTConfig

_FORMAT = "collective_mm ViT 1"
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_LEAVES = {"weight": "kernel", "bias": "bias"}
# Heads of the models whose width says them: Table 1 of Dosovitskiy et al. 2021
# and Table 2 of Zhai et al. 2022.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16}


def read(path: Path, heads: int | None = None) -> tuple[ViTConfig, dict]:
  """Returns the config and the parameters, of our own or of timm's names.

  Args:
    path: a `.safetensors` file.
    heads: of a file of timm's, where neither its width nor a QK-norm tells.

  Raises:
    ValueError: if the file is neither; leaves that differ are listed.
  """
  try:
    with safe_open(path, framework="flax") as file:
      about = file.metadata() or {}
      arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
  except SafetensorError as error:
    raise ValueError(f"not a whole .safetensors file: {error}") from error
  if about.get("format") == _FORMAT:
    cfg = config_from(json.loads(about.get("config", "null")))
    return cfg, as_params(cfg, arrays)
  if "patch_embed.proj.weight" not in arrays:
    raise ValueError(
      "neither our own file nor one of timm's ViTs, which have a "
      "patch_embed.proj.weight"
    )
  return _from_timm(arrays, heads)


def write(path: Path, cfg: ViTConfig, params: dict) -> None:
  """Writes parameters by our names, such as `blocks/q/kernel`.

  The metadata is `{"format": "collective_mm ViT 1", "config": JSON}`.
  """
  leaves = {name: np.asarray(x) for name, x in named(params).items()}
  about = {"format": _FORMAT, "config": json.dumps(config_fields(cfg))}
  numpy.save_file(_contiguous(leaves), path, about)


def write_timm(path: Path, cfg: ViTConfig, params: dict) -> None:
  """Writes parameters by timm's names.

  Raises:
    ValueError: if there are none for some of them.
  """
  numpy.save_file(_contiguous(to_timm(cfg, params)), path, {"format": "pt"})


def to_timm(cfg: ViTConfig, params: dict) -> dict[str, np.ndarray]:
  """Returns the state dict of timm's `VisionTransformer`."""
  check_public(cfg)
  if cfg.pre_logits:
    raise ValueError("timm has no names for the layer before the classifier")
  leaves = {name: np.asarray(x) for name, x in named(params).items()}
  joined_positions(leaves)
  kernel = leaves.pop("embed/kernel")
  kernel = kernel.reshape(cfg.patch, cfg.patch, cfg.channels, -1)
  state = {
    "patch_embed.proj.weight": kernel.transpose(3, 2, 0, 1),
    "patch_embed.proj.bias": leaves.pop("embed/bias"),
    "pos_embed": leaves.pop("embed/position"),
  }
  if cfg.cls:
    state["cls_token"] = leaves.pop("embed/cls")
  if cfg.pool:
    state["attn_pool.latent"] = leaves.pop("pool/probe")[None, None]
  for theirs, ours in TIMM.items():
    state |= _joined(theirs, ours, leaves)
  blocks = nested(leaves).get("blocks", {})
  for i in range(cfg.depth):
    block = named(jax.tree.map(lambda x, i=i: x[i], blocks))
    for theirs, ours in TIMM_BLOCK.items():
      state |= _joined(f"blocks.{i}.{theirs}", ours, block)
  return state


def _joined(theirs, ours, leaves):
  """One layer of theirs, of one or several of ours, if the model has it."""
  if f"{ours[0]}/scale" in leaves:
    scale, bias = (leaves[f"{ours[0]}/{leaf}"] for leaf in ("scale", "bias"))
    return {f"{theirs}.weight": scale, f"{theirs}.bias": bias}
  if f"{ours[0]}/kernel" not in leaves:
    return {}
  kernels = [leaves[f"{layer}/kernel"].T for layer in ours]
  biases = [leaves[f"{layer}/bias"] for layer in ours]
  return {
    f"{theirs}.weight": np.concatenate(kernels),
    f"{theirs}.bias": np.concatenate(biases),
  }


def _from_timm(arrays, heads):
  state = dict(arrays)
  try:
    kernel = state.pop("patch_embed.proj.weight")
    width, channels, patch, _ = kernel.shape
    leaves = {
      "embed/kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, width),
      "embed/bias": state.pop("patch_embed.proj.bias"),
      "embed/position": state.pop("pos_embed"),
    }
  except (KeyError, ValueError) as error:
    raise ValueError(f"not one of timm's ViTs: {error}") from error
  for theirs, ours in (
    ("cls_token", "embed/cls"),
    ("attn_pool.latent", "pool/probe"),
  ):
    if theirs in state:
      leaves[ours] = state.pop(theirs).reshape(-1)
  rows = {}
  for name, x in state.items():
    if block := _BLOCK.fullmatch(name):
      for ours, part in _split(block[2], x, TIMM_BLOCK).items():
        rows.setdefault(ours, {})[int(block[1])] = part
    else:
      leaves |= _split(name, x, TIMM)
  leaves |= stacked(rows)
  split_positions(leaves)
  if "blocks/mlp_in/kernel" not in leaves:
    raise ValueError("no blocks.0.mlp.fc1: not one of timm's ViTs")
  norm = leaves.get("blocks/q_norm/scale")
  if norm is not None:
    heads = width // norm.shape[-1]
  heads = heads or _HEADS.get(width)
  if heads is None:
    raise ValueError(f"no telling how many heads width {width} has: --heads=N")
  cfg = inferred(
    leaves, heads=heads, patch=patch, channels=channels, gelu="exact"
  )
  return cfg, as_params(cfg, leaves)


def _split(name, x, table):
  """Our leaves of one of theirs; an unknown one stays as it is."""
  layer, _, leaf = name.rpartition(".")
  if layer not in table or leaf not in _LEAVES:
    return {name: x}
  ours = table[layer]
  if x.ndim == 1 and "norm" in layer:
    leaf = {"weight": "scale"}.get(leaf, leaf)
  else:
    leaf, x = _LEAVES[leaf], x.T
  parts = np.split(x, len(ours), axis=-1)
  return {f"{o}/{leaf}": part for o, part in zip(ours, parts, strict=True)}


def _contiguous(arrays):
  return {name: np.ascontiguousarray(x) for name, x in arrays.items()}
