"""The parameters of a ViT as one tree: their shapes, first values and count."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.nn import initializers

from models.vit_config import ViTConfig

Convention = Literal["all", "encoder", "matmul"]

_MLP_BIAS = initializers.normal(1e-6)


def init_params(
  key: jax.Array, cfg: ViTConfig, dtype: jnp.dtype = jnp.float32
) -> dict:
  """Draws the whole, unsharded parameter tree of one ViT.

  The blocks lie stacked on a leading dim of size `L`, for `lax.scan`; each
  layer is drawn as if it stood alone. With `K = D / H`:

      embed   kernel[P, D], bias[D], position[patches, D]
              cls[D]                                        if cls
      blocks  norm           [L, D]
              mlp_norm       [L, D]                         unless parallel
              q, k, v        kernel[L, D, H*K], bias[L, H*K]  (1)
              q_norm, k_norm [L, K]                         if qk_norm
              attention_out  kernel[L, H*K, D], bias[L, D]    (1), (2)
              mlp_in         kernel[L, D, F], bias[L, F]
              mlp_out        kernel[L, F, D], bias[L, D]
      norm    [D]
      pool    probe[D], norm[D], q, k, v and out: kernel[D, D], bias[D],
              mlp_in and mlp_out as in one block            if pool
      pre_logits  kernel[D, D], bias[D]                     if pre_logits
      head    kernel[D, V], bias[V]                         if classes

  (1) biases only if `attention_bias`; (2) and never in the parallel block,
  where the bias of `mlp_out` is the one output bias of both branches. A norm is
  a `scale` of the shape above, with a `bias` of that shape if `norm_bias`.

  The distributions are those of big_vision `models/vit.py`: Xavier-uniform
  kernels and probe, MLP biases `N(0, 1e-6^2)`, positions `N(0, 1/D)`,
  LeCun-normal patch and pre-logits kernels, a zero class token, a zero head
  kernel under `cfg.head_bias_init`, every other bias zero and every scale one.

  Args:
    key: a PRNG key; the key is consumed.
    cfg: the model's shape; static under `jax.jit`.
    dtype: of every leaf.

  Returns:
    The tree above. `jax.eval_shape` gives its shapes at no cost.
  """
  key_embed, key_blocks, key_pool = jax.random.split(key, 3)
  params = {
    "embed": _init_embed(key_embed, cfg, dtype),
    "blocks": _init_blocks(key_blocks, cfg, dtype),
    "norm": _norm((cfg.width,), cfg.norm_bias, dtype),
  }
  if cfg.pool:
    params["pool"] = _init_pool(key_pool, cfg, dtype)
  if cfg.pre_logits:
    # A key of its own, so that the other draws do not depend on the option.
    params["pre_logits"] = {
      "kernel": initializers.lecun_normal()(
        jax.random.fold_in(key_pool, 0), (cfg.width, cfg.width), dtype
      ),
      "bias": jnp.zeros((cfg.width,), dtype),
    }
  if cfg.classes:
    params["head"] = {
      "kernel": jnp.zeros((cfg.width, cfg.classes), dtype),
      "bias": jnp.full((cfg.classes,), cfg.head_bias_init, dtype),
    }
  return params


def count_params(cfg: ViTConfig, convention: Convention) -> int:
  """Counts parameters the way one of the published tables does.

  The table of the paper (Table 1) mixes three conventions, found by counting:

      "all"      every leaf. ViT-e, 3926M: 3,926,402,969 with the pooling head
                 and 29,593 classes. ViT-22B has 22,385,152,921 in all.
      "encoder"  patch and position embedding, blocks and final norm; neither
                 pooling nor classifier. ViT-G, 1843M: 1,842,772,352, of which
                 the final norm is 3,328, too few to tell whether the table
                 has it. ViT-g, 1011M (Zhai et al. 2022, Table 2), likewise.
      "matmul"   the kernels q, k, v, attention_out, mlp_in and mlp_out of all
                 blocks, no biases. ViT-22B, 21743M: 48 * (4 * 6144**2 +
                 2 * 6144 * 24576) = 21,743,271,936.

  Args:
    cfg: the model to count.
    convention: which parameters to count.

  Returns:
    The number of parameters, from the shapes of `init_params`.

  Raises:
    ValueError: if `convention` is none of the three.

  Example:
    >>> from models.vit_config import get_config
    >>> count_params(get_config("vit_22b"), "matmul")
    21743271936
  """
  shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  if convention == "all":
    counted = shapes
  elif convention == "encoder":
    counted = [shapes[name] for name in ("embed", "blocks", "norm")]
  elif convention == "matmul":
    layers = shapes["blocks"].values()
    counted = [layer["kernel"] for layer in layers if "kernel" in layer]
  else:
    raise ValueError(
      f"convention must be one of {', '.join(get_args(Convention))}, "
      f"got {convention!r}"
    )
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(counted))


def _init_embed(key, cfg, dtype):
  key_kernel, key_position = jax.random.split(key)
  position = initializers.normal(cfg.width**-0.5)
  patches = math.prod(cfg.grid)
  cls = {"cls": jnp.zeros((cfg.width,), dtype)} if cfg.cls else {}
  return cls | {
    "kernel": initializers.lecun_normal()(
      key_kernel, (cfg.patch_dim, cfg.width), dtype
    ),
    "bias": jnp.zeros((cfg.width,), dtype),
    "position": position(key_position, (patches, cfg.width), dtype),
  }


def _init_blocks(key, cfg, dtype):
  stack, width, mlp = (cfg.depth,), cfg.width, cfg.mlp
  qkv_bias = initializers.zeros if cfg.attention_bias else None
  out_bias = None if cfg.parallel else qkv_bias
  keys = jax.random.split(key, 6)

  blocks = {
    "norm": _norm((*stack, width), cfg.norm_bias, dtype),
    "q": _dense(keys[0], (*stack, width, width), qkv_bias, dtype),
    "k": _dense(keys[1], (*stack, width, width), qkv_bias, dtype),
    "v": _dense(keys[2], (*stack, width, width), qkv_bias, dtype),
    "attention_out": _dense(keys[3], (*stack, width, width), out_bias, dtype),
    "mlp_in": _dense(keys[4], (*stack, width, mlp), _MLP_BIAS, dtype),
    "mlp_out": _dense(keys[5], (*stack, mlp, width), _MLP_BIAS, dtype),
  }
  if not cfg.parallel:
    blocks["mlp_norm"] = _norm((*stack, width), cfg.norm_bias, dtype)
  if cfg.qk_norm:
    for name in ("q_norm", "k_norm"):
      blocks[name] = _norm((*stack, cfg.head_dim), cfg.norm_bias, dtype)
  return blocks


def _init_pool(key, cfg, dtype):
  width, mlp = cfg.width, cfg.mlp
  keys = jax.random.split(key, 7)
  pool = {
    name: _dense(k, (width, width), initializers.zeros, dtype)
    for name, k in zip(("q", "k", "v", "out"), keys[:4], strict=True)
  }
  # One query: Xavier's fan-in is 1 and its fan-out D.
  probe = initializers.xavier_uniform()(keys[4], (1, width), dtype)
  return pool | {
    "probe": probe[0],
    "norm": _norm((width,), cfg.norm_bias, dtype),
    "mlp_in": _dense(keys[5], (width, mlp), _MLP_BIAS, dtype),
    "mlp_out": _dense(keys[6], (mlp, width), _MLP_BIAS, dtype),
  }


def _dense(key, shape, bias_init, dtype):
  """Draws kernels `[..., in, out]`, each from its own fans, and biases."""
  key_kernel, key_bias = jax.random.split(key)
  stack = tuple(range(len(shape) - 2))
  xavier = initializers.xavier_uniform(batch_axis=stack)
  layer = {"kernel": xavier(key_kernel, shape, dtype)}
  if bias_init is not None:
    layer["bias"] = bias_init(key_bias, (*shape[:-2], shape[-1]), dtype)
  return layer


def _norm(shape, use_bias, dtype):
  norm = {"scale": jnp.ones(shape, dtype)}
  if use_bias:
    norm["bias"] = jnp.zeros(shape, dtype)
  return norm
