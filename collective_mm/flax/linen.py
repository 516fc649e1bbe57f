"""Flax linen's Dense and DenseGeneral, sharded and overlapped."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from collective_mm import adapter, global_view, module_path
from collective_mm.mesh import axis_size, explicit_axes, place

__all__ = ["ColumnDense", "RowDense"]


class _Box(nn.Partitioned):
  """Partitioning metadata that asks nothing of transforms, and of `unbox`.

  The layer itself shards what it makes and uses, over the ring's axis alone: a
  constraint at every use would undo what other axes do. A transform that adds
  an axis of layers need not name it.
  """

  def unbox(self, apply_constraint: bool = True):
    del apply_constraint
    return self.value

  def _get_partition_name(self, params):
    return params.get(nn.meta.PARTITION_NAME)


class _Dense(nn.Module):
  """What both layers share: parameters like those of the originals."""

  def _path(self) -> str:
    return "/".join((*self.path, type(self).__qualname__))

  def _ring_mesh(self):
    """The mesh of the global view; None where arrays are one device's."""
    mesh = global_view.ring_mesh(self.mesh, self.axis_name)
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if self.is_initializing() and self.axis_name in manual:
      raise ValueError(
        f"init must be called outside jax.shard_map over "
        f"{self.axis_name!r}, as it makes whole parameters, got it inside"
      )
    return mesh

  def _multiplies_whole(self, x: jax.Array) -> bool:
    """Whether this is `init`, with an `x` that may be small: no ring then.

    One that Explicit axes shard is as large as any, and jax multiplies it only
    as it is sharded.
    """
    return self.is_initializing() and not any(
      self.axis_name in axes for axes in explicit_axes(x).values()
    )

  def _share(self, size: int, name: str) -> int:
    """A size as it is in the arrays that this sees, checked."""
    mesh = self._ring_mesh()
    if mesh is None and self.is_initializing():
      return size
    if mesh is not None:
      global_view.check_divides(mesh, self.axis_name, name, size)
      return size
    count = axis_size(self.axis_name)
    global_view.check_multiple(count, self.axis_name, name, size)
    return size // count

  def _parameter(
    self,
    name: str,
    init: Initializer,
    shape: tuple[int, ...],
    spec: jax.P,
    inputs: int = 1,
  ) -> jax.Array:
    """The parameter, drawn as the original draws it, boxed with its spec.

    That draws a matrix and gives it the dims, of which `inputs` are contracted.
    """
    if name == "kernel":
      flat = math.prod(shape[:inputs]), math.prod(shape[inputs:])
    else:
      flat = (math.prod(shape),)

    def make(key):
      value = init(key, flat, self.param_dtype)
      if isinstance(value, nn.meta.AxisMetadata):  # the caller's partitioning
        return value.replace_boxed(jnp.reshape(value.unbox(), shape))
      value, mesh = jnp.reshape(value, shape), self._ring_mesh()
      if mesh is not None:
        value = place(value, mesh, spec)
      return _Box(value, tuple(spec), mesh=self.mesh)

    return self.param(name, make)


