"""Attention among the tokens of an image, and its largest logit."""

import jax
import jax.numpy as jnp

from collective_mm.mesh import vary_alike
from models import attention_kernel
from models.norm import layer_norm
from models.vit_config import ViTConfig


def can_fuse(cfg: ViTConfig, device_kind: str) -> bool:
  """Whether the kernel of `models.attention_kernel` can take this attention.

  It runs on TPUs, knows QK-norm without centring, and wants sizes that tile.
  """
  return (
    device_kind.startswith("TPU")
    and cfg.qk_norm
    and not cfg.norm_bias
    and attention_kernel.fits(tokens=cfg.tokens, head_dim=cfg.head_dim)
  )


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layer: dict[str, dict[str, jax.Array]],
  *,
  cfg: ViTConfig,
  fused: bool,
) -> tuple[jax.Array, jax.Array]:
  """Returns attention of this device's heads, and its largest logit.

      q, k, v[B * S, H * K] -> y[B * S, H * K]

  Args:
    q, k, v: projections, rows image by image and columns head by head.
    layer: holds "q_norm" and "k_norm" if the model has QK-norm.
    cfg: sizes of a head and of an image.
    fused: use the TPU kernel; see `can_fuse`.
  """
  heads = q.shape[-1] // cfg.head_dim
  if fused:
    shape = attention_kernel.Shape(cfg.tokens, heads, cfg.head_dim)
    scales = layer["q_norm"]["scale"], layer["k_norm"]["scale"]
    # A gradient must vary as its argument does: see `vary_alike`.
    arrays = vary_alike("model", q, k, v, *scales)
    y, logits = attention_kernel.fused_attention(*arrays, shape)
    return y, logits.max()
  dtype = q.dtype
  q, k, v = (x.reshape(-1, cfg.tokens, heads, cfg.head_dim) for x in (q, k, v))
  if cfg.qk_norm:
    q = layer_norm(q, layer["q_norm"]).astype(dtype)
    k = layer_norm(k, layer["k_norm"]).astype(dtype)
  y, max_logit = attend(q, k, v)
  return y.reshape(-1, y.shape[-1]), max_logit


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns `softmax(q k.T / sqrt(K)) v` with heads side by side.

      q[B, Q, H, K], k[B, S, H, K], v[B, S, H, K] -> y[B, Q, H * K]

  Logits and softmax are in float32.

  Returns:
    `y` in the dtype of `q`, and the largest logit, a float32 scalar.
  """
  logits = jnp.einsum(
    "bqhk,bshk->bhqs", q, k, preferred_element_type=jnp.float32
  )
  logits = logits / q.shape[-1] ** 0.5
  weights = jax.nn.softmax(logits).astype(q.dtype)
  y = jnp.einsum(
    "bhqs,bshk->bqhk", weights, v, preferred_element_type=jnp.float32
  )
  return y.astype(q.dtype).reshape(*y.shape[:2], -1), logits.max()
