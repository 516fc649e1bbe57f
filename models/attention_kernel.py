"""Attention over the tokens of one image in one TPU kernel, QK-norm included.

XLA writes the logits of every head to HBM, several times over in backward, and
normalises q and k in float32 passes of their own. The logits of a head are
`S x S`, small enough to stay in VMEM with all that they are made of: this
kernel reads q, k and v as the projections left them, `x[B * S, H * K]`, and
writes what the output projection reads, so that nothing is transposed either.
In `docs/performance.md` is what that is worth, and what of it is estimated.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from collective_mm.mesh import struct_like_varying
from models.norm import EPSILON

_LANES, _SUBLANES = 128, 8
_MOST_HEADS = 4  # of a program; backward holds 7 of their blocks, twice
_MOST_TOKENS = 1024  # whose float32 logits take 4 MB of VMEM


class Shape(NamedTuple):
  """Sizes that the kernel is compiled for.

  Attributes:
    tokens: `S`, of an image.
    heads: `H`, of this device.
    head_dim: `K`.
    interpret: run the kernel as plain jax, on any device.
  """

  tokens: int
  heads: int
  head_dim: int
  interpret: bool = False

  @property
  def block(self) -> int:
    """Heads of one program."""
    return math.gcd(self.heads, _MOST_HEADS)


def fits(*, tokens: int, head_dim: int) -> bool:
  """Whether blocks of such sizes tile the TPU's registers and fit its VMEM."""
  return head_dim % _LANES == 0 and tokens % 16 == 0 and tokens <= _MOST_TOKENS


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def fused_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_scale: jax.Array,
  k_scale: jax.Array,
  shape: Shape,
) -> tuple[jax.Array, jax.Array]:
  """Returns `softmax(norm(q) norm(k).T / sqrt(K)) v` for each image and head.

      q, k, v[B * S, H * K] -> y[B * S, H * K]

  `norm(x) = scale * x / sqrt(mean(x**2) + 1e-6)` over the `K` features of a
  head, the LayerNorm of ViT-22B. Logits and softmax are in float32.

  Args:
    q, k, v: as above, with rows image by image and columns head by head.
    q_scale, k_scale: `[K]` float32.
    shape: the sizes; see `fits`.

  Returns:
    `y` in the dtype of `q`, and `[B, blocks]` float32: the largest logits.

  Cost: `4 B H S**2 K` FLOPs and four passes over the size of `q`; backward
    `10 B H S**2 K` (with the logits again) and seven passes.
  """
  return _forward(q, k, v, q_scale, k_scale, shape)


def _forward(q, k, v, q_scale, k_scale, shape):
  images, grid, rows, scales = _tiling(q, shape)
  y, largest = pl.pallas_call(
    functools.partial(_forward_program, shape=shape),
    grid=grid,
    in_specs=[rows, rows, rows, scales, scales],
    out_specs=[rows, _small_block()],
    out_shape=[_like(q), _small(q, grid)],
    compiler_params=_params(),
    cost_estimate=_cost(q, images, shape, products=2, passes=4),
    interpret=shape.interpret,
    name="attention",
  )(q, k, v, _row(q_scale), _row(k_scale))
  return y, largest[:, :, 0, 0]


def _forward_rule(q, k, v, q_scale, k_scale, shape):
  out = _forward(q, k, v, q_scale, k_scale, shape)
  return out, (q, k, v, q_scale, k_scale)


def _backward_rule(shape, residuals, cotangents):
  q, k, v, q_scale, k_scale = residuals
  dy, _ = cotangents  # the largest logit is a metric, without a gradient
  images, grid, rows, scales = _tiling(q, shape)
  dq, dk, dv, dscales = pl.pallas_call(
    functools.partial(_backward_program, shape=shape),
    grid=grid,
    in_specs=[rows, rows, rows, scales, scales, rows],
    out_specs=[rows, rows, rows, _small_block(shape.head_dim)],
    out_shape=[_like(q), _like(k), _like(v), _small(q, grid, shape.head_dim)],
    compiler_params=_params(),
    cost_estimate=_cost(q, images, shape, products=5, passes=7),
    interpret=shape.interpret,
    name="attention_backward",
  )(q, k, v, _row(q_scale), _row(k_scale), dy.astype(q.dtype))
  dscales = dscales.sum(axis=(0, 1))
  return (
    dq,
    dk,
    dv,
    dscales[0].astype(q_scale.dtype),
    dscales[1].astype(k_scale.dtype),
  )


fused_attention.defvjp(_forward_rule, _backward_rule)


def _forward_program(
  q_ref, k_ref, v_ref, qs_ref, ks_ref, y_ref, top_ref, shape
):
  top = jnp.float32(-jnp.inf)
  for head in _heads(shape):
    q, k = q_ref[:, head], k_ref[:, head]
    qn, kn, _, _ = _normed(q, k, qs_ref, ks_ref, shape)
    weights, largest = _weights(qn, kn)
    y = _dot(weights.astype(q.dtype), v_ref[:, head], (0, 0))
    y_ref[:, head] = y.astype(y_ref.dtype)
    top = jnp.maximum(top, largest)
  top_ref[...] = jnp.full(top_ref.shape, top)


