"""A Llama-style decoder in Flax nnx: RMSNorm, RoPE, grouped queries, SwiGLU."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The shape of the model; the defaults are Llama-3 8B's.

  Attributes:
    vocabulary: tokens that there are.
    depth: blocks.
    width: features between blocks.
    hidden: features inside the MLP.
    heads: heads of queries.
    kv_heads: heads of keys and values.
    head_dim: features of a head.
    rope_base: the longest wavelength of RoPE over 2 pi.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  vocabulary: int = 128256
  depth: int = 32
  width: int = 4096
  hidden: int = 14336
  heads: int = 32
  kv_heads: int = 8
  head_dim: int = 128
  rope_base: float = 500000.0
  dtype: jax.typing.DTypeLike = jnp.bfloat16
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @property
  def dtypes(self) -> dict[str, jax.typing.DTypeLike]:
    """Both dtypes as keyword arguments."""
    return {"dtype": self.dtype, "param_dtype": self.param_dtype}


def rope(x: jax.Array, base: float) -> jax.Array:
  """Turns pairs of features of `x[B, S, H, K]` by angles of their position."""
  half = x.shape[-1] // 2
  frequency = base ** (-jnp.arange(half) / half)
  angle = jnp.arange(x.shape[1])[:, None, None] * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  y = jnp.concatenate((a * cos - b * sin, a * sin + b * cos), axis=-1)
  return y.astype(x.dtype)


class Attention(nnx.Module):
  """Causal attention in which groups of queries share keys and values."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    def linear(d_in, d_out):
      return nnx.Linear(d_in, d_out, use_bias=False, **cfg.dtypes, rngs=rngs)

    self.cfg = cfg
    self.query = linear(cfg.width, cfg.heads * cfg.head_dim)
    self.key = linear(cfg.width, cfg.kv_heads * cfg.head_dim)
    self.value = linear(cfg.width, cfg.kv_heads * cfg.head_dim)
    self.out = linear(cfg.heads * cfg.head_dim, cfg.width)

  def __call__(self, x):
    q, k, v = self.query(x), self.key(x), self.value(x)
    q, k, v = (
      y.reshape(*y.shape[:2], -1, self.cfg.head_dim) for y in (q, k, v)
    )
    q, k = (rope(y, self.cfg.rope_base) for y in (q, k))
    o = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return self.out(o.reshape(*o.shape[:2], -1))


class MLP(nnx.Module):
  """SwiGLU."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    def linear(d_in, d_out):
      return nnx.Linear(d_in, d_out, use_bias=False, **cfg.dtypes, rngs=rngs)

    self.gate = linear(cfg.width, cfg.hidden)
    self.up = linear(cfg.width, cfg.hidden)
    self.down = linear(cfg.hidden, cfg.width)

  def __call__(self, x):
    return self.down(nnx.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
  """Attention and MLP, each behind a norm and beside the residual stream."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.attention_norm = nnx.RMSNorm(cfg.width, **cfg.dtypes, rngs=rngs)
    self.attention = Attention(cfg, rngs=rngs)
    self.mlp_norm = nnx.RMSNorm(cfg.width, **cfg.dtypes, rngs=rngs)
    self.mlp = MLP(cfg, rngs=rngs)

  def __call__(self, x):
    x = x + self.attention(self.attention_norm(x))
    return x + self.mlp(self.mlp_norm(x))


class Llama(nnx.Module):
  """The decoder: tokens `[B, S]` to logits `[B, S, V]`."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.embed = nnx.Embed(cfg.vocabulary, cfg.width, **cfg.dtypes, rngs=rngs)
    self.blocks = nnx.List([Block(cfg, rngs=rngs) for _ in range(cfg.depth)])
    self.norm = nnx.RMSNorm(cfg.width, **cfg.dtypes, rngs=rngs)

  def __call__(self, tokens):
    x = self.embed(tokens)
    for block in self.blocks:
      x = block(x)
    return self.embed.attend(self.norm(x))
