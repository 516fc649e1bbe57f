"""What the ops refuse, with which words, before they trace anything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collective_mm import (
  all_gather_matmul,
  make_mesh,
  matmul_all_reduce,
  matmul_reduce_scatter,
)

X, W = np.ones((4, 6), np.float32), np.ones((6, 8), np.float32)
GATHER = functools.partial(all_gather_matmul, gather_dim=0)
SCATTER = functools.partial(matmul_reduce_scatter, scatter_dim=0)
OPS = {
  "all_gather_matmul": GATHER,
  "matmul_reduce_scatter": SCATTER,
  "matmul_all_reduce": matmul_all_reduce,
}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def call(op, x, w, **options):
  """Traces a call on a mesh of two by four, with what is no array as well."""
  dense = jax.shard_map(
    lambda: op(x, w, **{"axis_name": "model"} | options),
    mesh=make_mesh(data=2, model=4),
    in_specs=(),
    out_specs=jax.P(),
    check_vma=False,
  )
  return jax.eval_shape(dense)


@every_op
def test_arrays_of_numpy_are_arrays(op):
  assert call(op, X, W).dtype == np.float32


@every_op
@pytest.mark.parametrize(
  ("x", "w", "message"),
  [
    (None, W, "x must be an array or a tuple of arrays, got NoneType"),
    ([X], W, "x must be an array or a tuple of arrays, got list"),
    (X, None, "w must be an array or a tuple of arrays, got NoneType"),
    (X, [W], "w must be an array or a tuple of arrays, got list"),
    (X, 3.0, "w must be an array or a tuple of arrays, got float"),
    (X, (W, None), "w must be an array .*, got a tuple with NoneType"),
    (X[:0], W, r"must not be empty, got x.shape=\(0, 6\), w.shape=\(6, 8\)"),
    (X, W[:, :0], r"must not be empty, got x.shape=\(4, 6\), w.shape=\(6, 0\)"),
    (X, W[0], r"w must be a matrix .* got w.shape=\(8,\), x.shape=\(4, 6\)"),
    (X.astype(int), W, "x must have a floating dtype .* x.dtype=int"),
  ],
)
def test_what_is_no_array(op, x, w, message):
  with pytest.raises(ValueError, match=message):
    call(op, x, w)


@pytest.mark.parametrize(
  ("op", "x", "w", "message"),
  [
    (GATHER, (X,), W, "x must be one array, got a tuple of 1"),
    (GATHER, X[0, 0], W, "must be a dim of x, from 0 to -1, got 0"),
    (SCATTER, X[0, 0], W, r"x must have features .* got x.shape=\(\)"),
    (matmul_all_reduce, X[0, 0], W, r"x must have features .* x.shape=\(\)"),
    (matmul_all_reduce, (), (), "one length, not 0, got 0 and 0"),
    (matmul_all_reduce, (X, X), W, "one length, not 0, got 2 and 1"),
  ],
)
def test_what_one_op_alone_refuses(op, x, w, message):
  with pytest.raises(ValueError, match=message):
    call(op, jnp.asarray(x) if isinstance(x, np.generic) else x, w)


@every_op
@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"axis_name": None}, r"an axis of the jax.shard_map .*, got None"),
    ({"axis_name": 0}, r"manual here: \('data', 'model'\), got 0"),
    ({"axis_name": ()}, r"manual here: \('data', 'model'\), got \(\)"),
    ({"axis_name": ("model", None)}, r"here: .*, got \('model', None\)"),
    ({"axis_name": ("data", "z")}, r"here: .*, got \('data', 'z'\)"),
    ({"axis_name": ("model", "model")}, r"mesh order, \('model',\), got"),
    ({"axis_name": ["model"]}, r"mesh order, \('model',\), got \['model'\]"),
    ({"chunks": True}, "chunks must be a whole number from 1, got True"),
    ({"chunks": 1.5}, "chunks must be a whole number from 1, got 1.5"),
    ({"chunks": -1}, "chunks must be a whole number from 1, got -1"),
    ({"schedule": None}, "schedule must be one .*, got None"),
    ({"schedule": ("one_way",)}, r"schedule must be one .*, got \('one_way',"),
    ({"accum_dtype": None}, "accum_dtype must be a floating dtype, got None"),
    ({"accum_dtype": "int32"}, "accum_dtype must be a .*, got 'int32'"),
    ({"accum_dtype": "float33"}, "accum_dtype must be a .*, got 'float33'"),
  ],
)
def test_options_that_no_op_takes(op, options, message):
  with pytest.raises(ValueError, match=message):
    call(op, X, W, **options)


@pytest.mark.parametrize("dim", [True, 1.0, None, "0", (0,), 2, -3])
@pytest.mark.parametrize(
  ("op", "name"), [(GATHER, "gather_dim"), (SCATTER, "scatter_dim")]
)
def test_what_is_no_dim(op, name, dim):
  of = "x" if name == "gather_dim" else "y"
  with pytest.raises(
    ValueError, match=rf"{name} must be a dim of {of}, from -2 to 1, got "
  ):
    call(op, X, W, **{name: dim})


@pytest.mark.parametrize("op", [SCATTER, matmul_all_reduce])
@pytest.mark.parametrize("dtype", ["int8", "float33", complex])
def test_what_sums_cannot_travel_in(op, dtype):
  with pytest.raises(ValueError, match="wire_dtype must be a floating dtype"):
    call(op, X, W, wire_dtype=dtype)


def test_an_epilogue_is_a_function():
  with pytest.raises(ValueError, match="epilogue must be a function, got 3"):
    call(GATHER, X, W, epilogue=3)


@every_op
def test_outside_shard_map(op):
  with pytest.raises(ValueError, match=r"manual here: \(\), got 'model'"):
    op(X, W, axis_name="model")
