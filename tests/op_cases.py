"""Runs an op on a ring of CPU devices beside dense numpy in float64."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import collective_mm
from collective_mm import make_mesh

DIM_NAMES = {
  "all_gather_matmul": ("gather_dim",),
  "matmul_reduce_scatter": ("scatter_dim",),
  "matmul_all_reduce": (),
}
_ULPS = {"float32": 2.0**-23, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One call of an op.

  Attributes:
    op: its name.
    size: devices on the ring, `t`.
    rows: of one chunk, of all of `y` for `matmul_all_reduce`.
    inner: of the contracted dim, per device where it is sharded.
    outer: output features of each weight, likewise.
    dim: the dim that is gathered or scattered, from the end.
    short: how far the sharded dim ends before the last shard does, below `t`.
    across: of the ring, over a mesh axis before `model`, which it divides.
    whole: draw from -1, 0 and 1, whose sums every dtype holds exactly, else
      unit normals.
  """

  op: str
  size: int
  rows: tuple[int, ...]
  inner: int
  outer: tuple[int, ...]
  dim: int = -1
  short: int = 0
  across: int = 1
  whole: bool = False
  dtype: str = "float32"
  check_vma: bool = True
  options: tuple[tuple[str, Any], ...] = ()

  def __str__(self):
    return f"{self.op}-{self.size}-{self.rows}-{self.dim}-{self.dtype}"

  @property
  def axis(self) -> str | tuple[str, str]:
    """The mesh axis of the ring, or axes."""
    return "model" if self.across == 1 else ("data", "model")

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """A mesh that is the ring and nothing else."""
    return make_mesh(
      data=self.across,
      model=self.size // self.across,
      devices=jax.devices()[: self.size],
    )

  @property
  def op_options(self) -> dict[str, Any]:
    """The keyword arguments of the op."""
    named = dict.fromkeys(DIM_NAMES[self.op], self.dim)
    return {"axis_name": self.axis} | named | dict(self.options)


@dataclasses.dataclass(frozen=True)
class Problem:
  """Global arrays of a case, their specs, and the exact `(y, (dx, dw))`.

  `solve` takes any `(x, w, dy)` in float64 to that answer.
  """

  x: Any
  w: tuple
  dy: Any
  in_specs: tuple
  out_specs: Any
  answer: tuple
  solve: Callable


