"""Every way to run one op forward and backward, as programs and as calls.

Each returns `(y, dx, dw)`: the op and both its gradients. A program can be
compiled for devices that are not here; a call has its arrays and can be timed.

    roof          the three local products, with nothing communicated
    unoverlapped  `lax.all_gather` or `lax.psum_scatter` around the products
    compiler      plain products that XLA partitions, told the shardings only
    the others    the op of `collective_mm` with that schedule
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

import collective_mm
from collective_mm import reference

OPS = ("all_gather_matmul", "matmul_reduce_scatter")
SCHEDULES = {
  "one_way": "one_way",
  "two_way": "two_way",
  "two_way_async": ("two_way", "async"),
  "auto": "auto",
}
METHODS = ("roof", "unoverlapped", "compiler", *SCHEDULES)

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
  def shapes(self) -> tuple[tuple[int, int], ...]:
    """The whole shapes of `x`, `w` and `dy`."""
    s, d, f = self.tokens, self.width, self.features
    return (
      ((s, d), (d, f), (s, f)) if self.gathers else ((s, f), (f, d), (s, d))
    )

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A jitted `step(x, w, dy) -> (y, dx, dw)` and what it is to be called with.

  Attributes:
    step: the jitted function.
    arguments: shapes, dtype and shardings of `x`, `w` and `dy`.
  """

  step: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
  arguments: tuple[jax.ShapeDtypeStruct, ...]

  def lower(self) -> jax.stages.Lowered:
    """The program, lowered for the devices of its arguments."""
    return self.step.lower(*self.arguments)


def program(problem: Problem, method: str | tuple[str, str]) -> Program:
  """Returns the program of one of `METHODS`, or of any schedule of the ops.

  `roof` gives every device the whole of what the op would have gathered, and
  leaves the sum that a ring would have reduced as one partial per device,
  stacked along the rows.
  """
  tokens_sharded = _WHOLE if method == "roof" else _ROWS
  if problem.gathers:
    in_specs = (tokens_sharded, _COLUMNS, _COLUMNS)
    out_specs = (_COLUMNS, _ROWS, _COLUMNS)
  else:
    in_specs = (_COLUMNS, _ROWS, tokens_sharded)
    out_specs = (_ROWS, _COLUMNS, _ROWS)

  def sharded(specs):
    return tuple(jax.NamedSharding(problem.mesh, spec) for spec in specs)

  if method == "compiler":
    step = jax.jit(
      functools.partial(_forward_and_backward, jnp.matmul),
      out_shardings=sharded(out_specs),
    )
  else:
    step = jax.jit(
      jax.shard_map(
        _local_step(problem, method),
        mesh=problem.mesh,
        in_specs=in_specs,
        out_specs=out_specs,
      )
    )
  return Program(
    step=step,
    arguments=tuple(
      jax.ShapeDtypeStruct(shape, problem.dtype, sharding=sharding)
      for shape, sharding in zip(problem.shapes, sharded(in_specs), strict=True)
    ),
  )


def methods(
  problem: Problem, names: Sequence[str] = METHODS
) -> dict[str, Callable[[], tuple]]:
  """Returns a call for each of `names`, all on the same arrays."""
  arrays = _arrays(problem)
  calls = {}
  for name in names:
    made = program(problem, name)
    placed = (
      jax.device_put(array, argument.sharding)
      for array, argument in zip(arrays, made.arguments, strict=True)
    )
    calls[name] = functools.partial(made.step, *placed)
  return calls


def check(problem: Problem, calls: dict[str, Callable[[], tuple]]) -> None:
  """Compares the results of every call with those of "unoverlapped".

  Raises:
    ArithmeticError: if one differs by more than `problem.tolerance`.
  """
  name = "unoverlapped"
  expected = (calls if name in calls else methods(problem, (name,)))[name]()
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
  keys = jax.random.split(jax.random.key(0), 3)
  x, w, dy = (
    jax.random.normal(key, shape, problem.dtype)
    for key, shape in zip(keys, problem.shapes, strict=True)
  )
  return x, w / math.sqrt(w.shape[0]), dy


def _local_step(problem: Problem, method) -> Callable[..., tuple]:
  """What one device does, inside `jax.shard_map`."""
  if method == "roof":
    return _products
  if method == "unoverlapped":
    home, options = reference, {}
  else:
    schedule = SCHEDULES.get(method, method)
    home, options = collective_mm, {"schedule": schedule}
  options["gather_dim" if problem.gathers else "scatter_dim"] = 0
  op = functools.partial(
    getattr(home, problem.op), axis_name="model", **options
  )
  return functools.partial(_forward_and_backward, op)


def _forward_and_backward(op, x, w, dy):
  y, gradients = jax.vjp(op, x, w)
  return y, *gradients(dy)


def _products(x, w, dy):
  def dot(a, b):
    product = jnp.dot(a, b, preferred_element_type=jnp.float32)
    return product.astype(a.dtype)

  return dot(x, w), dot(dy, w.T), dot(x.T, dy)
