"""Which dtypes the ops take, and what they give back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_walk import equations
from op_cases import quick_compilation

from collective_mm import (
  all_gather_matmul,
  make_mesh,
  matmul_all_reduce,
  matmul_reduce_scatter,
)

P = jax.P
GATHERED = (P("model"), P(None, "model")), P(None, "model")
SCATTERED = (P(None, "model"), P("model")), P("model")
OPS = {
  "all_gather_matmul": (
    functools.partial(all_gather_matmul, gather_dim=0), *GATHERED,
  ),
  "matmul_reduce_scatter": (
    functools.partial(matmul_reduce_scatter, scatter_dim=0), *SCATTERED,
  ),
  "matmul_all_reduce": (matmul_all_reduce, SCATTERED[0], P()),
}  # fmt: skip
PAIRS = [
  ("float16", "float16"),
  ("bfloat16", "float32"),
  ("float32", "bfloat16"),
  ("bfloat16", "int8"),
  ("float32", "int8"),
  ("bfloat16", "float8_e4m3fn"),
  ("float32", "float8_e4m3fn"),
  ("float8_e4m3fn", "float8_e4m3fn"),
]


def on_ring(name, **options):
  op, in_specs, out_specs = OPS[name]
  return jax.shard_map(
    functools.partial(op, axis_name="model", **options),
    mesh=make_mesh(data=1, model=4, devices=jax.devices()[:4]),
    in_specs=in_specs,
    out_specs=out_specs,
  )


def draw(x_dtype, w_dtype):
  # 0 and +-1 are exact in every dtype, and so are sums of eight products.
  rng = np.random.default_rng(0)
  x, w = rng.integers(-1, 2, (8, 8)), rng.integers(-1, 2, (8, 12))
  return jnp.asarray(x, x_dtype), jnp.asarray(w, w_dtype)


def run(f, *arguments):
  return jax.jit(f, compiler_options=quick_compilation())(*arguments)


@pytest.mark.parametrize("schedule", ["unoverlapped", "two_way"])
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(("x_dtype", "w_dtype"), PAIRS)
def test_product_has_the_dtype_of_x(name, x_dtype, w_dtype, schedule):
  x, w = draw(x_dtype, w_dtype)
  y = run(on_ring(name, schedule=schedule), x, w)
  assert y.dtype == x.dtype
  want = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
  np.testing.assert_array_equal(np.asarray(y, np.float64), want)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(("x_dtype", "w_dtype"), PAIRS)
def test_narrow_weights_are_multiplied_as_they_are(name, x_dtype, w_dtype):
  x, w = draw(x_dtype, w_dtype)
  traced = jax.make_jaxpr(on_ring(name))(x, w)
  dots = [e for e in equations(traced) if e.primitive.name == "dot_general"]
  assert dots
  for dot in dots:
    dtypes = [str(v.aval.dtype) for v in (*dot.invars, *dot.outvars)]
    assert dtypes == [x_dtype, w_dtype, "float32"]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(("x_dtype", "w_dtype"), PAIRS)
def test_gradients_have_the_dtypes_of_what_they_are_of(name, x_dtype, w_dtype):
  x, w = draw(x_dtype, w_dtype)
  dense = on_ring(name)
  trained = (0,) if w_dtype == "int8" else (0, 1)  # jax has no integer ones

  def gradients(f, x, w):
    def loss(x, w):
      return f(x, w).astype(jnp.float32).sum()

    return jax.grad(loss, trained)(x, w)

  got = run(functools.partial(gradients, dense), x, w)
  exact = np.asarray(x, np.float32), np.asarray(w, np.float32)
  want = gradients(jnp.matmul, *exact)
  for a, b, given in zip(got, want, (x, w), strict=False):
    assert a.dtype == given.dtype
    np.testing.assert_array_equal(np.asarray(a, np.float32), b)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
  ("x_dtype", "w_dtype"),
  [
    ("int8", "int8"),
    ("int32", "float32"),
    ("bool", "float32"),
    ("float32", "bool"),
    ("float32", "complex64"),
    ("complex64", "float32"),
  ],
)
def test_what_the_output_cannot_hold_is_refused(name, x_dtype, w_dtype):
  arguments = jnp.ones((8, 8), x_dtype), jnp.ones((8, 12), w_dtype)
  with pytest.raises(
    ValueError,
    match="x must have a floating dtype and w a floating or integer one, got "
    f"x.dtype={x_dtype}, w.dtype={w_dtype}",
  ):
    jax.eval_shape(on_ring(name), *arguments)
