"""Every way to run one op forward and backward, as calls ready to be timed.

Each call returns `(y, dx, dw)`: the op and both its gradients. `roof` is the
same local products, the same FLOPs per device, with nothing communicated.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from collective_mm import all_gather_matmul, matmul_reduce_scatter

SCHEDULES = ("unoverlapped", "one_way", "two_way")
METHODS = ("roof", *SCHEDULES)

_ROWS, _COLUMNS, _WHOLE = (
  jax.P("model", None),
  jax.P(None, "model"),
  jax.P(None, None),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """One op at one size: `S` tokens, width `D`, `F` features, over one ring.

      all_gather_matmul      x[S_m, D] @ w[D, F_m] -> y[S, F_m]
      matmul_reduce_scatter  x[S, F_m] @ w[F_m, D] -> y[S_m, D]

  Attributes:
    op: "all_gather_matmul" or "matmul_reduce_scatter".
    tokens: `S`, a multiple of the model axis.
    width: `D`.
    features: `F`, a multiple of the model axis.
    dtype: of `x`, `w` and all results; products are summed in float32.
    mesh: its "model" axis is the ring.
  """

  op: str
  tokens: int
  width: int
  features: int
  dtype: str
  mesh: jax.sharding.Mesh

  @property
  def gathers(self) -> bool:
    """Whether the op gathers `x` forward; the other gathers `dy` backward."""
    return self.op == "all_gather_matmul"

  @property
  def tolerance(self) -> float:
    """Relative error (2-norm) that two correct methods may differ by.

    A travelling partial sum is rounded to `dtype` once a ring step, and sums
    over the longest dim are made in another order. A missing chunk is an error
    of about `1 / sqrt(axis size)`, far more.
    """
    longest = max(self.tokens, self.width, self.features)
    return float(
      jnp.finfo(self.dtype).eps * math.sqrt(self.mesh.shape["model"])
      + jnp.finfo(jnp.float32).eps * math.sqrt(longest)
    )


def methods(problem: Problem) -> dict[str, Callable[[], tuple]]:
  """Returns a call for each name in `METHODS`, all on the same arrays.

  `roof` leaves the sum that a ring would have reduced as one partial per
  device, stacked along the rows.
  """
  x, w, dy = _arrays(problem)
  calls = {"roof": _sharded(problem, _products, x, w, dy, gathered=True)}
  for schedule in SCHEDULES:
    step = functools.partial(_op_and_gradients, problem, schedule)
    calls[schedule] = _sharded(problem, step, x, w, dy)
  return calls


def check(problem: Problem, calls: dict[str, Callable[[], tuple]]) -> None:
  """Compares the results of every call with those of "unoverlapped".

  Raises:
    ArithmeticError: if one differs by more than `problem.tolerance`.
  """
  expected = calls["unoverlapped"]()
  for name, call in calls.items():
    got = list(call())
    if name == "roof":
      partial = 1 if problem.gathers else 0
      stacked = got[partial].astype(jnp.float32)
      size = problem.mesh.shape["model"]
      got[partial] = stacked.reshape(size, -1, problem.width).sum(axis=0)
    for label, a, b in zip(("y", "dx", "dw"), got, expected, strict=True):
      a, b = a.astype(jnp.float32), b.astype(jnp.float32)
      error = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
      if not error <= problem.tolerance:
        raise ArithmeticError(
          f"{problem.op}: {label} of {name} must be within "
          f"{problem.tolerance:.1e} of unoverlapped, got {error:.1e}"
        )


def _arrays(problem: Problem) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Whole `x`, `w` and `dy`, of about unit size, not sharded yet."""
  s, d, f = problem.tokens, problem.width, problem.features
  shapes = (
    [(s, d), (d, f), (s, f)] if problem.gathers else [(s, f), (f, d), (s, d)]
  )
  keys = jax.random.split(jax.random.key(0), 3)
  x, w, dy = (
    jax.random.normal(key, shape, problem.dtype)
    for key, shape in zip(keys, shapes, strict=True)
  )
  return x, w / math.sqrt(w.shape[0]), dy


def _sharded(problem, step, x, w, dy, *, gathered=False) -> Callable[[], tuple]:
  """`step` on the shards of `x`, `w` and `dy`, compiled when first called.

  `gathered` gives every device the whole of what the op would have gathered.
  """
  tokens_sharded = _WHOLE if gathered else _ROWS
  if problem.gathers:
    in_specs = (tokens_sharded, _COLUMNS, _COLUMNS)
    out_specs = (_COLUMNS, _ROWS, _COLUMNS)
  else:
    in_specs = (_COLUMNS, _ROWS, tokens_sharded)
    out_specs = (_ROWS, _COLUMNS, _ROWS)
  call = jax.jit(
    jax.shard_map(
      step, mesh=problem.mesh, in_specs=in_specs, out_specs=out_specs
    )
  )
  arrays = (
    jax.device_put(a, jax.NamedSharding(problem.mesh, spec))
    for a, spec in zip((x, w, dy), in_specs, strict=True)
  )
  return functools.partial(call, *arrays)


def _op_and_gradients(problem, schedule, x, w, dy):
  def op(x, w):
    if problem.gathers:
      return all_gather_matmul(
        x, w, axis_name="model", gather_dim=0, schedule=schedule
      )
    return matmul_reduce_scatter(
      x, w, axis_name="model", scatter_dim=0, schedule=schedule
    )

  y, gradients = jax.vjp(op, x, w)
  return y, *gradients(dy)


def _products(x, w, dy):
  def dot(a, b):
    product = jnp.dot(a, b, preferred_element_type=jnp.float32)
    return product.astype(a.dtype)

  return dot(x, w), dot(dy, w.T), dot(x.T, dy)
