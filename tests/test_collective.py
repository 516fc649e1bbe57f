"""The ops against dense float64, their oracle, and their compiled text."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_cases import SETTINGS, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxpr_walk import equations
from op_cases import (
  Case,
  apply,
  assert_right,
  problem,
  sharded_op,
  tolerance,
)

import collective_mm
from collective_mm import (
  all_gather_matmul,
  make_mesh,
  matmul_reduce_scatter,
  reference,
)
from collective_mm.mesh import varying_axes

OPS = ("all_gather_matmul", "matmul_reduce_scatter")
SCHEDULES = ("unoverlapped", "async", "one_way", "two_way")


@pytest.mark.parametrize("op", OPS)
@settings(max_examples=100, **SETTINGS)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_any_case_equals_float64(op, data, seed):
  assert_right(data.draw(cases(op)), seed)


@pytest.mark.long
@pytest.mark.parametrize("op", OPS)
@settings(max_examples=1000, **SETTINGS)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_many_more_cases_equal_float64(op, data, seed):
  assert_right(data.draw(cases(op)), seed)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dim", [-3, -2, -1])
@pytest.mark.parametrize("size", [3, 4])
def test_equals_the_oracle(op, schedule, dim, size):
  case = Case(
    op=op, size=size, rows=(2, 4), inner=8, outer=(5, 3), dim=dim,
    options=(("schedule", schedule),),
  )  # fmt: skip
  given_ = problem(case)
  got, want = apply(case, given_), apply(case, given_, module=reference)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=tolerance("float32", 64)
    ),
    got,
    want,
  )


@pytest.mark.parametrize("schedule", ["one_way", "two_way"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_terms_without_a_sum_over_devices_are_exact(schedule, dtype):
  # Gathered rows meet the whole weight: nothing is added across devices. Small
  # whole numbers make the products themselves exact.
  mesh = make_mesh(data=1, model=4, devices=jax.devices()[:4])
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.integers(-3, 4, (16, 6)), dtype)
  w = jnp.asarray(rng.integers(-3, 4, (6, 8)), dtype)
  run = jax.jit(
    jax.shard_map(
      lambda x, w: all_gather_matmul(
        x, w, axis_name="model", gather_dim=0, schedule=schedule
      ),
      mesh=mesh,
      in_specs=(jax.P("model"), jax.P(None, "model")),
      out_specs=jax.P(None, "model"),
    )
  )
  np.testing.assert_array_equal(run(x, w), np.asarray(x) @ np.asarray(w))


def test_tolerance_is_not_vacuous():
  case = Case(
    op="matmul_reduce_scatter", size=4, rows=(4,), inner=8, outer=(4,), dim=-2
  )
  given_ = problem(case)
  y, _ = apply(case, given_)
  # One device's share left out would be off by far more than is allowed.
  share = np.asarray(given_.x[0])[:, :8] @ np.asarray(given_.w[0])[:8]
  assert np.abs(share).max() > 1000 * tolerance("float32", 64)
  np.testing.assert_allclose(y, given_.answer[0], atol=1e-4)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dim", [-2, -1])
@pytest.mark.parametrize(
  ("schedule", "size", "sends"),
  [
    ("one_way", 2, 1), ("one_way", 5, 4), ("one_way", 8, 7),
    ("two_way", 2, 1), ("two_way", 5, 8), ("two_way", 8, 14),
    ("unoverlapped", 4, 0),
  ],
)  # fmt: skip
def test_compiled_op_sends_exactly_its_permutes(op, dim, schedule, size, sends):
  case = Case(
    op=op, size=size, rows=(4,), inner=4, outer=(4, 6), dim=dim,
    options=(("schedule", schedule),),
  )  # fmt: skip
  text = _forward_text(case)
  if (op, schedule, size) == ("matmul_reduce_scatter", "two_way", 2):
    sends = 2  # one direction, but a lane of sums to hide the other
  assert len(re.findall(r"\bcollective-permute(?:-start)?\(", text)) == sends
  gathers = len(re.findall(r"\ball-gather(?:-start)?\(", text))
  native = schedule == "unoverlapped"
  assert gathers == (native and op == "all_gather_matmul")
  reduces = re.findall(r"\b(?:all-reduce|reduce-scatter)(?:-start)?\(", text)
  assert bool(reduces) == (native and op == "matmul_reduce_scatter")


def _forward_text(case):
  given_ = problem(case)
  compiled = jax.jit(sharded_op(case, given_)).lower(given_.x, given_.w)
  return compiled.compile().as_text()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("wire", [None, "float32"])
@pytest.mark.parametrize("accum", ["bfloat16", "float32"])
def test_products_and_sums_have_the_dtypes_asked_for(op, wire, accum):
  options = {"accum_dtype": accum}
  if op == "matmul_reduce_scatter":
    options["wire_dtype"] = wire
  case = Case(
    op=op, size=4, rows=(4,), inner=4, outer=(4,), dim=-2, dtype="bfloat16",
    options=tuple(options.items()),
  )  # fmt: skip
  given_ = problem(case)
  dense = sharded_op(case, given_)

  def both(x, w, dy):
    return jax.vjp(dense, x, w)[1](dy)

  def found(f, arguments, name):
    names = equations(jax.make_jaxpr(f)(*arguments))
    return {
      str(e.outvars[0].aval.dtype) for e in names if name in str(e.primitive)
    }

  inputs = given_.x, given_.w
  assert found(both, (*inputs, given_.dy), "dot_general") == {accum}
  travels = "bfloat16" if op == "all_gather_matmul" else wire or "bfloat16"
  assert found(dense, inputs, "ppermute") == {travels}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dim", [-2, -1])
def test_backward_keeps_local_shards_only(op, dim):
  case = Case(op=op, size=4, rows=(8,), inner=16, outer=(24,), dim=dim)
  sizes = _residual_shapes(case)
  given_ = problem(case)
  shards = {
    _per_device(leaf.shape, spec, case.size)
    for leaf, spec in zip(
      jax.tree.leaves((given_.x, given_.w)),
      jax.tree.leaves(given_.in_specs),
      strict=True,
    )
  }
  assert sizes == shards


def test_save_keeps_the_gathered_input_instead():
  case = Case(
    op="all_gather_matmul", size=4, rows=(8,), inner=16, outer=(24,), dim=-2,
    options=(("dw", "save"),),
  )  # fmt: skip
  assert _residual_shapes(case) == {(32, 16), (16, 24)}


def _residual_shapes(case):
  """Shapes that backward of one device keeps from forward."""
  given_ = problem(case)
  mesh = make_mesh(data=1, model=case.size, devices=jax.devices()[: case.size])
  op = getattr(collective_mm, case.op)
  found = set()

  def per_device(x, w):
    _, gradient = jax.vjp(lambda x, w: op(x, w, **case.op_options), x, w)
    # The closure of a vjp is a pytree whose leaves are its residuals.
    found.update(leaf.shape for leaf in jax.tree.leaves(gradient))
    return jax.tree.map(jnp.sum, x)

  jax.eval_shape(
    jax.shard_map(
      per_device,
      mesh=mesh,
      in_specs=given_.in_specs,
      out_specs=jax.P(),
      check_vma=False,
    ),
    given_.x,
    given_.w,
  )
  return found


def _per_device(shape, spec, size):
  return tuple(
    n // size if i < len(spec) and spec[i] == "model" else n
    for i, n in enumerate(shape)
  )


def test_replicated_weight_gets_the_sum_of_its_gradients():
  # x varies over both axes, w over model alone: dw must add up over data.
  mesh = make_mesh(data=2, model=4)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((16, 6)), jnp.float32)
  w = jnp.asarray(rng.standard_normal((6, 8)), jnp.float32)

  def loss(x, w):
    y = all_gather_matmul(x, w, axis_name="model", gather_dim=0)
    return jax.lax.psum((y**2).sum(), ("data", "model"))

  @jax.jit
  @jax.shard_map(
    mesh=mesh,
    in_specs=(jax.P(("data", "model")), jax.P(None, "model")),
    out_specs=(jax.P(("data", "model")), jax.P(None, "model")),
  )
  def gradients(x, w):
    dx, dw = jax.grad(loss, argnums=(0, 1))(x, w)
    assert varying_axes(dw) == {"model"}
    return dx, dw

  want = jax.grad(lambda x, w: ((x @ w) ** 2).sum(), argnums=(0, 1))(x, w)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    gradients(x, w),
    want,
  )


def _call(op, x, w, mesh=None, specs=None, **options):
  mesh = mesh or make_mesh(data=2, model=4)
  specs = specs or jax.tree.map(lambda _: jax.P(), (x, w))
  dense = jax.shard_map(
    lambda x, w: op(x, w, **options),
    mesh=mesh,
    in_specs=specs,
    out_specs=jax.P(),
    check_vma=False,
  )
  return jax.eval_shape(dense, x, w)


@pytest.mark.parametrize(
  ("op", "x", "w", "options", "message"),
  [
    (
      all_gather_matmul, (4, 6), (7, 8), {"gather_dim": 0},
      r"w must be a matrix of 6 rows for gather_dim=0 \(axis 'model' has size "
      r"4\), got w.shape=\(7, 8\), x.shape=\(4, 6\)",
    ),
    (
      all_gather_matmul, (4, 6), (6, 8), {"gather_dim": -1},
      r"w must be a matrix of 4 x 6 = 24 rows .* got w.shape=\(6, 8\)",
    ),
    (
      all_gather_matmul, (4, 6), (2, 6, 8), {"gather_dim": 0},
      r"w must be a matrix of 6 rows .* got w.shape=\(2, 6, 8\)",
    ),
    (
      all_gather_matmul, (4, 6), (6, 8), {"gather_dim": 2},
      r"gather_dim must be a dim of x, from -2 to 1, got 2",
    ),
    (
      matmul_reduce_scatter, (4, 6), (6, 8), {"scatter_dim": -3},
      r"scatter_dim must be a dim of y, from -2 to 1, got -3",
    ),
    (
      matmul_reduce_scatter, (4, 6), (5, 8), {"scatter_dim": 0},
      r"w must be a matrix with a row for each of the 6 features of x, got "
      r"w.shape=\(5, 8\), x.shape=\(4, 6\)",
    ),
    (
      matmul_reduce_scatter, (), (), {"scatter_dim": 0},
      r"x must have features as its last dim, got x.shape=\(\)",
    ),
    (
      all_gather_matmul, (4, 6), (6, 8),
      {"gather_dim": 0, "axis_name": ("model", "data")},
      r"tuple in mesh order, \('data', 'model'\), got \('model', 'data'\)",
    ),
    (
      matmul_reduce_scatter, (4, 6), (6, 8),
      {"scatter_dim": 0, "axis_name": ["data", "model"]},
      r"tuple in mesh order, \('data', 'model'\), got \['data', 'model'\]",
    ),
    (
      all_gather_matmul, (4, 6), (6, 8), {"gather_dim": 0, "schedule": "ring"},
      r"schedule must be one of auto, .* got 'ring'",
    ),
    (
      all_gather_matmul, (4, 6), (6, 8), {"gather_dim": 0, "chunks": 0},
      r"chunks must be a whole number from 1, got 0",
    ),
    (
      all_gather_matmul, (4, 6), (6, 8), {"gather_dim": 0, "dw": "keep"},
      r'dw must be "regather" or "save", got \'keep\'',
    ),
    (
      all_gather_matmul, (4, 6), (6, 8),
      {"gather_dim": 0, "axis_name": "tensor"},
      r"axis_name must be an axis of the jax.shard_map .*'data', 'model'.* "
      r"got 'tensor'",
    ),
  ],
)  # fmt: skip
def test_bad_input_is_named(op, x, w, options, message):
  with pytest.raises(ValueError, match=message):
    _call(op, jnp.ones(x), jnp.ones(w), **{"axis_name": "model"} | options)


def test_pairs_must_match():
  x, w = jnp.ones((4, 6)), jnp.ones((6, 8))
  options = {"axis_name": "model", "scatter_dim": 0}
  for xs, ws in (((x, x), (w,)), ((), ())):
    with pytest.raises(
      ValueError,
      match=f"tuples of one length, not 0, got {len(xs)} and {len(ws)}",
    ):
      _call(matmul_reduce_scatter, xs, ws, **options)
  with pytest.raises(
    ValueError,
    match=r"must have the shape of the first, \(4, 8\), got \(4, 9\) \(pair 1",
  ):
    _call(matmul_reduce_scatter, (x, x), (w, jnp.ones((6, 9))), **options)


def test_at_least_one_weight():
  with pytest.raises(ValueError, match=r"a tuple of at least one, got \(\)"):
    _call(
      all_gather_matmul, jnp.ones((4, 6)), (), axis_name="model", gather_dim=0
    )


def test_outside_shard_map_is_refused():
  with pytest.raises(ValueError, match=r"that are manual here.*got 'model'"):
    all_gather_matmul(
      jnp.ones((4, 6)), jnp.ones((6, 8)), axis_name="model", gather_dim=0
    )
