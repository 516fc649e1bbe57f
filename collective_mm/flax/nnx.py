"""Flax nnx's Linear, sharded and overlapped."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes, linear
from flax.typing import Dtype, Initializer

from collective_mm import adapter, global_view, module_path

__all__ = ["ColumnDense", "RowDense"]

_NONE: Mapping[str, Any] = MappingProxyType({})


class _Dense(nnx.Linear):
  """What both layers share: an `nnx.Linear` with a place for its parameters."""

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    mesh: jax.sharding.Mesh | None = None,
    axis_name: str = "model",
    use_bias: bool = True,
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
    kernel_init: Initializer = linear.default_kernel_init,
    bias_init: Initializer = linear.default_bias_init,
    promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
    schedule: str | tuple[str, str] = "auto",
    chunks: int = 1,
    accum_dtype: Dtype | None = None,
    rngs: nnx.Rngs,
    kernel_metadata: Mapping[str, Any] = _NONE,
    bias_metadata: Mapping[str, Any] = _NONE,
  ):
    self.mesh = mesh
    self.axis_name = axis_name
    self.schedule = schedule
    self.chunks = chunks
    self.accum_dtype = accum_dtype
    kernel, bias = self._specs()
    with module_path.blame(_path(self)):
      mesh = global_view.ring_mesh(mesh, axis_name)
      self._check(in_features, out_features)
    kernel_metadata = self._placed(mesh, kernel) | dict(kernel_metadata)
    bias_metadata = self._placed(mesh, bias) | dict(bias_metadata)
    super().__init__(
      in_features,
      out_features,
      use_bias=use_bias,
      dtype=dtype,
      param_dtype=param_dtype,
      kernel_init=kernel_init,
      bias_init=bias_init,
      promote_dtype=promote_dtype,
      rngs=rngs,
      kernel_metadata=kernel_metadata,
      bias_metadata=bias_metadata,
    )

  def _placed(self, mesh, spec: tuple[str | None, ...]) -> dict[str, Any]:
    """The metadata of a parameter."""
    metadata = {"out_sharding": spec}
    if self.mesh is not None:
      metadata["mesh"] = self.mesh
    # Flax places arrays as they are made, but not on a mesh of mixed kinds.
    if mesh is None or len(set(mesh.axis_types)) > 1:
      metadata["eager_sharding"] = False
    return metadata

  def _promoted(self, x: jax.Array) -> tuple:
    """`x`, kernel and bias in the dtype of the computation."""
    bias = None if self.bias is None else self.bias[...]
    return self.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)


class ColumnDense(_Dense):
  """`nnx.Linear`, column-sharded.

      x[B, S_m, D] @ kernel[D, F_m] + bias[F_m] -> y[B, S, F_m]

  In place of `nnx.Linear(in_features, out_features, rngs=rngs)`, with the same
  arguments, parameters and draws; `precision`, `dot_general` and
  `preferred_element_type` are not taken. On a mesh, given or set by
  `jax.set_mesh`, under `jax.jit` on global arrays; inside a `jax.shard_map`
  over `axis_name` on the parameters of one device. They carry `out_sharding`.

  Args:
    in_features: `D`.
    out_features: `F`, over all devices.
    mesh: mesh of the global view, that of `jax.set_mesh` if not given; None
      inside `jax.shard_map` over `axis_name`.
    axis_name: mesh axis that splits the kernel. It must divide `F` and
      `gather_dim` of `x`: nothing is padded.
    gather_dim: dim of `x` that comes sharded and is gathered; the one before
      the features, the tokens, if not given; -1 for the features.
    use_bias, dtype, param_dtype, kernel_init, bias_init: as in `nnx.Linear`.
    promote_dtype, rngs, kernel_metadata, bias_metadata: as there.
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
    >>> layer = ColumnDense(8, 16, mesh=mesh, rngs=nnx.Rngs(0))
    >>> nnx.jit(lambda layer, x: layer(x))(layer, jnp.ones((2, 4, 8))).shape
    (2, 4, 16)
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    gather_dim: int = -2,
    dw: str = "regather",
    **arguments: Any,
  ):
    self.gather_dim = gather_dim
    self.dw = dw
    super().__init__(in_features, out_features, **arguments)

  def __call__(self, x: jax.Array) -> jax.Array:
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
      found = [layer._promoted(x) for layer in layers]
      return adapter.column(found, first, epilogue)

  def _specs(self) -> tuple[tuple, tuple]:
    return (None, self.axis_name), (self.axis_name,)

  _check = adapter.check_column


class RowDense(_Dense):
  """`nnx.Linear`, row-sharded.

      x[B, S, F_m] @ kernel[F_m, D] + bias[D] -> y[B, S_m, D]

  In place of `nnx.Linear`, as `ColumnDense` is.

  Args:
    in_features: `F`, over all devices.
    out_features: `D`.
    scatter_dim: dim of `y` that comes out sharded; the one before the features,
      the tokens, if not given; -1 for the features. The axis must divide it and
      `F`: nothing is padded.
    wire_dtype: as in `matmul_reduce_scatter`.
    mesh, axis_name, use_bias, dtype, param_dtype: as in `ColumnDense`.
    kernel_init, bias_init, promote_dtype, rngs: as there.
    kernel_metadata, bias_metadata, schedule, chunks, accum_dtype: as there.

  Raises:
    ValueError: as `ColumnDense`.

  Example (four devices):
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> layer = RowDense(16, 8, mesh=mesh, rngs=nnx.Rngs(0))
    >>> nnx.jit(lambda layer, x: layer(x))(layer, jnp.ones((2, 4, 16))).shape
    (2, 4, 8)
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    scatter_dim: int = -2,
    wire_dtype: Dtype | None = None,
    **arguments: Any,
  ):
    self.scatter_dim = scatter_dim
    self.wire_dtype = wire_dtype
    super().__init__(in_features, out_features, **arguments)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies the layer to `x[..., F]`, global or per device."""
    with module_path.blame(_path(self)):
      return adapter.row(self._promoted(x), self)

  def _specs(self) -> tuple[tuple, tuple]:
    return (self.axis_name, None), (adapter.row_bias_axis(self),)

  _check = adapter.check_row


def _path(layer: nnx.Module) -> module_path.Path:
  """The layer's path, looked for when it is printed."""

  def modules(root):
    for path, module in nnx.iter_modules(root):
      keys = (f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
      yield "".join(keys), module

  return module_path.Path(layer, nnx.Module, modules)
