"""What the tests of the framework's layers share: whole numbers, and exactness.

Sums of small whole numbers are exact, however they are added: the layers must
give the originals' values and gradients to the last bit.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from op_cases import quick_compilation

jit = functools.partial(jax.jit, compiler_options=quick_compilation())
Auto, Explicit = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit


def mesh_of(kind=Auto):
  return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))


def whole(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(-2, 3, shape), jnp.float32)


def whole_init(key, shape, dtype):
  return jax.random.randint(key, shape, -2, 3).astype(dtype)


def with_gradients(f):
  """`f` and its gradients in all arguments, of the output as cotangent."""

  def run(*arguments):
    y, gradient = jax.vjp(f, *arguments)
    return y, gradient(y)

  return run


def assert_equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def devices_first(x, dim, size=4):
  """The shards of `x` along `dim`, stacked."""
  return jnp.stack(jnp.split(x, size, axis=dim))