class ColumnDense(_Dense):
  """`nn.Dense`, or `nn.DenseGeneral` of several output dims, column-sharded.

      x[B, S_m, D] @ kernel[D, F_m] + bias[F_m] -> y[B, S, F_m]

  In place of `nn.Dense(features)` or `nn.DenseGeneral(features)`, with the same
  arguments, parameters and draws; `precision`, `dot_general` and `batch_dims`
  are not taken. On a mesh, given or set by `jax.set_mesh`, under `jax.jit` on
  global arrays; inside a `jax.shard_map` over `axis_name` on the parameters of
  one device.
  `init` multiplies without a ring, so that a small `x` will do. A layer without
  a name gets that of an `nn.Dense`, "Dense_0", so that the tree stays; one in
  place of an unnamed `nn.DenseGeneral` must be given its name.

  Attributes:
    features: output features over all devices, or dims of them as in
      `nn.DenseGeneral`: heads and their features.
    mesh: mesh of the global view, that of `jax.set_mesh` if not given; None
      inside `jax.shard_map` over `axis_name`.
    axis_name: mesh axis that splits the kernel. It must divide the sharded
      features and `gather_dim` of `x`: nothing is padded.
    gather_dim: dim of `x` that comes sharded and is gathered; the one before
      the features, the tokens, if not given; -1 for the features.
    sharded_feature: which of `features` is split, as an index; the first.
    use_bias, dtype, param_dtype, kernel_init, bias_init, promote_dtype: as in
      `nn.Dense`.
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
    >>> layer = ColumnDense(16, mesh=mesh)  # was nn.Dense(16)
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 1, 8)))
    >>> jax.jit(layer.apply)(variables, jnp.ones((2, 4, 8))).shape
    (2, 4, 16)
  """

  features: int | Sequence[int]
  mesh: jax.sharding.Mesh | None = None
  axis_name: str = "model"
  gather_dim: int = -2
  sharded_feature: int = 0
  use_bias: bool = True
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  kernel_init: Initializer = nn.linear.default_kernel_init
  bias_init: Initializer = nn.initializers.zeros_init()
  promote_dtype: Callable[..., Any] = promote_dtype
  schedule: str | tuple[str, str] = "auto"
  chunks: int = 1
  accum_dtype: Dtype | None = None
  dw: str = "regather"

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

        q, k, v = ColumnDense.fused(x, query, key, value)
        h = ColumnDense.fused(x, gate, up, epilogue=lambda g, u: silu(g) * u)

    Parameters and their names stay those of the separate layers.

    Args:
      x: `[..., D]`.
      layers: submodules; options of the op are those of the first.
      epilogue: `epilogue(*ys)` inside the ring step, elementwise.

    Returns:
      A tuple of outputs, or what the epilogue made of them.
    """
    first = layers[0]
    with module_path.blame(first._path()):
      found = [layer._weights(x) for layer in layers]
      if first._multiplies_whole(x):
        biases = adapter.biases_of(found) or [0] * len(found)
        ys = [
          x @ kernel + bias
          for (x, kernel, _), bias in zip(found, biases, strict=True)
        ]
        ys = epilogue(*ys) if epilogue else tuple(ys)
      else:
        ys = adapter.column(found, first, epilogue)
    if epilogue is not None:
      return ys
    return tuple(layer._shaped(y) for layer, y in zip(layers, ys, strict=True))

  @nn.compact
  def _weights(self, x: jax.Array) -> tuple:
    """`x`, kernel and bias in the dtype of the computation, as matrices."""
    features = _dims(self.features)
    split = self.sharded_feature
    if not 0 <= split < len(features):
      raise ValueError(
        f"sharded_feature must be an index of features, {features}, got {split}"
      )
    share = self._share(features[split], "features")
    shape = (*features[:split], share, *features[split + 1 :])
    entries = [None] * len(features)
    entries[split] = self.axis_name
    kernel = self._parameter(
      "kernel", self.kernel_init, (x.shape[-1], *shape), jax.P(None, *entries)
    )
    bias = None
    if self.use_bias:
      bias = self._parameter("bias", self.bias_init, shape, jax.P(*entries))
    x, kernel, bias = self.promote_dtype(x, kernel, bias, dtype=self.dtype)
    # What is split goes first, so that a device's columns are neighbours.
    kernel = jnp.moveaxis(kernel, 1 + split, 1).reshape(x.shape[-1], -1)
    if bias is not None:
      bias = jnp.moveaxis(bias, split, 0).reshape(-1)
    return x, kernel, bias

  def _shaped(self, y: jax.Array) -> jax.Array:
    """`y` with the dims of `features`."""
    features, split = list(_dims(self.features)), self.sharded_feature
    features.insert(0, self._share(features.pop(split), "features"))
    y = y.reshape(*y.shape[:-1], *features)
    first = y.ndim - len(features)
    return jnp.moveaxis(y, first, first + split)


class RowDense(_Dense):
  """`nn.Dense`, or `nn.DenseGeneral` of several input dims, row-sharded.

      x[B, S, F_m] @ kernel[F_m, D] + bias[D] -> y[B, S_m, D]

  In place of `nn.Dense(features)`, or of `nn.DenseGeneral(features, axis=(-2,
  -1))` for heads and their features, as `ColumnDense` is.

  Attributes:
    features: output features over all devices.
    axis: the last dims of `x` that are contracted; the first of them is
      sharded. The ring's axis must divide it and `scatter_dim` of `y`: nothing
      is padded.
    scatter_dim: dim of `y` that comes out sharded; the one before the features,
      the tokens, if not given; -1 for the features.
    wire_dtype: as in `matmul_reduce_scatter`.
    mesh, axis_name, use_bias, dtype, param_dtype: as in `ColumnDense`.
    kernel_init, bias_init, promote_dtype: as there.
    schedule, chunks, accum_dtype: as there.

  Raises:
    ValueError: as `ColumnDense`.

  Example (four devices):
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> layer = RowDense(8, axis=(-2, -1), mesh=mesh)
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 1, 4, 6)))
    >>> jax.tree.map(jnp.shape, nn.unbox(variables))
    {'params': {'bias': (8,), 'kernel': (4, 6, 8)}}
    >>> jax.jit(layer.apply)(variables, jnp.ones((2, 4, 4, 6))).shape
    (2, 4, 8)
  """

  features: int
  axis: int | Sequence[int] = -1
  mesh: jax.sharding.Mesh | None = None
  axis_name: str = "model"
  scatter_dim: int = -2
  use_bias: bool = True
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  kernel_init: Initializer = nn.linear.default_kernel_init
  bias_init: Initializer = nn.initializers.zeros_init()
  promote_dtype: Callable[..., Any] = promote_dtype
  schedule: str | tuple[str, str] = "auto"
  chunks: int = 1
  accum_dtype: Dtype | None = None
  wire_dtype: Dtype | None = None

  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies the layer to `x[..., F]`, global or per device."""
    with module_path.blame(self._path()):
      return self._apply(x)

  @nn.compact
  def _apply(self, x: jax.Array) -> jax.Array:
    axis = _dims(self.axis)
    count = len(axis)
    if tuple(a % x.ndim for a in axis) != tuple(range(x.ndim))[-count:]:
      raise ValueError(
        f"axis must be the last dims of x, of {x.ndim} dims, got {self.axis}"
      )
    shape = x.shape[-count:]
    mesh = self._ring_mesh()
    if mesh is not None:
      name = f"dim {-count} of x"
      global_view.check_divides(mesh, self.axis_name, name, shape[0])
    entries = (self.axis_name, *[None] * (count - 1))
    kernel = self._parameter(
      "kernel",
      self.kernel_init,
      (*shape, self.features),
      jax.P(*entries, None),
      inputs=count,
    )
    bias = None
    if self.use_bias:
      spec = jax.P(adapter.row_bias_axis(self))
      share = self.features
      if adapter.row_bias_axis(self) is not None:
        share = self._share(share, "features")
      bias = self._parameter("bias", self.bias_init, (share,), spec)
    x, kernel, bias = self.promote_dtype(x, kernel, bias, dtype=self.dtype)
    x = x.reshape(*x.shape[:-count], -1)
    kernel = kernel.reshape(-1, self.features)
    if self._multiplies_whole(x):
      y = x @ kernel
      return y if bias is None else y + bias
    return adapter.row((x, kernel, bias), self)


# flax names a submodule after its class: originals' trees have "Dense_0".
ColumnDense.__name__ = RowDense.__name__ = nn.Dense.__name__


def _dims(given: int | Sequence[int]) -> tuple[int, ...]:
  return (given,) if isinstance(given, int) else tuple(given)
