"""The ViT on one device in plain jnp: what the sharded model must equal."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.patches import patchify
from models.vit_config import ViTConfig

_EPSILON = 1e-6  # flax LayerNorm's default, which big_vision keeps

Place = Callable[[str, jax.Array], jax.Array]


class _Model(NamedTuple):
  """What every part of the forward pass knows."""

  cfg: ViTConfig
  product_dtype: jnp.dtype
  place: Place


def forward(
  params: dict,
  images: jax.Array,
  cfg: ViTConfig,
  *,
  compute_dtype: jnp.dtype = jnp.float32,
  product_dtype: jnp.dtype = jnp.float32,
  remat: bool = False,
  place: Place = lambda name, x: x,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Classifies images, one line of the paper after the other.

      images[B, H, W, C] -> x[B, S, D], L blocks -> pooled[B, D] -> [B, V]

  A parallel block (paper, section "Model Architecture") is

      y = norm(x);  x = x + MLP(y) + Attention(y)

  and a sequential one `x = x + Attention(norm(x)); x = x + MLP(norm(x))`.
  Attention is `softmax(norm(q) norm(k)^T / sqrt(K)) v`, its norms over the
  `K = D / H` features of a head, and the MLP has a GELU.

  Operands of matmuls and the tokens between blocks are rounded to
  `compute_dtype`, products with weights to `product_dtype`; norms, softmax,
  GELU and biases are float32. Where a float32 matmul is not one by default
  (TPUs, some GPUs), call under `jax.default_matmul_precision("highest")`.

  Args:
    params: the tree of `models.params.init_params`.
    images: `[B, H, W, C]` in [-1, 1].
    cfg: the shape that `params` were made with; static under `jax.jit`.
    compute_dtype: of matmul operands and of the tokens between blocks.
    product_dtype: of products with weights, before their biases.
    remat: recompute each block in backward instead of saving its inside.
    place: called with a name and an array, and returns the array, which it may
      constrain to a sharding: "tokens" are `x` between blocks, "gathered" what
      the first products of a block read, a layer's name is its kernel, and
      "q operand" and "q product" what it is multiplied with and what comes of
      it.

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

  model = _Model(cfg, product_dtype, place)
  block = functools.partial(_block, model=model)
  if remat:
    block = jax.checkpoint(block)
  patches = patchify(images, cfg.patch).astype(compute_dtype)
  x = _dense(patches, params, "embed", model) + params["embed"]["position"]
  if cfg.cls:
    cls = jnp.broadcast_to(params["embed"]["cls"], (len(x), 1, cfg.width))
    x = jnp.concatenate([cls, x], axis=1)
  x = place("tokens", x.astype(compute_dtype))
  x, max_logits = jax.lax.scan(block, x, params["blocks"])
  x = _norm(x, params["norm"])  # float32 from here on

  if cfg.pool:
    pre_logits = _pool(x.astype(compute_dtype), params["pool"], model)
  elif cfg.cls:
    pre_logits = x[:, 0]
  else:
    pre_logits = x.mean(axis=1)
  if cfg.pre_logits:
    pre_logits = pre_logits.astype(compute_dtype)
    pre_logits = _dense(pre_logits, params, "pre_logits", model)
    pre_logits = jnp.tanh(pre_logits.astype(jnp.float32))
  logits = pre_logits
  if cfg.classes:
    logits = _dense(pre_logits.astype(compute_dtype), params, "head", model)
  return logits, {
    "max_attention_logit": max_logits.max(),
    "pre_logits": pre_logits,
  }


def _block(x, layers, model):
  """One encoder block: the next `x[B, S, D]` and its largest logit."""
  place = model.place
  y = place("gathered", _norm(x, layers["norm"]).astype(x.dtype))
  attended, max_logit = _self_attention(y, layers, model)
  if model.cfg.parallel:
    out = _mlp(y, layers, model, also=attended)
  else:
    x = place("tokens", (x + attended).astype(x.dtype))
    y = place("gathered", _norm(x, layers["mlp_norm"]).astype(x.dtype))
    out = _mlp(y, layers, model)
  return place("tokens", (x + out).astype(x.dtype)), max_logit


def _self_attention(y, layers, model):
  q, k, v = (
    _heads(_dense(y, layers, name, model), model.cfg) for name in "qkv"
  )
  if model.cfg.qk_norm:
    q, k = _norm(q, layers["q_norm"]), _norm(k, layers["k_norm"])
  attended, max_logit = _attention(q, k, v, y.dtype)
  return _dense(attended, layers, "attention_out", model), max_logit


def _pool(x, pool, model):
  """Pools tokens by one attention query: `x[B, S, D] -> pooled[B, D]`."""
  probe = jnp.broadcast_to(pool["probe"], (len(x), 1, model.cfg.width))
  q = _heads(_dense(probe.astype(x.dtype), pool, "q", model), model.cfg)
  x = model.place("gathered", x)
  k, v = (_heads(_dense(x, pool, name, model), model.cfg) for name in "kv")
  attended, _ = _attention(q, k, v, x.dtype)
  pooled = _dense(attended, pool, "out", model).astype(x.dtype)
  y = _norm(pooled, pool["norm"]).astype(x.dtype)
  return (pooled + _mlp(y, pool, model))[:, 0]


def _attention(q, k, v, dtype):
  """Attends with `q[B, Q, H, K]` over `k, v[B, S, H, K]`, to `[B, Q, H*K]`."""
  q, k, v = (x.astype(dtype) for x in (q, k, v))
  logits = _einsum("bqhk,bshk->bhqs", q, k) / q.shape[-1] ** 0.5
  weights = jax.nn.softmax(logits).astype(dtype)
  attended = _einsum("bhqs,bshk->bqhk", weights, v).astype(dtype)
  return attended.reshape(*attended.shape[:2], -1), logits.max()


def _heads(x, cfg):
  return x.reshape(*x.shape[:-1], cfg.heads, cfg.head_dim)


def _mlp(y, layers, model, also=None):
  """The MLP, and `also` added to its product."""
  hidden = _dense(y, layers, "mlp_in", model).astype(jnp.float32)
  hidden = jax.nn.gelu(hidden, approximate=model.cfg.gelu == "tanh")
  hidden = hidden.astype(y.dtype)
  return _dense(hidden, layers, "mlp_out", model, also)


def _dense(x, layers, name, model, also=None):
  """`x @ kernel + bias` with operands in `x.dtype`."""
  layer = layers[name]
  kernel = model.place(name, layer["kernel"].astype(x.dtype))
  x = model.place(f"{name} operand", x)
  y = _einsum("...i,io->...o", x, kernel, model.product_dtype)
  if also is not None:
    y = also + y
  y = model.place(f"{name} product", y)
  return y + layer["bias"] if "bias" in layer else y


def _einsum(subscripts, a, b, dtype=jnp.float32):
  return jnp.einsum(subscripts, a, b, preferred_element_type=dtype)


def _norm(x, norm):
  """LayerNorm over the last dim, in float32; without a bias, uncentred too."""
  x = x.astype(jnp.float32)
  if "bias" in norm:
    x = x - x.mean(axis=-1, keepdims=True)
  variance = jnp.square(x).mean(axis=-1, keepdims=True)
  y = x * jax.lax.rsqrt(variance + _EPSILON) * norm["scale"]
  return y + norm["bias"] if "bias" in norm else y
