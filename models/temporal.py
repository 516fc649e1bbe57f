"""A transformer over frames: one token each, a class token before them.

The temporal half of the factorised encoder (Arnab et al. 2021), over the frozen
pre-logits of each frame (paper, section on video classification, appendix F).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import initializers

from models.norm import layer_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemporalConfig:
  """The sizes of one temporal transformer.

  The defaults are the paper's for Moments in Time, found by counting: one layer
  of width 2,048 over 32 frames and 339 classes has 63.7M parameters.

  Attributes:
    features: `D` of a frame, from the backbone.
    frames: `T`.
    classes: `V`.
    width: `W` of the transformer.
    depth: its layers.
    mlp: features between the two MLP layers.
    heads: of attention.

  Raises:
    ValueError: if a size is not positive, or the heads do not divide the width.
  """

  features: int
  frames: int = 32
  classes: int = 339
  width: int = 2048
  depth: int = 1
  mlp: int = 8192
  heads: int = 16

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise ValueError(
          f"{field.name} must be at least 1, got {getattr(self, field.name)}"
        )
    if self.width % self.heads:
      raise ValueError(
        f"heads must divide width: width={self.width} is not a multiple of "
        f"heads={self.heads}"
      )


def init(key: jax.Array, cfg: TemporalConfig) -> dict:
  """Draws the parameters, the head's kernel zero.

      embed   kernel[D, W], bias[W]
      class   [W], the class token
      position[T + 1, W]
      blocks  a list of: norm, mlp_norm [W]; q, k, v, attention_out [W, W];
              mlp_in [W, M], mlp_out [M, W], with biases all
      norm    [W]
      head    kernel[W, V], bias[V]

  Example:
    >>> shapes = jax.eval_shape(
    ...   lambda key: init(key, TemporalConfig(features=6144)),
    ...   jax.random.key(0),
    ... )
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))  # paper: 63.7M
    63711571
  """
  keys = iter(jax.random.split(key, 2 + 6 * cfg.depth))
  width, xavier = cfg.width, initializers.xavier_uniform()

  def dense(features_in, features_out):
    return {
      "kernel": xavier(next(keys), (features_in, features_out)),
      "bias": jnp.zeros(features_out),
    }

  def norm():
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

  def block():
    square = ("q", "k", "v", "attention_out")
    return {
      "norm": norm(),
      **{name: dense(width, width) for name in square},
      "mlp_norm": norm(),
      "mlp_in": dense(width, cfg.mlp),
      "mlp_out": dense(cfg.mlp, width),
    }

  return {
    "embed": dense(cfg.features, width),
    "class": jnp.zeros(width),
    "position": 0.02 * jax.random.normal(next(keys), (cfg.frames + 1, width)),
    "blocks": [block() for _ in range(cfg.depth)],
    "norm": norm(),
    "head": {
      "kernel": jnp.zeros((width, cfg.classes)),
      "bias": jnp.zeros(cfg.classes),
    },
  }


def classify(params: dict, frames: jax.Array, cfg: TemporalConfig) -> jax.Array:
  """Returns the logits of clips.

      frames[B, T, D] -> x[B, T + 1, W] -> the class token -> [B, V]

  Args:
    params: as drawn by `init`.
    frames: `[B, T, D]` features, in order of time.
    cfg: as `init` had it.

  Raises:
    ValueError: if `frames` are not `[B, T, D]` of the config.
  """
  if frames.ndim != 3 or frames.shape[1:] != (cfg.frames, cfg.features):
    raise ValueError(
      f"frames must be [B, {cfg.frames}, {cfg.features}], "
      f"got frames.shape={frames.shape}"
    )
  x = _dense(frames, params["embed"])
  first = jnp.broadcast_to(params["class"], (len(x), 1, cfg.width))
  x = jnp.concatenate((first, x), axis=1) + params["position"]
  for block in params["blocks"]:
    x = x + _attention(layer_norm(x, block["norm"]), block, cfg)
    hidden = _dense(layer_norm(x, block["mlp_norm"]), block["mlp_in"])
    x = x + _dense(jax.nn.gelu(hidden), block["mlp_out"])
  return _dense(layer_norm(x[:, 0], params["norm"]), params["head"])


def _attention(x, block, cfg):
  q, k, v = (
    _dense(x, block[name]).reshape(*x.shape[:2], cfg.heads, -1)
    for name in "qkv"
  )
  y = jax.nn.dot_product_attention(q, k, v)
  return _dense(y.reshape(x.shape), block["attention_out"])


def _dense(x, layer):
  return x @ layer["kernel"] + layer["bias"]
