"""A vision transformer in Flax linen: scanned blocks, each recomputed."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The shape of the model; the defaults are ViT-B/16's.

  Attributes:
    depth: blocks.
    width: features between blocks.
    hidden: features inside the MLP.
    heads: heads of attention.
    patch: side of a patch, pixels.
    classes: labels that there are.
    dtype: of the computation.
  """

  depth: int = 12
  width: int = 768
  hidden: int = 3072
  heads: int = 12
  patch: int = 16
  classes: int = 1000
  dtype: jax.typing.DTypeLike = jnp.float32


class Attention(nn.Module):
  """Attention of every token to every token."""

  cfg: Config

  @nn.compact
  def __call__(self, x):
    cfg = self.cfg
    heads = (cfg.heads, cfg.width // cfg.heads)
    q = nn.DenseGeneral(heads, dtype=cfg.dtype, name="query")(x)
    k = nn.DenseGeneral(heads, dtype=cfg.dtype, name="key")(x)
    v = nn.DenseGeneral(heads, dtype=cfg.dtype, name="value")(x)
    o = jax.nn.dot_product_attention(q, k, v)
    return nn.DenseGeneral(
      cfg.width, axis=(-2, -1), dtype=cfg.dtype, name="out"
    )(o)


class MLP(nn.Module):
  """Two layers with a GELU between them."""

  cfg: Config

  @nn.compact
  def __call__(self, x):
    h = nn.gelu(nn.Dense(self.cfg.hidden, dtype=self.cfg.dtype)(x))
    return nn.Dense(self.cfg.width, dtype=self.cfg.dtype)(h)


class Block(nn.Module):
  """Attention and MLP, each behind a norm and beside the residual stream."""

  cfg: Config

  @nn.compact
  def __call__(self, x, _):
    x = x + Attention(self.cfg)(nn.LayerNorm(dtype=self.cfg.dtype)(x))
    x = x + MLP(self.cfg)(nn.LayerNorm(dtype=self.cfg.dtype)(x))
    return x, None


class ViT(nn.Module):
  """The model: images `[B, H, W, C]` to logits `[B, classes]`."""

  cfg: Config

  @nn.compact
  def __call__(self, images):
    cfg, p = self.cfg, self.cfg.patch
    x = nn.Conv(cfg.width, (p, p), (p, p), dtype=cfg.dtype, name="embed")(
      images
    )
    x = x.reshape(x.shape[0], -1, cfg.width)
    init = nn.initializers.normal(0.02)
    x = x + self.param("positions", init, (1, *x.shape[1:]))
    blocks = nn.scan(
      nn.remat(Block, prevent_cse=False),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=cfg.depth,
    )
    x, _ = blocks(cfg, name="blocks")(x.astype(cfg.dtype), None)
    x = nn.LayerNorm(dtype=cfg.dtype)(x).mean(axis=1)
    return nn.Dense(cfg.classes, name="head")(x)
