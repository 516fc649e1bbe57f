"""The ViT on one device in plain jnp: what the sharded model must equal."""

import functools

import jax
import jax.numpy as jnp

from models.patches import patchify
from models.vit_config import ViTConfig

_EPSILON = 1e-6  # flax LayerNorm's default, which big_vision keeps


def forward(
  params: dict,
  images: jax.Array,
  cfg: ViTConfig,
  *,
  compute_dtype: jnp.dtype = jnp.float32,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Classifies images, one line of the paper after the other.

      images[B, H, W, C] -> x[B, S, D], L blocks -> pooled[B, D] -> [B, V]

  A parallel block (paper, section "Model Architecture") is

      y = norm(x);  x = x + MLP(y) + Attention(y)

  and a sequential one `x = x + Attention(norm(x)); x = x + MLP(norm(x))`.
  Attention is `softmax(norm(q) norm(k)^T / sqrt(K)) v`, its norms over the
  `K = D / H` features of a head, and the MLP has the tanh form of GELU.

  Operands of matmuls and the tokens between blocks are rounded to
  `compute_dtype`; sums of products, norms, softmax, GELU and biases are
  float32. Where a float32 matmul is not one by default (TPUs, some GPUs), call
  under `jax.default_matmul_precision("highest")`.

  Args:
    params: the tree of `models.params.init_params`.
    images: `[B, H, W, C]` in [-1, 1].
    cfg: the shape that `params` were made with; static under `jax.jit`.
    compute_dtype: of matmul operands and of the tokens between blocks.

  Returns:
    The logits `[B, V]`, or the pre-logits if `cfg.classes` is 0, in float32,
    and a dict of intermediates:
      `"max_attention_logit"`: float32 scalar, the largest input to a softmax in
        any block, image and head, pooling apart.
      `"pre_logits"`: `[B, D]` float32, what the classifier sees.

  Raises:
    ValueError: if `images` do not have the size in `cfg`.
  """
  expected = (cfg.image, cfg.image, cfg.channels)
  if images.ndim != 4 or images.shape[1:] != expected:
    raise ValueError(
      f"images must be [B, {cfg.image}, {cfg.image}, {cfg.channels}], "
      f"got images.shape={images.shape}"
    )

  block = functools.partial(_block, cfg=cfg)
  embed = params["embed"]
  patches = patchify(images, cfg.patch).astype(compute_dtype)
  x = _dense(patches, embed) + embed["position"]
  x, max_logits = jax.lax.scan(block, x.astype(compute_dtype), params["blocks"])
  x = _norm(x, params["norm"])  # float32 from here on

  if cfg.pool:
    pre_logits = _pool(x.astype(compute_dtype), params["pool"], cfg)
  else:
    pre_logits = x.mean(axis=1)
  logits = pre_logits
  if cfg.classes:
    logits = _dense(pre_logits.astype(compute_dtype), params["head"])
  return logits, {
    "max_attention_logit": max_logits.max(),
    "pre_logits": pre_logits,
  }


def _block(x, layer, cfg):
  """One encoder block: the next `x[B, S, D]` and its largest logit."""
  y = _norm(x, layer["norm"]).astype(x.dtype)
  attended, max_logit = _self_attention(y, layer, cfg)
  if cfg.parallel:
    return (x + attended + _mlp(y, layer)).astype(x.dtype), max_logit
  x = (x + attended).astype(x.dtype)
  y = _norm(x, layer["mlp_norm"]).astype(x.dtype)
  return (x + _mlp(y, layer)).astype(x.dtype), max_logit


def _self_attention(y, layer, cfg):
  q, k, v = (_heads(_dense(y, layer[name]), cfg) for name in ("q", "k", "v"))
  if cfg.qk_norm:
    q, k = _norm(q, layer["q_norm"]), _norm(k, layer["k_norm"])
  attended, max_logit = _attention(q, k, v, y.dtype)
  return _dense(attended, layer["attention_out"]), max_logit


def _pool(x, pool, cfg):
  """Pools tokens by one attention query: `x[B, S, D] -> pooled[B, D]`."""
  probe = jnp.broadcast_to(pool["probe"], (len(x), 1, cfg.width))
  q = _heads(_dense(probe.astype(x.dtype), pool["q"]), cfg)
  k, v = (_heads(_dense(x, pool[name]), cfg) for name in ("k", "v"))
  attended, _ = _attention(q, k, v, x.dtype)
  pooled = _dense(attended, pool["out"]).astype(x.dtype)
  y = _norm(pooled, pool["norm"]).astype(x.dtype)
  return (pooled + _mlp(y, pool))[:, 0]


def _attention(q, k, v, dtype):
  """Attends with `q[B, Q, H, K]` over `k, v[B, S, H, K]`, to `[B, Q, H*K]`."""
  q, k, v = (x.astype(dtype) for x in (q, k, v))
  logits = _einsum("bqhk,bshk->bhqs", q, k) / q.shape[-1] ** 0.5
  weights = jax.nn.softmax(logits).astype(dtype)
  attended = _einsum("bhqs,bshk->bqhk", weights, v).astype(dtype)
  return attended.reshape(*attended.shape[:2], -1), logits.max()


def _heads(x, cfg):
  return x.reshape(*x.shape[:-1], cfg.heads, cfg.head_dim)


def _mlp(y, layer):
  hidden = jax.nn.gelu(_dense(y, layer["mlp_in"]), approximate=True)
  return _dense(hidden.astype(y.dtype), layer["mlp_out"])


def _dense(x, layer):
  """`x @ kernel + bias` with operands in `x.dtype`; the result is float32."""
  y = _einsum("...i,io->...o", x, layer["kernel"].astype(x.dtype))
  return y + layer["bias"] if "bias" in layer else y


def _einsum(subscripts, a, b):
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _norm(x, norm):
  """LayerNorm over the last dim, in float32; without a bias, uncentred too."""
  x = x.astype(jnp.float32)
  if "bias" in norm:
    x = x - x.mean(axis=-1, keepdims=True)
  variance = jnp.square(x).mean(axis=-1, keepdims=True)
  y = x * jax.lax.rsqrt(variance + _EPSILON) * norm["scale"]
  return y + norm["bias"] if "bias" in norm else y
