import re

import jax
import numpy as np
import pytest

from collective_mm import make_mesh
from profiling import matmul_methods

OPS = matmul_methods.OPS
COLLECTIVES = re.compile(
  r"all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
)


def problem(op, size, dtype="float32"):
  mesh = make_mesh(data=1, model=size, devices=jax.devices()[:size])
  return matmul_methods.Problem(
    op=op, tokens=12 * size, width=20, features=8 * size, dtype=dtype, mesh=mesh
  )


def compiled(case, method):
  return matmul_methods.program(case, method).lower().compile()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
  "size, dtype", [(1, "float32"), (3, "float32"), (4, "bfloat16")]
)
def test_every_method_agrees_with_unoverlapped(op, size, dtype):
  case = problem(op, size, dtype)
  calls = matmul_methods.methods(case)
  assert tuple(calls) == matmul_methods.METHODS
  assert len(calls) == len(set(calls)) == 7
  matmul_methods.check(case, calls)


@pytest.mark.parametrize("op", OPS)
def test_unoverlapped_is_the_plain_product(op):
  call = matmul_methods.methods(problem(op, 4))["unoverlapped"]
  x, w, dy = map(np.asarray, call.args)
  y, dx, dw = map(np.asarray, call())
  np.testing.assert_allclose(y, x @ w, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(dx, dy @ w.T, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(dw, x.T @ dy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("output, label", [(0, "y"), (1, "dx"), (2, "dw")])
def test_a_lost_chunk_is_found(output, label):
  # bfloat16 and the longest ring: the widest tolerance.
  case = problem("all_gather_matmul", 8, "bfloat16")
  calls = matmul_methods.methods(case)

  def broken():
    results = list(calls["unoverlapped"]())
    rows = results[output].shape[0] // 8 or 1
    results[output] = results[output].at[:rows].set(0)
    return results

  suspects = {"unoverlapped": calls["unoverlapped"], "one_way": broken}
  with pytest.raises(ArithmeticError, match=f"{label} of one_way must be"):
    matmul_methods.check(case, suspects)


def test_what_is_checked_need_not_hold_unoverlapped():
  case = problem("all_gather_matmul", 4)
  calls = matmul_methods.methods(case, ("two_way",))
  assert tuple(calls) == ("two_way",)
  matmul_methods.check(case, calls)


@pytest.mark.parametrize("op", OPS)
def test_roof_does_the_same_products_and_sends_nothing(op):
  case = problem(op, 4)
  roof = compiled(case, "roof")
  assert not COLLECTIVES.search(roof.as_text())
  products = 3 * 2 * case.tokens * case.width * case.features // 4
  assert roof.cost_analysis()["flops"] == pytest.approx(products, rel=0.02)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
  "method, rings, gathers",
  [
    ("unoverlapped", False, True),
    ("compiler", False, True),
    ("one_way", True, False),
    ("two_way", True, False),
    ("two_way_async", True, True),
  ],
)
def test_every_method_is_the_one_of_its_name(op, method, rings, gathers):
  sent = COLLECTIVES.findall(compiled(problem(op, 4), method).as_text())
  assert ("collective-permute" in sent) == rings
  assert ("all-gather" in sent) == gathers


@pytest.mark.parametrize("op", OPS)
def test_two_way_sends_twice_as_often_as_one_way(op):
  one_way, two_way = (
    compiled(problem(op, 4), method).as_text().count("collective-permute(")
    for method in ("one_way", "two_way")
  )
  assert two_way == 2 * one_way > 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("method", matmul_methods.METHODS)
def test_a_program_is_what_a_call_runs(op, method):
  case = problem(op, 4, "bfloat16")
  made = matmul_methods.program(case, method)
  (call,) = matmul_methods.methods(case, (method,)).values()
  for argument, array in zip(made.arguments, call.args, strict=True):
    assert (argument.shape, argument.dtype) == (array.shape, array.dtype)
    assert argument.sharding == array.sharding
  results = [(y.shape, y.dtype) for y in jax.eval_shape(made.step, *call.args)]
  assert results == [(y.shape, y.dtype) for y in call()]
