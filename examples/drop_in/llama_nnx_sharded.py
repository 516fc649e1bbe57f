"""The decoder of `llama_nnx` with its linear layers sharded and overlapped.

`ring` is what those layers take besides: `mesh`, `axis_name`, `schedule`, ...
"""

import jax
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from collective_mm.blocks import tp_attend
from collective_mm.flax.nnx import ColumnDense, RowDense
from examples.drop_in.llama_nnx import Config, rope


class Attention(nnx.Module):
  """Causal attention in which groups of queries share keys and values."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs, **ring):
    # Sends of layers this narrow outlast their products: more are under way.
    ring = {"chunks": 2} | ring

    def linear(layer, d_in, d_out):
      return layer(d_in, d_out, use_bias=False, **cfg.dtypes, rngs=rngs, **ring)

    self.cfg = cfg
    self.query = linear(ColumnDense, cfg.width, cfg.heads * cfg.head_dim)
    self.key = linear(ColumnDense, cfg.width, cfg.kv_heads * cfg.head_dim)
    self.value = linear(ColumnDense, cfg.width, cfg.kv_heads * cfg.head_dim)
    self.out = linear(RowDense, cfg.heads * cfg.head_dim, cfg.width)

  def __call__(self, x):
    qkv = ColumnDense.fused(x, self.query, self.key, self.value)
    where = {"mesh": self.out.mesh, "axis_name": self.out.axis_name}
    return self.out(tp_attend(self.attend, *qkv, **where))

  def attend(self, q, k, v):
    if k.shape[-1] % self.cfg.head_dim:
      raise ValueError(
        "the model axis must divide the key heads, got "
        f"{k.shape[-1]} features a device of heads of {self.cfg.head_dim}"
      )
    # As the ring wrote it: the compiler would turn it, for a slower gradient.
    v = with_layout_constraint(v, Layout((0, 1, 2)))
    q, k, v = (
      y.reshape(*y.shape[:2], -1, self.cfg.head_dim) for y in (q, k, v)
    )
    q, k = (rope(y, self.cfg.rope_base) for y in (q, k))
    o = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return o.reshape(*o.shape[:2], -1)


def swiglu(gate, up):
  """The activation; a function of its own, so that jax traces it once."""
  return nnx.silu(gate) * up


class MLP(nnx.Module):
  """SwiGLU."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs, **ring):
    def linear(layer, d_in, d_out):
      return layer(d_in, d_out, use_bias=False, **cfg.dtypes, rngs=rngs, **ring)

    self.gate = linear(ColumnDense, cfg.width, cfg.hidden)
    self.up = linear(ColumnDense, cfg.width, cfg.hidden)
    self.down = linear(RowDense, cfg.hidden, cfg.width)

  def __call__(self, x):
    h = ColumnDense.fused(x, self.gate, self.up, epilogue=swiglu)
    return self.down(h)


class Block(nnx.Module):
  """Attention and MLP, each behind a norm and beside the residual stream."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs, **ring):
    self.attention_norm = nnx.RMSNorm(cfg.width, **cfg.dtypes, rngs=rngs)
    self.attention = Attention(cfg, rngs=rngs, **ring)
    self.mlp_norm = nnx.RMSNorm(cfg.width, **cfg.dtypes, rngs=rngs)
    self.mlp = MLP(cfg, rngs=rngs, **ring)

  def __call__(self, x):
    x = x + self.attention(self.attention_norm(x))
    return x + self.mlp(self.mlp_norm(x))


class Llama(nnx.Module):
  """The decoder: tokens `[B, S]` to logits `[B, S, V]`."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs, **ring):
    self.embed = nnx.Embed(cfg.vocabulary, cfg.width, **cfg.dtypes, rngs=rngs)
    self.blocks = nnx.List(
      [Block(cfg, rngs=rngs, **ring) for _ in range(cfg.depth)]
    )
    self.norm = nnx.RMSNorm(cfg.width, **cfg.dtypes, rngs=rngs)

  def __call__(self, tokens):
    x = self.embed(tokens)
    for block in self.blocks:
      x = block(x)
    return self.embed.attend(self.norm(x))