def problem(case: Case, seed: int = 0) -> Problem:
  """Draws distinct data for every device and solves it densely."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    if case.whole:
      return jnp.asarray(rng.integers(-1, 2, shape), case.dtype)
    # Rounded to the dtype first, so that both sides see the same numbers.
    return jnp.asarray(rng.standard_normal(shape), case.dtype)

  gather = case.op == "all_gather_matmul"
  x, w, dy, in_specs, out_specs = (_gather if gather else _scatter)(case, draw)
  solve = functools.partial(
    _solve_gather if gather else _solve_scatter, shape=case
  )
  exact = jax.tree.map(lambda a: np.asarray(a, np.float64), (x, w, dy))
  return Problem(x, w, dy, in_specs, out_specs, solve(*exact), solve)


def _gather(case, draw):
  t, rows = case.size, list(case.rows)
  by_rows = case.dim != -1
  if by_rows:
    rows[case.dim + 1] *= t
  x = draw(*rows, case.inner * (1 if by_rows else t))
  height = x.shape[-1] - (0 if by_rows else case.short)
  ws = tuple(draw(height, n * t) for n in case.outer)
  dys = tuple(draw(*rows, n * t) for n in case.outer)
  last = jax.P(*[None] * len(rows), case.axis)
  in_specs = _sharded(x.ndim, case), (jax.P(None, case.axis),) * len(ws)
  return x, ws, dys, in_specs, (last,) * len(ws)


def _solve_gather(x, ws, dys, shape):
  height = ws[0].shape[0]
  read, unread = x[..., :height], x[..., height:]
  ys = tuple(read @ w for w in ws)
  dx = sum(dy @ w.T for dy, w in zip(dys, ws, strict=True))
  dws = tuple(_outer(read, dy) for dy in dys)
  return ys, (np.concatenate([dx, 0 * unread], -1), dws)


def _scatter(case, draw):
  t, rows, width = case.size, list(case.rows), case.outer[0]
  scatters = case.op == "matmul_reduce_scatter"
  by_rows = case.dim != -1
  short = case.short if scatters else 0
  if scatters and by_rows:
    rows[case.dim + 1] = rows[case.dim + 1] * t - short
  if scatters and not by_rows:
    width = width * t - short
  heights = [case.inner * t + i * t for i in range(len(case.outer))]
  xs = tuple(draw(*rows, n) for n in heights)
  ws = tuple(draw(n, width) for n in heights)
  dy = _round_up(draw(*rows, width), case)
  if not scatters:
    # With check_vma=False jax hands each device a `t`-th of it: stays whole.
    dy = dy * t
  last = jax.P(*[None] * len(rows), case.axis)
  out_specs = _sharded(dy.ndim, case) if scatters else jax.P()
  in_specs = (last,) * len(xs), (jax.P(case.axis, None),) * len(ws)
  return xs, ws, dy, in_specs, out_specs


def _solve_scatter(xs, ws, dy, shape):
  y = sum(x @ w for x, w in zip(xs, ws, strict=True))
  real = dy[tuple(slice(n) for n in y.shape)]  # nothing depends on the padding
  dxs = tuple(real @ w.T for w in ws)
  dws = tuple(_outer(x, real) for x in xs)
  return _round_up(y, shape), (dxs, dws)


def _sharded(ndim, case):
  spec = [None] * ndim
  spec[case.dim] = case.axis
  return jax.P(*spec)


def _outer(x, dy):
  return x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])


def _round_up(y, case):
  """`y` with zeros up to whole shards."""
  if case.op == "matmul_all_reduce":
    return y
  pads = [(0, 0)] * y.ndim
  pads[case.dim] = (0, case.short)
  return (jnp if isinstance(y, jax.Array) else np).pad(y, pads)


@functools.cache
def quick_compilation() -> dict[str, Any]:
  """Compiler options that halve the time of a compilation, or better.

  What they leave out only makes programs faster.
  """
  quick = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  }
  without_emitters = quick | {"xla_cpu_use_fusion_emitters": False}
  try:  # an option of some jax versions
    jax.jit(lambda: 0, compiler_options=without_emitters)()
  except jax.errors.JaxRuntimeError:
    return quick
  return without_emitters


def apply(case: Case, given: Problem, module=collective_mm):
  """Returns `(y, (dx, dw))` of the op on a ring of `case.size` devices."""
  dense = sharded_op(case, given, module)

  @functools.partial(jax.jit, compiler_options=quick_compilation())
  def run(x, w, dy):
    y, gradient = jax.vjp(dense, x, w)
    return y, gradient(dy)

  return run(given.x, given.w, given.dy)


def sharded_op(case: Case, given: Problem, module=collective_mm) -> Callable:
  """The op as a function of the global `x` and `w`."""
  op = getattr(module, case.op)
  return jax.shard_map(
    lambda x, w: op(x, w, **case.op_options),
    mesh=case.mesh,
    in_specs=given.in_specs,
    out_specs=given.out_specs,
    check_vma=case.check_vma,
  )


def tolerance(dtype: str, terms: int) -> float:
  """What rounding may cost a sum of `terms` products of unit normals.

  A sum of `n` of them grows to `sqrt(n)`, and each of its `n` roundings adds a
  random part of a unit in its last place. The last rounding is of a number
  that may be well above.
  """
  return 2 * _ULPS[dtype] * (terms + 8)


def assert_right(case: Case, seed: int = 0) -> None:
  """Asserts values and gradients against float64, one place at a time.

  Sums of `n` products whose squares add up to `s` wander to about `sqrt(s)`;
  there, `n` roundings to the dtype of sums and one to that of the wire at each
  of `t` devices and at the end are allowed 8 standard deviations.
  """
  given = problem(case, seed)
  got = apply(case, given)
  jax.clear_caches()  # thousands of compiled cases would fill the memory
  if case.whole:
    jax.tree.map(
      functools.partial(np.testing.assert_array_equal, err_msg=str(case)),
      jax.tree.map(lambda a: np.asarray(a, np.float64), got),
      given.answer,
    )
    return
  exact = jax.tree.map(
    lambda a: np.asarray(a, np.float64), (given.x, given.w, given.dy)
  )
  squares = given.solve(*jax.tree.map(np.square, exact))
  terms = given.solve(*jax.tree.map(np.ones_like, exact))

  options = dict(case.options)
  summed = _ULPS[options.get("accum_dtype", "float32")] / 2
  sent = _ULPS[options.get("wire_dtype") or case.dtype] / 2
  sent = max(sent, _ULPS[case.dtype] / 2)

  def check(a, b, squares, terms):
    unit = np.sqrt(terms) * summed + (case.size + 1) ** 0.5 * sent
    allowed = 8 * unit * np.sqrt(squares)
    excess = np.abs(np.asarray(a, np.float64) - b) - allowed
    assert excess.max() <= 0, (case, excess.max())

  jax.tree.map(check, got, given.answer, squares, terms)
