"""The two halves of a transformer block, each column and then row.

The tokens between them stay sharded over the model axis (sequence parallel), so
that norms and residual sums are divided too.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from collective_mm import global_view
from collective_mm.mesh import shard_over

Params = dict[str, jax.Array]


def tp_mlp(
  params: dict[str, Params],
  x: jax.Array,
  *,
  activation: Callable[..., jax.Array],
  mesh: jax.sharding.Mesh | None = None,
  axis_name: str = "model",
  token_dim: int = -2,
  wire_dtype: jax.typing.DTypeLike | None = None,
  **options: Any,
) -> jax.Array:
  """An MLP, plain or gated, whose activation is inside the ring.

      activation(x @ up) @ down                       x[B, S_m, D] up[D, F_m]
      (activation(x @ gate) * (x @ up)) @ down        down[F_m, D] y[B, S_m, D]

  Args:
    params: `{"up": {"kernel": [D, F], "bias": [F]}, "down": {"kernel": [F, D],
      "bias": [D]}}`, and "gate", like "up", for the second form; each "bias"
      may be missing.
    x: `[..., D]`, sharded over `axis_name` in `token_dim`.
    activation: such as `jax.nn.gelu`, elementwise.
    mesh: mesh of the global view, that of `jax.set_mesh` if not given; None
      inside `jax.shard_map` over `axis_name`.
    axis_name: mesh axis that splits the weights.
    token_dim: the dim that is gathered, and scattered again.
    wire_dtype: as in `matmul_reduce_scatter`.
    options: of both ops: schedule, chunks, accum_dtype.

  Raises:
    ValueError: if the axis does not divide `F` or the tokens, or as the layers.

  Example (four devices), SwiGLU:
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> ones = {"kernel": jnp.ones((8, 16))}
    >>> down = {"kernel": jnp.ones((16, 8))}
    >>> params = {"gate": ones, "up": ones, "down": down}
    >>> mlp = lambda params, x: tp_mlp(
    ...     params, x, activation=jax.nn.silu, mesh=mesh)
    >>> jax.jit(mlp)(params, jnp.ones((2, 4, 8))).shape
    (2, 4, 8)
  """
  names = ("gate", "up") if "gate" in params else ("up",)
  kernels, biases = _layers(params, names)
  where = {"mesh": mesh, "axis_name": axis_name, **options}
  h = global_view.column(
    x,
    kernels,
    biases,
    gather_dim=token_dim,
    epilogue=_gated(activation) if "gate" in params else activation,
    **where,
  )
  return global_view.row(
    h,
    params["down"]["kernel"],
    params["down"].get("bias"),
    scatter_dim=token_dim,
    wire_dtype=wire_dtype,
    **where,
  )


def tp_attention_projections(
  params: dict[str, Params],
  x: jax.Array,
  attend: Callable[..., jax.Array],
  *,
  mesh: jax.sharding.Mesh | None = None,
  axis_name: str = "model",
  token_dim: int = -2,
  wire_dtype: jax.typing.DTypeLike | None = None,
  **options: Any,
) -> jax.Array:
  """The four projections round an attention whose heads are sharded.

      q, k, v = x @ query, x @ key, x @ value     x[B, S_m, D] query[D, H_m, K]
      attend(q, k, v) @ out                       out[H_m, K, D]  y[B, S_m, D]

  `x` is gathered once for all three. Of grouped-query attention, `key` and
  `value` have `G < H` heads: where `t` devices divide `G` they are sharded;
  where `G` divides `t` instead, every head is *replicated* on `t / G` devices,
  so that `attend` sees one there, and as many devices compute it.

  Args:
    params: `{"query": {"kernel": [D, H, K], "bias": [H, K]}, "key": ...,
      "value": ..., "out": {"kernel": [H, K, D], "bias": [D]}}`, the tree of
      `flax.linen.MultiHeadDotProductAttention`; each "bias" may be missing.
    x: `[..., D]`, sharded over `axis_name` in `token_dim`.
    attend: `attend(q, k, v)` of one device's heads, `[..., H / t, K]` and twice
      `[..., max(G / t, 1), K]`, gives `[..., H / t, K]`; of all heads, sharded,
      inside a `jax.shard_map` over other axes.
    mesh: as in `tp_mlp`; inside `jax.shard_map` the `params` are those of one
      device, with one head where heads are replicated.
    axis_name, token_dim, wire_dtype, options: as in `tp_mlp`.

  Raises:
    ValueError: if `t` does not divide `H` or the tokens, or neither of `t` and
      `G` the other; or as the layers.

  Example (four devices), eight heads of which four share a key:
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> ones = lambda *shape: {"kernel": jnp.ones(shape)}
    >>> params = {"query": ones(6, 8, 2), "key": ones(6, 2, 2),
    ...           "value": ones(6, 2, 2), "out": ones(8, 2, 6)}
    >>> attention = lambda params, x: tp_attention_projections(
    ...     params, x, jax.nn.dot_product_attention, mesh=mesh)
    >>> jax.jit(attention)(params, jnp.ones((1, 4, 6))).shape
    (1, 4, 6)
  """

  def block(mesh, params, x):
    where = {"mesh": mesh, "axis_name": axis_name, **options}
    qkv = {name: jax.tree.map(_flat, params[name]) for name in _QKV}
    ys = global_view.column(
      x, *_layers(qkv, _QKV), gather_dim=token_dim, **where
    )
    shapes = (params[name]["kernel"].shape[1:] for name in _QKV)
    o = attend(
      *(
        y.reshape(*y.shape[:-1], *shape)
        for y, shape in zip(ys, shapes, strict=True)
      )
    )
    out = params["out"]
    return global_view.row(
      o.reshape(*o.shape[:-2], -1),
      out["kernel"].reshape(-1, out["kernel"].shape[-1]),
      out.get("bias"),
      scatter_dim=token_dim,
      wire_dtype=wire_dtype,
      **where,
    )

  mesh = global_view.ring_mesh(mesh, axis_name)
  if mesh is None:
    return block(None, params, x)
  rows = global_view.sharded_dim(x.ndim, token_dim, axis_name)
  size, dim = mesh.shape[axis_name], f"dim {token_dim} of x"
  global_view.check_divides(mesh, axis_name, dim, x.shape[token_dim])
  heads = {name: params[name]["kernel"].shape[-2] for name in _QKV}
  for name, number in heads.items():
    if number % size and (name == "query" or size % number):
      rule = "divide" if name == "query" else "divide, or be a multiple of,"
      raise ValueError(
        f"axis {axis_name!r} must {rule} the heads of {name}: {number} heads, "
        f"{size} devices"
      )
  repeated = {
    name: {
      leaf: jnp.repeat(array, max(size // heads[name], 1), axis=-2)
      for leaf, array in params[name].items()
    }
    for name in _QKV
  }
  specs = {
    name: {
      "kernel": jax.P(None, axis_name, None),
      "bias": jax.P(axis_name, None),
    }
    for name in _QKV
  } | {
    "out": {
      "kernel": jax.P(axis_name, None, None),
      "bias": jax.P(axis_name if token_dim == -1 else None),
    }
  }
  params = repeated | {"out": dict(params["out"])}
  if global_view.is_nested(mesh):
    return block(mesh, params, x)
  batch = global_view.batch_axes(x, token_dim, mesh, axis_name)
  rows = global_view.over(rows, batch)
  return shard_over(
    functools.partial(block, None),
    mesh=mesh,
    axis_names={axis_name, *batch},
    in_specs=(
      {n: {leaf: specs[n][leaf] for leaf in params[n]} for n in params},
      rows,
    ),
    out_specs=rows,
  )(params, x)


def tp_attend(
  attend: Callable[..., jax.Array],
  *arrays: jax.Array,
  mesh: jax.sharding.Mesh | None = None,
  axis_name: str = "model",
) -> jax.Array:
  """What stands between a column and a row layer, on each device's own heads.

      attend(q, k, v)               q[B, S, F_m] k, v[B, S, G_m]  y[B, S, F_m]

  Left to the compiler to partition, a softmax may take a pass of its own that
  is part of a product in the program of one device: of the attention of a block
  of Llama-3 8B a ninth of the time, on v5p.

  Args:
    attend: `attend(*arrays)` of one device's features, whole heads, which it
      counts by their shape; of all, sharded, inside a `jax.shard_map` over
      other axes.
    arrays: `[..., F]` each, as `ColumnDense.fused` gives them.
    mesh, axis_name: as in `tp_mlp`.

  Raises:
    ValueError: if the axis does not divide the features, or as the layers.

  Example (four devices), four heads:
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> def attend(q, k, v):
    ...   q, k, v = (y.reshape(*y.shape[:-1], -1, 2) for y in (q, k, v))
    ...   y = jax.nn.dot_product_attention(q, k, v)
    ...   return y.reshape(*y.shape[:-2], -1)
    >>> x = jnp.ones((1, 4, 8))
    >>> jax.jit(lambda x: tp_attend(attend, x, x, x, mesh=mesh))(x).shape
    (1, 4, 8)
  """
  mesh = global_view.ring_mesh(mesh, axis_name)
  if mesh is None or global_view.is_nested(mesh):
    return attend(*arrays)
  for array in arrays:
    size = array.shape[-1]
    global_view.check_divides(mesh, axis_name, "features", size)
  first = arrays[0]
  batch = global_view.batch_axes(first, -1, mesh, axis_name)
  spec = global_view.sharded_dim(first.ndim, -1, axis_name)
  spec = global_view.over(spec, batch)
  return shard_over(
    attend,
    mesh=mesh,
    axis_names={axis_name, *batch},
    in_specs=spec,
    out_specs=spec,
  )(*arrays)


_QKV = ("query", "key", "value")


def _layers(
  params: dict[str, Params], names: Sequence[str]
) -> tuple[list[jax.Array], list[jax.Array] | None]:
  """Kernels and biases, zeros where only others have one.

  The zeros are sharded as the kernel's columns are, by type where jax asks.
  """
  layers = [params[name] for name in names]
  kernels = [layer["kernel"] for layer in layers]
  if not any("bias" in layer for layer in layers):
    return kernels, None
  return kernels, [
    layer.get("bias", jnp.zeros_like(kernel[0]))
    for layer, kernel in zip(layers, kernels, strict=True)
  ]


def _flat(array: jax.Array) -> jax.Array:
  """A kernel or bias with heads and their features as one dim."""
  return array.reshape(*array.shape[:-2], -1)


@functools.cache
def _gated(activation: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`activation(gate) * up`; the same function for the same activation."""
  return lambda gate, up: activation(gate) * up
