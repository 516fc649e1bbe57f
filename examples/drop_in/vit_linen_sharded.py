"""The transformer of `vit_linen`, its Dense layers sharded and overlapped.

Over the axis "model" of the mesh that `jax.set_mesh` has set.
"""

import flax.linen as nn
import jax

from collective_mm.flax.linen import ColumnDense, RowDense
from examples.drop_in.vit_linen import Config


class Attention(nn.Module):
  """Attention of every token to every token."""

  cfg: Config

  @nn.compact
  def __call__(self, x):
    cfg = self.cfg
    heads = (cfg.heads, cfg.width // cfg.heads)
    q, k, v = ColumnDense.fused(
      x,
      ColumnDense(heads, dtype=cfg.dtype, name="query"),
      ColumnDense(heads, dtype=cfg.dtype, name="key"),
      ColumnDense(heads, dtype=cfg.dtype, name="value"),
    )
    o = jax.nn.dot_product_attention(q, k, v)
    return RowDense(cfg.width, axis=(-2, -1), name="out", dtype=cfg.dtype)(o)


class MLP(nn.Module):
  """Two layers with a GELU between them."""

  cfg: Config

  @nn.compact
  def __call__(self, x):
    up = ColumnDense(self.cfg.hidden, dtype=self.cfg.dtype)
    return RowDense(self.cfg.width, dtype=self.cfg.dtype)(
      ColumnDense.fused(x, up, epilogue=nn.gelu)
    )


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