def _backward_program(
  q_ref, k_ref, v_ref, qs_ref, ks_ref, dy_ref, dq_ref, dk_ref, dv_ref, ds_ref,
  shape,
):  # fmt: skip
  dqs = jnp.zeros((1, shape.head_dim), jnp.float32)
  dks = jnp.zeros((1, shape.head_dim), jnp.float32)
  for head in _heads(shape):
    q, k, v, dy = (
      q_ref[:, head],
      k_ref[:, head],
      v_ref[:, head],
      dy_ref[:, head],
    )
    qn, kn, q_unit, k_unit = _normed(q, k, qs_ref, ks_ref, shape)
    weights, _ = _weights(qn, kn)
    dweights = _dot(v, dy, (1, 1))
    dv = _dot(weights.astype(q.dtype), dy)
    dlogits = weights * (
      dweights - (weights * dweights).sum(axis=0, keepdims=True)
    )
    dlogits = dlogits.astype(q.dtype)
    dqn, dkn = _dot(dlogits, kn, (0, 0)), _dot(dlogits, qn)
    scale = 1 / math.sqrt(shape.head_dim)
    dq, dq_scale = _norm_gradient(dqn * scale, q, q_unit, qs_ref[...])
    dk, dk_scale = _norm_gradient(dkn, k, k_unit, ks_ref[...])
    dq_ref[:, head] = dq.astype(dq_ref.dtype)
    dk_ref[:, head] = dk.astype(dk_ref.dtype)
    dv_ref[:, head] = dv.astype(dv_ref.dtype)
    dqs, dks = dqs + dq_scale, dks + dk_scale
  rows = lax.broadcasted_iota(jnp.int32, (_SUBLANES, shape.head_dim), 0)
  ds_ref[0, 0] = jnp.where(rows == 0, dqs, jnp.where(rows == 1, dks, 0.0))


def _heads(shape):
  """The columns of each head of a program."""
  return [
    slice(i * shape.head_dim, (i + 1) * shape.head_dim)
    for i in range(shape.block)
  ]


def _normed(q, k, qs_ref, ks_ref, shape):
  """q and k as they meet, and both as units, in float32."""
  q_unit, k_unit = _unit(q), _unit(k)
  scale = 1 / math.sqrt(shape.head_dim)
  qn = (q_unit * (qs_ref[...] * scale)).astype(q.dtype)
  kn = (k_unit * ks_ref[...]).astype(k.dtype)
  return qn, kn, q_unit, k_unit


def _inverse(x):
  x = x.astype(jnp.float32)
  return lax.rsqrt(jnp.square(x).mean(axis=1, keepdims=True) + EPSILON)


def _unit(x):
  return x.astype(jnp.float32) * _inverse(x)


def _norm_gradient(dy, x, unit, scale):
  """Gradients of `scale * unit(x)` for `x` and for `scale`."""
  along = (dy * scale * unit).mean(axis=1, keepdims=True)
  dx = _inverse(x) * (dy * scale - unit * along)
  return dx, (dy * unit).sum(axis=0, keepdims=True)


def _weights(qn, kn):
  """softmax over the keys, which come first, and the largest logit.

  Sums over the first dim add registers; over the last they would shuffle lanes.
  """
  logits = _dot(kn, qn, (1, 1))
  largest = logits.max(axis=0, keepdims=True)
  weights = jnp.exp(logits - largest)
  return weights / weights.sum(axis=0, keepdims=True), largest.max()


def _dot(a, b, dims=(1, 0)):
  contract = ((dims[:1], dims[1:]), ((), ()))
  return lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)


def _tiling(q, shape):
  """Images, the grid, and the blocks of `[B * S, H * K]` and of a scale."""
  images = q.shape[0] // shape.tokens
  grid = (images, shape.heads // shape.block)
  rows = pl.BlockSpec(
    (shape.tokens, shape.block * shape.head_dim), lambda i, j: (i, j)
  )
  return (
    images,
    grid,
    rows,
    pl.BlockSpec((1, shape.head_dim), lambda i, j: (0, 0)),
  )


def _row(scale):
  return scale.astype(jnp.float32)[None]


def _like(x):
  return struct_like_varying(x.shape, x.dtype, like=x)


def _small(x, grid, width=_LANES):
  """What a program tells beside its rows: one tile each."""
  return struct_like_varying((*grid, _SUBLANES, width), jnp.float32, like=x)


def _small_block(width=_LANES):
  return pl.BlockSpec((1, 1, _SUBLANES, width), lambda i, j: (i, j, 0, 0))


def _params():
  return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"))


def _cost(q, images, shape, *, products, passes):
  logits = images * shape.heads * shape.tokens**2
  return pl.CostEstimate(
    flops=products * 2 * logits * shape.head_dim,
    bytes_accessed=passes * q.size * q.dtype.itemsize,
    transcendentals=logits,
  )
