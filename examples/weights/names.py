"""What big_vision and timm call each layer of a sequential ViT with biases."""

import dataclasses
import math

import jax
import numpy as np

from examples.leaves import described, differences, named, nested
from models.params import init_params
from models.vit_config import ViTConfig

_MHA = "MultiHeadDotProductAttention_0"

# Our layers in flax's naming (big_vision models/vit.py); those of a block stand
# below `Transformer/encoderblock_I`, or below `Transformer/encoderblock` where
# a scan stacked them.
FLAX_BLOCK = {
  "norm": "LayerNorm_0",
  "q": f"{_MHA}/query",
  "k": f"{_MHA}/key",
  "v": f"{_MHA}/value",
  "attention_out": f"{_MHA}/out",
  "mlp_norm": "LayerNorm_1",
  "mlp_in": "MlpBlock_0/Dense_0",
  "mlp_out": "MlpBlock_0/Dense_1",
}
FLAX = {
  "embed": "embedding",
  "norm": "Transformer/encoder_norm",
  "pool/norm": "MAPHead_0/LayerNorm_0",
  "pool/q": f"MAPHead_0/{_MHA}/query",
  "pool/k": f"MAPHead_0/{_MHA}/key",
  "pool/v": f"MAPHead_0/{_MHA}/value",
  "pool/out": f"MAPHead_0/{_MHA}/out",
  "pool/mlp_in": "MAPHead_0/MlpBlock_0/Dense_0",
  "pool/mlp_out": "MAPHead_0/MlpBlock_0/Dense_1",
  "pre_logits": "pre_logits",
  "head": "head",
}
FLAX_LEAVES = {
  "embed/position": "pos_embedding",
  "embed/cls": "cls",
  "pool/probe": "MAPHead_0/probe",
}
# vision_transformer counts the modules of a block through.
FLAX_OLD = {
  "LayerNorm_2": "LayerNorm_1",
  "MultiHeadDotProductAttention_1": _MHA,
  "MlpBlock_3": "MlpBlock_0",
}

# Our layers in timm's (models/vision_transformer.py, layers/attention_pool.py);
# several of ours make one of theirs.
TIMM_BLOCK = {
  "norm1": ("norm",),
  "attn.qkv": ("q", "k", "v"),
  "attn.q_norm": ("q_norm",),
  "attn.k_norm": ("k_norm",),
  "attn.proj": ("attention_out",),
  "norm2": ("mlp_norm",),
  "mlp.fc1": ("mlp_in",),
  "mlp.fc2": ("mlp_out",),
}
TIMM = {
  "norm": ("norm",),
  "attn_pool.norm": ("pool/norm",),
  "attn_pool.q": ("pool/q",),
  "attn_pool.kv": ("pool/k", "pool/v"),
  "attn_pool.proj": ("pool/out",),
  "attn_pool.mlp.fc1": ("pool/mlp_in",),
  "attn_pool.mlp.fc2": ("pool/mlp_out",),
  "head": ("head",),
}


def check_public(cfg: ViTConfig) -> None:
  """Checks that public names exist for every parameter of a model.

  Raises:
    ValueError: for ViT-22B's block, which no public naming has.
  """
  wanted = {"parallel": False, "attention_bias": True, "norm_bias": True}
  for name, value in wanted.items():
    if getattr(cfg, name) is not value:
      raise ValueError(
        f"public names are for models with {name}={value}; write our own, to "
        "a .safetensors file"
      )


def split_positions(leaves: dict[str, np.ndarray]) -> None:
  """Makes the position embedding one of patches alone, in place.

  Where the class token has a position, the two are always added: so they are
  here.

  Raises:
    ValueError: if the patches do not lie on a square.
  """
  position = leaves["embed/position"]
  position = position.reshape(-1, position.shape[-1])
  cls = leaves.get("embed/cls")
  if cls is not None and math.isqrt(len(position)) ** 2 != len(position):
    leaves["embed/cls"] = cls.reshape(-1) + position[0]
    position = position[1:]
  if math.isqrt(len(position)) ** 2 != len(position):
    raise ValueError(f"{len(position)} positions are no square of patches")
  leaves["embed/position"] = position


def joined_positions(leaves: dict[str, np.ndarray]) -> None:
  """The inverse, in place: the class token's position is zero."""
  position = leaves["embed/position"]
  if "embed/cls" in leaves:
    position = np.concatenate([np.zeros_like(position[:1]), position])
    leaves["embed/cls"] = leaves["embed/cls"][None, None]
  leaves["embed/position"] = position[None]


def stacked(rows: dict[str, dict[int, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns each leaf of the blocks as one array, from its rows by block.

  Raises:
    ValueError: if a block lacks a leaf, or has one of another shape.
  """
  depth = 1 + max((max(by_index) for by_index in rows.values()), default=0)
  leaves = {}
  for name, by_index in rows.items():
    if len(by_index) != depth:
      missing = next(i for i in range(depth) if i not in by_index)
      raise ValueError(f"block {missing} of {depth} has no {name}")
    if len({x.shape for x in by_index.values()}) > 1:
      raise ValueError(f"{name} is not of one shape in all blocks")
    leaves[f"blocks/{name}"] = np.stack([by_index[i] for i in range(depth)])
  return leaves


def inferred(leaves: dict[str, np.ndarray], **known) -> ViTConfig:
  """Returns the config that the shapes of our `leaves` tell.

  Args:
    leaves: by our names; kernels `[in, out]`, blocks stacked.
    **known: what shapes do not tell: "heads", "patch", "channels" and "gelu".
  """
  depth, width, mlp = leaves["blocks/mlp_in/kernel"].shape
  side = math.isqrt(len(leaves["embed/position"]))
  head = leaves.get("head/bias")
  return ViTConfig(
    width=width,
    depth=depth,
    mlp=mlp,
    classes=0 if head is None else len(head),
    image=side * known["patch"],
    parallel=False,
    qk_norm="blocks/q_norm/scale" in leaves,
    attention_bias=True,
    norm_bias=True,
    pool="pool/probe" in leaves,
    cls="embed/cls" in leaves,
    pre_logits="pre_logits/kernel" in leaves,
    **known,
  )


def as_params(cfg: ViTConfig, leaves: dict[str, np.ndarray]) -> dict:
  """Returns the tree of `init_params` with `leaves` in it, in float32.

  Raises:
    ValueError: listing leaves that are missing, left over or of another size.
  """
  tree = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  shapes = named(tree)
  here = {name: described(x) for name, x in shapes.items()}
  there = {}
  for name, x in leaves.items():
    fits = name in shapes and x.size == math.prod(shapes[name].shape)
    there[name] = here[name] if fits else described(x)
  if differ := differences(there, here):
    raise ValueError(f"leaves do not make a ViT: {differ}")
  return nested(
    {
      name: np.asarray(leaves[name], np.float32).reshape(shape.shape)
      for name, shape in shapes.items()
    }
  )


def config_fields(cfg: ViTConfig) -> dict:
  """Returns the config as JSON."""
  return dataclasses.asdict(cfg)


def config_from(fields: dict) -> ViTConfig:
  """Rebuilds a config from its JSON.

  Raises:
    ValueError: if a field is missing or not one of `ViTConfig`.
  """
  try:
    return ViTConfig(**fields)
  except TypeError as error:
    raise ValueError(f"not the config of a ViT: {error}") from error
