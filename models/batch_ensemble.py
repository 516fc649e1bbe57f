"""BatchEnsemble: several models in one kernel, told apart by two vectors each.

Member `e` has the kernel `diag(alpha_e) W diag(gamma_e)`, a rank-one change of
the shared one (Wen et al. 2020; google/edward2 `jax/nn/dense.py`). All members
see every image: a batch holds it once for each, member by member.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from collective_mm.dense import ColumnDense, RowDense

Params = dict[str, jax.Array]


def tile_members(x: jax.Array, members: int) -> jax.Array:
  """Repeats a batch for each member: `x[B, ...] -> [E * B, ...]`."""
  return jnp.tile(x, (members, *(1 for _ in x.shape[1:])))


def member_mean(x: jax.Array, members: int) -> jax.Array:
  """Averages over the members: `x[E * B, ...] -> [B, ...]`.

  An ensemble predicts the mean of its members' probabilities.
  """
  return x.reshape(members, -1, *x.shape[1:]).mean(axis=0)


def perturbed_product(
  params: Params,
  x: jax.Array,
  product: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """Returns `(x * alpha_e) @ kernel * gamma_e + bias_e`, member by member.

      x[E * B, ..., D] -> y[E * B, ..., F]

  Args:
    params: "kernel" `[D, F]`, "alpha" `[E, D]`, "gamma" `[E, F]` and, where
      there is one, "bias" `[E, F]`.
    x: rows member by member, as `tile_members` lays them.
    product: multiplies by the kernel; plain `@` if not given.

  Raises:
    ValueError: if the members do not divide the rows of `x`.

  Example:
    >>> params = {"kernel": jnp.eye(2), "alpha": jnp.array([[1.0, 1], [2, 2]]),
    ...           "gamma": jnp.ones((2, 2))}
    >>> perturbed_product(params, jnp.ones((2, 2))).tolist()
    [[1.0, 1.0], [2.0, 2.0]]
  """
  members = len(params["alpha"])
  if not len(x) or len(x) % members:
    raise ValueError(
      f"x must hold every image once for each of the {members} members, got "
      f"{len(x)} rows"
    )

  def rows(vectors):
    each = jnp.repeat(vectors, len(x) // members, axis=0)
    return each.reshape(len(x), *(1 for _ in x.shape[2:]), each.shape[-1])

  x = x * rows(params["alpha"])
  y = x @ params["kernel"] if product is None else product(x)
  y = y * rows(params["gamma"])
  return y + rows(params["bias"]) if "bias" in params else y


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchEnsemble:
  """A sharded Dense layer with members; the product is the layer's own ring.

  A column-sharded kernel splits `gamma` and the biases as it does its columns,
  a row-sharded one `alpha` as it does its rows, so that scaling needs no
  communication.

  Args:
    dense: the layer, with a mesh; its own bias becomes one for each member.
    members: `E`.
    sign: how `alpha` and `gamma` begin: signs, positive with this probability,
      if it is above 0; else `N(1, sd=-sign)`, all ones at 0. The paper's "sign
      initialization of -0.5" is `N(1, 0.5)`.

  Raises:
    ValueError: if there is no member or mesh, or `sign` is above 1.

  Example (four devices):
    >>> mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
    >>> layer = BatchEnsemble(RowDense(8, mesh=mesh), members=2)
    >>> params = layer.init(jax.random.key(0), 16)
    >>> jax.jit(layer)(params, jnp.ones((2 * 4, 16))).shape
    (8, 8)
  """

  dense: ColumnDense | RowDense = dataclasses.field(kw_only=False)
  members: int
  sign: float = -0.5

  def __post_init__(self):
    if self.members < 1:
      raise ValueError(f"members must be at least 1, got {self.members}")
    if self.sign > 1:
      raise ValueError(f"sign must be at most 1, got {self.sign}")
    if self.dense.mesh is None:
      raise ValueError("dense must have a mesh, got None")

  def init(self, key: jax.Array, in_features: int) -> Params:
    """Returns "kernel", "alpha", "gamma" and "bias", sharded as `specs` says.

    Args:
      key: PRNG key.
      in_features: features of the input.
    """
    key, key_alpha, key_gamma = jax.random.split(key, 3)
    params = self.dense.init(key, in_features)
    dtype = params["kernel"].dtype
    extra = {
      "alpha": draw_vectors(
        key_alpha, (self.members, in_features), self.sign, dtype
      ),
      "gamma": draw_vectors(
        key_gamma, (self.members, self.dense.features), self.sign, dtype
      ),
    }
    if "bias" in params:
      extra["bias"] = jnp.tile(params.pop("bias"), (self.members, 1))
    shardings = {
      name: jax.NamedSharding(self.dense.mesh, self.specs[name])
      for name in extra
    }
    return params | jax.device_put(extra, shardings)

  @property
  def specs(self) -> dict[str, jax.P]:
    """The `PartitionSpec` of each parameter."""
    rows, columns = self.dense.specs["kernel"]
    if isinstance(self.dense, RowDense) and self.dense.scatter_dim == -1:
      columns = self.dense.axis_name
    specs = {
      "kernel": self.dense.specs["kernel"],
      "alpha": jax.P(None, rows),
      "gamma": jax.P(None, columns),
    }
    return specs | (
      {"bias": jax.P(None, columns)} if self.dense.use_bias else {}
    )

  def __call__(self, params: Params, x: jax.Array) -> jax.Array:
    """Applies the members to `x[E * B, ..., D]`, a global array."""
    dense = dataclasses.replace(self.dense, use_bias=False)
    kernel = {"kernel": params["kernel"]}
    return perturbed_product(params, x, lambda x: dense(kernel, x))


def draw_vectors(
  key: jax.Array, shape: tuple[int, ...], sign: float, dtype=jnp.float32
) -> jax.Array:
  """Draws `alpha` or `gamma` as `sign` of `BatchEnsemble` says.

  google/edward2 `jax/nn/utils.py`, `make_sign_initializer`.
  """
  if sign > 0:
    positive = jax.random.bernoulli(key, sign, shape)
    return jnp.where(positive, 1, -1).astype(dtype)
  return 1 - sign * jax.random.normal(key, shape, dtype)
