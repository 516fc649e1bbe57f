"""The product that every device keeps whole, beside dense float64."""

import re

import jax
import jax.numpy as jnp
import pytest
from drawn_cases import SETTINGS, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import Case, assert_right, problem, sharded_op

from collective_mm import make_mesh, matmul_all_reduce
from collective_mm.mesh import varying_axes


def case_of(size, rows, outer=(4,), check_vma=True, whole=True, **options):
  return Case(
    op="matmul_all_reduce", size=size, rows=rows, inner=3, outer=outer,
    check_vma=check_vma, whole=whole, options=tuple(options.items()),
  )  # fmt: skip


@settings(max_examples=30, **SETTINGS)
@given(case=cases("matmul_all_reduce"), seed=st.integers(0, 2**16))
def test_any_case_equals_float64(case, seed):
  assert_right(case, seed)


@pytest.mark.long
@settings(max_examples=300, **SETTINGS)
@given(case=cases("matmul_all_reduce"), seed=st.integers(0, 2**16))
def test_many_more_cases_equal_float64(case, seed):
  assert_right(case, seed)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize(
  "case",
  [
    case_of(1, (4,)),
    case_of(4, ()),
    case_of(4, (3,)),  # fewer rows than devices: features travel
    case_of(4, (11,), chunks=2),
    case_of(3, (2, 7), chunks=3, schedule="one_way"),
    case_of(8, (2, 3, 9), outer=(4, 4, 4)),
    case_of(6, (12,), schedule="unoverlapped"),
    case_of(5, (12,), schedule="async"),
  ],
  ids=str,
)
def test_values_and_gradients_are_exact(case, check_vma):
  # Sums of small whole numbers, which every order of adding gets right.
  options = {**vars(case), "check_vma": check_vma}
  assert_right(Case(**options))


def test_output_is_the_same_everywhere_for_jax_too():
  mesh = make_mesh(data=2, model=4)
  seen = []

  def per_device(x, w):
    y = matmul_all_reduce(x, w, axis_name="model")
    seen.append(varying_axes(y))
    return y

  # `x` differs over both axes, `y` over data alone: out_specs may say so.
  dense = jax.shard_map(
    per_device,
    mesh=mesh,
    in_specs=(jax.P("data", "model"), jax.P("model")),
    out_specs=jax.P("data"),
  )
  jax.eval_shape(dense, jnp.ones((8, 8)), jnp.ones((8, 6)))
  assert seen == [{"data"}]


def collectives(text):
  names = ("collective-permute", "all-gather", "all-reduce", "reduce-scatter")
  return tuple(
    len(re.findall(rf"\b{name}(?:-start)?\(", text)) for name in names
  )


@pytest.mark.parametrize(
  ("options", "permutes", "gathers"),
  [
    ({"schedule": "one_way", "chunks": 1}, 3, 1),
    ({"schedule": "one_way", "chunks": 2}, 6, 2),
    ({"schedule": "two_way", "chunks": 2}, 12, 2),
  ],
)
def test_compiled_op_sends_exactly_its_permutes(options, permutes, gathers):
  case = case_of(4, (16,), **options)
  given_ = problem(case)
  lowered = jax.jit(sharded_op(case, given_)).lower(given_.x, given_.w)
  text = lowered.compile().as_text()
  assert collectives(text) == (permutes, gathers, 0, 0)


@pytest.mark.parametrize("schedule", ["unoverlapped", "two_way"])
def test_backward_sends_nothing(schedule):
  case = case_of(4, (16,), schedule=schedule)
  given_ = problem(case)
  dense = sharded_op(case, given_)

  def backward(x, w, dy):
    return jax.vjp(dense, x, w)[1](dy)

  lowered = jax.jit(backward).lower(given_.x, given_.w, given_.dy)
  # What forward sends is not needed, and left out.
  assert collectives(lowered.compile().as_text()) == (0, 0, 0, 0)


@pytest.mark.parametrize(
  ("x", "w", "options", "message"),
  [
    (
      (4, 6), (5, 8), {},
      r"w must be a matrix with a row for each of the 6 features of x",
    ),
    ((4, 6), (6, 8), {"chunks": 0}, r"chunks must be a whole number .* got 0"),
    (
      (4, 6), (6, 8), {"schedule": ("one_way", "two_way")},
      r"schedule must be one name, since backward sends nothing, got \('one",
    ),
    ((4, 6), (6, 8), {"schedule": "ring"}, r"schedule must be .* got 'ring'"),
    (
      (4, 6), (6, 8), {"axis_name": "tensor"},
      r"axis_name must be an axis of the jax.shard_map .* got 'tensor'",
    ),
    (
      (4, 6), (6, 8), {"axis_name": ("model", "data")},
      r"tuple in mesh order, \('data', 'model'\), got \('model', 'data'\)",
    ),
  ],
)  # fmt: skip
def test_bad_input_is_named(x, w, options, message):
  dense = jax.shard_map(
    lambda x, w: matmul_all_reduce(x, w, **{"axis_name": "model"} | options),
    mesh=make_mesh(data=2, model=4),
    in_specs=jax.P(),
    out_specs=jax.P(),
    check_vma=False,
  )
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(dense, jnp.ones(x), jnp.ones(w))
