"""The ViT family written plainly with flax.linen, as users of flax write it.

The same function as `models.vit` of the same parameters, on one device and
with flax's own layers: what `profiling.bench_vit` sets ours beside. Nothing in
it is tuned; `dtype` is what flax computes in, GELU and softmax included.
"""

import flax.linen as nn
import jax

from models.vit_config import ViTConfig


def to_linen(params: dict, cfg: ViTConfig) -> dict:
  """Returns the tree of `models.params.init_params` as variables of `ViT`.

  Raises:
    ValueError: if the model has a class token or pre-logits.
  """
  if cfg.cls or cfg.pre_logits:
    raise ValueError(
      f"the model must have no class token and no pre-logits, got {cfg.cls=}, "
      f"{cfg.pre_logits=}"
    )
  embed = params["embed"]
  window = (cfg.patch, cfg.patch, cfg.channels, cfg.width)
  renamed = {
    "embed": {
      "kernel": embed["kernel"].reshape(window),
      "bias": embed["bias"],
    },
    "position": embed["position"],
  }
  return {"params": params | renamed}


class _Layers(nn.Module):
  """The layers that blocks and pooling share.

  Attributes:
    cfg: the model's shape.
    dtype: of the computation.
  """

  cfg: ViTConfig
  dtype: jax.typing.DTypeLike

  def dense(self, x, features, name, use_bias=True):
    layer = nn.Dense(features, use_bias=use_bias, dtype=self.dtype, name=name)
    return layer(x)

  def norm(self, x, name):
    kind = nn.LayerNorm if self.cfg.norm_bias else nn.RMSNorm
    return kind(dtype=self.dtype, name=name)(x)

  def heads(self, x):
    return x.reshape(*x.shape[:-1], self.cfg.heads, self.cfg.head_dim)

  def attend(self, q, k, v):
    y = nn.dot_product_attention(q, k, v, dtype=self.dtype)
    return y.reshape(*y.shape[:-2], -1)

  def mlp(self, x):
    hidden = nn.gelu(self.dense(x, self.cfg.mlp, "mlp_in"))
    return self.dense(hidden, self.cfg.width, "mlp_out")


class Block(_Layers):
  """One encoder block, parallel or sequential; for `nn.scan`."""

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    """x[B, S, D] -> x[B, S, D]."""
    cfg = self.cfg
    y = self.norm(x, "norm")
    q, k, v = (
      self.heads(self.dense(y, cfg.width, name, cfg.attention_bias))
      for name in "qkv"
    )
    if cfg.qk_norm:
      q, k = self.norm(q, "q_norm"), self.norm(k, "k_norm")
    has_bias = cfg.attention_bias and not cfg.parallel
    attended = self.dense(
      self.attend(q, k, v), cfg.width, "attention_out", has_bias
    )
    if cfg.parallel:
      return x + attended + self.mlp(y), None
    x = x + attended
    return x + self.mlp(self.norm(x, "mlp_norm")), None


class Pool(_Layers):
  """Attention pooling with one learnt query."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x[B, S, D] -> pooled[B, D]."""
    width = self.cfg.width
    probe = self.param("probe", nn.initializers.normal(), (width,))
    q = self.heads(self.dense(probe.astype(self.dtype), width, "q"))
    q = q[None, None].repeat(len(x), axis=0)
    k, v = (self.heads(self.dense(x, width, name)) for name in "kv")
    pooled = self.dense(self.attend(q, k, v), width, "out")
    return (pooled + self.mlp(self.norm(pooled, "norm")))[:, 0]


class ViT(_Layers):
  """The whole model.

  Attributes:
    remat: recompute each block in backward.
  """

  remat: bool = False

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """images[B, H, W, C] -> logits[B, V], or pre-logits without classes."""
    cfg, dtype = self.cfg, self.dtype
    window = (cfg.patch, cfg.patch)
    x = nn.Conv(
      cfg.width, window, window, padding="VALID", dtype=dtype, name="embed"
    )(images)
    x = x.reshape(len(x), cfg.tokens, cfg.width)
    position = self.param(
      "position", nn.initializers.normal(), (cfg.tokens, cfg.width)
    )
    x = x + position.astype(dtype)
    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=cfg.depth,
    )
    x, _ = blocks(cfg, dtype, name="blocks")(x, None)
    x = self.norm(x, "norm")
    x = Pool(cfg, dtype, name="pool")(x) if cfg.pool else x.mean(axis=1)
    return self.dense(x, cfg.classes, "head") if cfg.classes else x
