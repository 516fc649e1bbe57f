"""Runs an op on a ring of CPU devices beside dense numpy in float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import collective_mm
from collective_mm import make_mesh

# A sum of n products of unit normals that is rounded along the way is off by
# about sqrt(n) units in the last place of its largest terms; 8 is what the
# widest of 10,000 drawn cases needed, doubled.
_ULPS = {"float32": 2.0**-23, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One call of an op; `dim` counts from the end, `rows` are per chunk."""

  op: str
  size: int
  rows: tuple[int, ...]
  inner: int  # of the contracted dim, per device where it is sharded
  outer: tuple[int, ...]  # output features of each weight, likewise
  dim: int
  dtype: str = "float32"
  check_vma: bool = True
  options: tuple[tuple[str, Any], ...] = ()

  def __str__(self):
    return f"{self.op}-{self.size}-{self.rows}-{self.dim}-{self.dtype}"


@dataclasses.dataclass(frozen=True)
class Problem:
  """Global arrays of a case, their specs, and the exact answer."""

  x: Any
  w: tuple
  dy: Any
  in_specs: tuple
  out_specs: Any
  answer: tuple


def problem(case: Case, seed: int = 0) -> Problem:
  """Draws distinct data for every device and solves it densely."""
  rng = np.random.default_rng(seed)
  t, ndim = case.size, len(case.rows) + 1
  dtype = jnp.dtype(case.dtype)

  def draw(*shape):
    # Rounded to the dtype first, so that both sides see the same numbers.
    return jnp.asarray(rng.standard_normal(shape), dtype)

  def exact(a):
    return np.asarray(a, np.float64)

  rows = list(case.rows)
  by_rows = case.dim != -1
  if by_rows:
    rows[case.dim + 1] *= t
  spec = [None] * ndim
  spec[case.dim] = "model"
  sharded, last = jax.P(*spec), jax.P(*[None] * (ndim - 1), "model")
  if case.op == "all_gather_matmul":
    x = draw(*rows, case.inner * (1 if by_rows else t))
    ws = tuple(draw(x.shape[-1], n * t) for n in case.outer)
    dys = tuple(draw(*rows, n * t) for n in case.outer)
    ys = tuple(exact(x) @ exact(w) for w in ws)
    dx = sum(exact(d) @ exact(w).T for d, w in zip(dys, ws, strict=True))
    flat = exact(x).reshape(-1, x.shape[-1])
    dws = tuple(flat.T @ exact(d).reshape(-1, d.shape[-1]) for d in dys)
    w_specs = (jax.P(None, "model"),) * len(ws)
    return Problem(
      x, ws, dys, (sharded, w_specs), (last,) * len(ws), (ys, (dx, dws))
    )
  width = case.outer[0] * (1 if by_rows else t)
  xs = tuple(
    draw(*rows, case.inner * t + i * t) for i in range(len(case.outer))
  )
  ws = tuple(draw(x.shape[-1], width) for x in xs)
  dy = draw(*rows, width)
  y = sum(exact(x) @ exact(w) for x, w in zip(xs, ws, strict=True))
  flat = exact(dy).reshape(-1, width)
  dxs = tuple(exact(dy) @ exact(w).T for w in ws)
  dws = tuple(exact(x).reshape(-1, x.shape[-1]).T @ flat for x in xs)
  w_specs = (jax.P("model", None),) * len(ws)
  return Problem(
    xs, ws, dy, ((last,) * len(xs), w_specs), sharded, (y, (dxs, dws))
  )


def apply(case: Case, given: Problem, module=collective_mm):
  """Returns `(y, (dx, dw))` of the op on a ring of `case.size` devices."""
  mesh = make_mesh(data=1, model=case.size, devices=jax.devices()[: case.size])
  names = {
    "all_gather_matmul": "gather_dim",
    "matmul_reduce_scatter": "scatter_dim",
  }
  options = dict(case.options) | {names[case.op]: case.dim}

  @jax.jit
  def run(x, w, dy):
    op = getattr(module, case.op)
    dense = jax.shard_map(
      lambda x, w: op(x, w, axis_name="model", **options),
      mesh=mesh,
      in_specs=given.in_specs,
      out_specs=given.out_specs,
      check_vma=case.check_vma,
    )
    y, gradient = jax.vjp(dense, x, w)
    return y, gradient(dy)

  return run(given.x, given.w, given.dy)


def tolerance(dtype: str, terms: int) -> float:
  """What rounding may cost a sum of `terms` products of unit normals."""
  return 8 * _ULPS[dtype] * terms**0.5


def assert_right(case: Case, seed: int = 0, dtype: str | None = None) -> None:
  """Asserts values and gradients against float64, one place at a time."""
  given = problem(case, seed)
  got = apply(case, given)
  terms = case.size * (case.inner + max(case.outer)) + case.size * int(
    np.prod(case.rows)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float64),
      b,
      rtol=0,
      atol=tolerance(dtype or case.dtype, terms),
      err_msg=str(case),
    ),
    got,
    given.answer,
  )
