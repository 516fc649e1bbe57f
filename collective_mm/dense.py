"""Sharded Dense layers: parameters, their sharding and the overlapped product.

A layer with a `mesh` is called under plain `jax.jit` on global arrays: it
opens `jax.shard_map` over the model axis alone and leaves all other mesh axes
to the compiler. A layer without one is called inside a `jax.shard_map` of the
caller's, on per-device arrays.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from collective_mm import global_view

Params = dict[str, jax.Array]
Initializer = Callable[..., jax.Array]
_LECUN_NORMAL = jax.nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dense:
  """What both layers share: fields, `init` and `specs`."""

  features: int = dataclasses.field(kw_only=False)
  mesh: jax.sharding.Mesh | None = None
  axis_name: str = "model"
  use_bias: bool = True
  dtype: jax.typing.DTypeLike | None = None
  param_dtype: jax.typing.DTypeLike = jnp.float32
  kernel_init: Initializer = _LECUN_NORMAL
  bias_init: Initializer = jax.nn.initializers.zeros
  schedule: str | tuple[str, str] = "auto"
  chunks: int = 1
  accum_dtype: jax.typing.DTypeLike = jnp.float32

  def __post_init__(self):
    if self.features < 1:
      raise ValueError(f"features must be at least 1, got {self.features}")
    if self.mesh is not None:
      global_view.check_axis(self.mesh, self.axis_name)

  def init(self, key: jax.Array, in_features: int) -> Params:
    """Returns `{"kernel": [in_features, features], "bias": [features]}`.

    The arrays are global; with a mesh they are made sharded as `specs` says.

    Args:
      key: PRNG key.
      in_features: features of the input, over all devices.

    Raises:
      ValueError: if the mesh axis does not divide the sharded dim.
    """
    self._check_init(in_features)

    def make(key):
      shape = (in_features, self.features)
      params = {"kernel": self.kernel_init(key, shape, self.param_dtype)}
      if self.use_bias:
        shape = (self.features,)
        params["bias"] = self.bias_init(key, shape, self.param_dtype)
      return params

    if self.mesh is None:
      return make(key)
    shardings = {
      name: jax.NamedSharding(self.mesh, spec)
      for name, spec in self.specs.items()
    }
    return jax.jit(make, out_shardings=shardings)(key)

  def _check_divides(self, name: str, number: int) -> None:
    global_view.check_divides(self.mesh, self.axis_name, name, number)

  def _cast(self, params: Params, x: jax.Array) -> tuple[Params, jax.Array]:
    """Both in `dtype`, or in the type that jax promotes them to."""
    dtype = self.dtype or jnp.result_type(x, params["kernel"])
    return jax.tree.map(lambda a: a.astype(dtype), params), x.astype(dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnDense(_Dense):
  """`y = x @ kernel + bias`, kernel split by columns, input gathered.

      x[B_m, S, D] @ kernel[D, F_m] + bias[F_m] -> y[B, S, F_m]

  With `gather_dim=-1` the input is `x[B, S, D_m]`, the paper's scheme; there
  it is called row-sharding, since the paper writes `y = A x`.

  Other mesh axes may shard the row dims of `x` too. The compiler must reshard
  two of them: the gathered one and, if that is another, the last one, which a
  two-way ring halves. Axes that are Explicit, which nothing reshards unasked,
  may not shard the gathered one; of the others the ring halves a free one.

  Args:
    features: `F`, output features over all devices.
    mesh: mesh of the global view; None inside `jax.shard_map`.
    axis_name: mesh axis that splits the kernel.
    gather_dim: dim of `x` that is sharded over `axis_name`.
    use_bias: whether to add a bias.
    dtype: dtype of the computation; by default what jax promotes to.
    param_dtype: dtype of the parameters.
    kernel_init: initialiser of the kernel.
    bias_init: initialiser of the bias.
    schedule: as in `all_gather_matmul`; "auto" asks the gate for forward, and
      leaves backward's gathers to a compiler that makes them asynchronous.
    chunks: as in `all_gather_matmul`.
    accum_dtype: as in `all_gather_matmul`.
    dw: as in `all_gather_matmul`.

  Example (four devices):
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> layer = ColumnDense(16, mesh=mesh)
    >>> params = layer.init(jax.random.key(0), 8)
    >>> jax.jit(layer)(params, jnp.ones((4, 8))).shape
    (4, 16)
  """

  gather_dim: int = 0
  dw: str = "regather"

  @property
  def specs(self) -> dict[str, jax.P]:
    """The `PartitionSpec` of each parameter."""
    specs = {"kernel": jax.P(None, self.axis_name)}
    return specs | ({"bias": jax.P(self.axis_name)} if self.use_bias else {})

  def _check_init(self, in_features: int) -> None:
    self._check_divides("features", self.features)

  def __call__(self, params: Params, x: jax.Array) -> jax.Array:
    """Applies the layer to `x[..., D]`, global or per device."""
    params, x = self._cast(params, x)
    (y,) = global_view.column(
      x,
      (params["kernel"],),
      (params["bias"],) if self.use_bias else None,
      mesh=self.mesh,
      axis_name=self.axis_name,
      gather_dim=self.gather_dim,
      schedule=self.schedule,
      chunks=self.chunks,
      accum_dtype=self.accum_dtype,
      dw=self.dw,
    )
    return y


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowDense(_Dense):
  """`y = x @ kernel + bias`, kernel split by rows, output reduce-scattered.

      x[B, S, F_m] @ kernel[F_m, D] + bias[D] -> y[B_m, S, D]

  With `scatter_dim=-1` the output is `y[B, S, D_m]`, the paper's scheme; there
  it is called column-sharding, since the paper writes `y = A x`.

  Other mesh axes may shard the row dims of `x` too, as for `ColumnDense`.

  Args:
    features: `D`, output features over all devices.
    scatter_dim: dim of `y` that comes out sharded over `axis_name`; -1 for the
      features.
    wire_dtype: as in `matmul_reduce_scatter`.
    mesh, axis_name, use_bias, dtype, param_dtype: as in `ColumnDense`.
    kernel_init, bias_init, schedule, chunks, accum_dtype: as there.

  Example (four devices):
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> layer = RowDense(8, mesh=mesh)
    >>> params = layer.init(jax.random.key(0), 16)
    >>> jax.jit(layer)(params, jnp.ones((4, 16))).shape
    (4, 8)
  """

  scatter_dim: int = 0
  wire_dtype: jax.typing.DTypeLike | None = None

  @property
  def specs(self) -> dict[str, jax.P]:
    """The `PartitionSpec` of each parameter."""
    specs = {"kernel": jax.P(self.axis_name, None)}
    bias = jax.P(self.axis_name if self.scatter_dim == -1 else None)
    return specs | ({"bias": bias} if self.use_bias else {})

  def _check_init(self, in_features: int) -> None:
    self._check_divides("in_features", in_features)
    if self.scatter_dim == -1:
      self._check_divides("features", self.features)

  def __call__(self, params: Params, x: jax.Array) -> jax.Array:
    """Applies the layer to `x[..., F]`, global or per device."""
    params, x = self._cast(params, x)
    return global_view.row(
      x,
      params["kernel"],
      params["bias"] if self.use_bias else None,
      mesh=self.mesh,
      axis_name=self.axis_name,
      scatter_dim=self.scatter_dim,
      schedule=self.schedule,
      chunks=self.chunks,
      accum_dtype=self.accum_dtype,
      wire_dtype=self.wire_dtype,
    )
