"""Equinox's Linear, sharded and overlapped.

Needs equinox, which the rest of the library does not: `pip install
collective-mm[equinox]`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from collective_mm import adapter, global_view, module_path
from collective_mm.mesh import place

__all__ = ["ColumnDense", "RowDense", "specs"]


class _Dense(eqx.nn.Linear):
  """What both layers share: an `eqx.nn.Linear` with a place for its weight."""

  mesh: jax.sharding.Mesh | None = eqx.field(static=True)
  axis_name: str = eqx.field(static=True)
  schedule: str | tuple[str, str] = eqx.field(static=True)
  chunks: int = eqx.field(static=True)
  accum_dtype: jax.typing.DTypeLike | None = eqx.field(static=True)

  def __init__(
    self,
    in_features: int,
    out_features: int,
    use_bias: bool = True,
    dtype: jax.typing.DTypeLike | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    axis_name: str = "model",
    schedule: str | tuple[str, str] = "auto",
    chunks: int = 1,
    accum_dtype: jax.typing.DTypeLike | None = None,
    key: jax.Array,
  ):
    self.mesh = mesh
    self.axis_name = axis_name
    self.schedule = schedule
    self.chunks = chunks
    self.accum_dtype = accum_dtype
    with module_path.blame(_path(self)):
      if "scalar" in (in_features, out_features):
        raise ValueError(
          f"features must be a number, got {in_features!r} and {out_features!r}"
        )
      mesh = global_view.ring_mesh(mesh, axis_name)
      self._check(in_features, out_features)
    super().__init__(in_features, out_features, use_bias, dtype, key=key)
    if mesh is not None:
      self.weight = place(self.weight, mesh, self.specs["weight"])
      if use_bias:
        self.bias = place(self.bias, mesh, self.specs["bias"])

  def _promoted(self, x: jax.Array) -> tuple:
    """`x`, the weight as `[in, out]`, and the bias, of one dtype.

    `weight @ x + bias` promotes as it goes, to the same dtype.
    """
    dtype = jnp.result_type(x, self.weight, *self._biases())
    weight = self.weight.astype(dtype).T
    bias = None if self.bias is None else self.bias.astype(dtype)
    return x.astype(dtype), weight, bias

  def _biases(self) -> tuple:
    return () if self.bias is None else (self.bias,)


class ColumnDense(_Dense):
  """`eqx.nn.Linear`, column-sharded.

      x[B, S_m, D] @ weight[F_m, D].T + bias[F_m] -> y[B, S, F_m]

  In place of `eqx.nn.Linear(in_features, out_features, key=key)`, with the same
  arguments, parameters and draws, but for "scalar" features; and it is called
  on all tokens at once, `layer(x)` for `jax.vmap(layer)(x)`, as they are what
  travels. (Under that `jax.vmap` too, with `gather_dim=-1`.) A `jax.vmap` over
  examples stays. On a mesh, given or set by `jax.set_mesh`, under
  `jax.jit` on global arrays; inside a `jax.shard_map` over `axis_name` on the
  parameters of one device.

  Args:
    in_features: `D`.
    out_features: `F`, over all devices.
    use_bias, dtype, key: as in `eqx.nn.Linear`.
    mesh: mesh of the global view, that of `jax.set_mesh` if not given; None
      inside `jax.shard_map` over `axis_name`.
    axis_name: mesh axis that splits the weight. It must divide `F` and
      `gather_dim` of `x`: nothing is padded.
    gather_dim: dim of `x` that comes sharded and is gathered; the one before
      the features, the tokens, if not given; -1 for the features.
    schedule: as in `all_gather_matmul`; "auto" asks the gate for forward, and
      leaves backward's gathers to a compiler that makes them asynchronous.
    chunks, dw: as in `all_gather_matmul`.
    accum_dtype: dtype in which products are summed; at least float32 if not
      given.

  Raises:
    ValueError: which starts with the module's path, if the axis is not of the
      mesh, does not divide, or is Manual where there is a mesh or not where
      there is none.

  Example (four devices):
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> layer = ColumnDense(8, 16, mesh=mesh, key=jax.random.key(0))
    >>> eqx.filter_jit(layer)(jnp.ones((4, 8))).shape
    (4, 16)
  """

  gather_dim: int = eqx.field(static=True)
  dw: str = eqx.field(static=True)

  def __init__(
    self,
    in_features: int,
    out_features: int,
    use_bias: bool = True,
    dtype: jax.typing.DTypeLike | None = None,
    *,
    gather_dim: int = -2,
    dw: str = "regather",
    **arguments: Any,
  ):
    self.gather_dim = gather_dim
    self.dw = dw
    super().__init__(in_features, out_features, use_bias, dtype, **arguments)

  @property
  def specs(self) -> dict[str, jax.P]:
    """The `PartitionSpec` of each parameter."""
    return {
      "weight": jax.P(self.axis_name, None),
      "bias": jax.P(self.axis_name),
    }

  def __call__(self, x: jax.Array, *, key: Any = None) -> jax.Array:
    """Applies the layer to `x[..., D]`, global or per device."""
    (y,) = ColumnDense.fused(x, self)
    return y

  @staticmethod
  def fused(
    x: jax.Array,
    *layers: "ColumnDense",
    epilogue: Callable[..., Any] | None = None,
  ) -> Any:
    """Several layers of one input, which is gathered once for all.

        q, k, v = ColumnDense.fused(x, self.q, self.k, self.v)
        h = ColumnDense.fused(x, self.gate, self.up, epilogue=swiglu)

    Parameters and their names stay those of the separate layers.

    Args:
      x: `[..., D]`.
      layers: the layers; options of the op are those of the first.
      epilogue: `epilogue(*ys)` inside the ring step, elementwise.

    Returns:
      A tuple of outputs, or what the epilogue made of them.
    """
    first = layers[0]
    with module_path.blame(_path(first)):
      _check_tokens(x, "gather_dim", first.gather_dim)
      found = [layer._promoted(x) for layer in layers]
      return adapter.column(found, first, epilogue)

  _check = adapter.check_column


class RowDense(_Dense):
  """`eqx.nn.Linear`, row-sharded.

      x[B, S, F_m] @ weight[D, F_m].T + bias[D] -> y[B, S_m, D]

  In place of `eqx.nn.Linear`, as `ColumnDense` is.

  Args:
    in_features: `F`, over all devices.
    out_features: `D`.
    scatter_dim: dim of `y` that comes out sharded; the one before the features,
      the tokens, if not given; -1 for the features. The axis must divide it and
      `F`: nothing is padded.
    wire_dtype: as in `matmul_reduce_scatter`.
    use_bias, dtype, key, mesh, axis_name, schedule, chunks, accum_dtype: as in
      `ColumnDense`.

  Raises:
    ValueError: as `ColumnDense`.

  Example (four devices):
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> layer = RowDense(16, 8, mesh=mesh, key=jax.random.key(0))
    >>> eqx.filter_jit(layer)(jnp.ones((4, 16))).shape
    (4, 8)
  """

  scatter_dim: int = eqx.field(static=True)
  wire_dtype: jax.typing.DTypeLike | None = eqx.field(static=True)

  def __init__(
    self,
    in_features: int,
    out_features: int,
    use_bias: bool = True,
    dtype: jax.typing.DTypeLike | None = None,
    *,
    scatter_dim: int = -2,
    wire_dtype: jax.typing.DTypeLike | None = None,
    **arguments: Any,
  ):
    self.scatter_dim = scatter_dim
    self.wire_dtype = wire_dtype
    super().__init__(in_features, out_features, use_bias, dtype, **arguments)

  @property
  def specs(self) -> dict[str, jax.P]:
    """The `PartitionSpec` of each parameter."""
    return {
      "weight": jax.P(None, self.axis_name),
      "bias": jax.P(adapter.row_bias_axis(self)),
    }

  def __call__(self, x: jax.Array, *, key: Any = None) -> jax.Array:
    """Applies the layer to `x[..., F]`, global or per device."""
    with module_path.blame(_path(self)):
      _check_tokens(x, "scatter_dim", self.scatter_dim)
      return adapter.row(self._promoted(x), self)

  _check = adapter.check_row


def specs(model: Any) -> Any:
  """The `PartitionSpec` of every array of a model, in a tree like its arrays'.

  Args:
    model: any tree of modules; arrays that are not of the layers here are
      replicated.

  Example (four devices): a model placed on its mesh.
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> model = [ColumnDense(8, 16, mesh=mesh, key=jax.random.key(0)),
    ...          eqx.nn.LayerNorm(16)]
    >>> jax.tree.leaves(specs(model))
    [P('model', None), P('model',), P(), P()]
    >>> placed = jax.tree.map(
    ...     lambda spec: jax.NamedSharding(mesh, spec), specs(model))
    >>> model = eqx.filter_shard(model, placed)
  """

  def is_layer(node):
    return isinstance(node, _Dense)

  def of(node):
    if not is_layer(node):
      return jax.P()
    return jax.tree_util.tree_map_with_path(
      lambda path, _: node.specs[path[-1].name], node
    )

  arrays = eqx.filter(model, lambda leaf: hasattr(leaf, "shape"))
  return jax.tree.map(of, arrays, is_leaf=is_layer)


def _check_tokens(x: jax.Array, name: str, dim: int) -> None:
  """Refuses a single token, which `jax.vmap(layer)` would give."""
  if x.ndim == 1 and dim != -1:
    raise ValueError(
      f"x must have a dim before its features, layer(x) in place of "
      f"jax.vmap(layer)(x), or {name}=-1, got x.shape={x.shape}"
    )


def _path(layer: eqx.Module) -> module_path.Path:
  """The layer's path, looked for when it is printed."""

  def modules(root):
    todo = [("", root)]
    while todo:
      path, module = todo.pop()
      yield path, module

      def is_inner(node, module=module):
        return isinstance(node, eqx.Module) and node is not module

      found = jax.tree_util.tree_leaves_with_path(module, is_leaf=is_inner)
      todo += [
        (path + jax.tree_util.keystr(keys), leaf)
        for keys, leaf in found
        if isinstance(leaf, eqx.Module)
      ]

  return module_path.Path(layer, eqx.Module, modules)
