"""Which schedule an op takes, and why.

`pass_times` prices every schedule of each pass; the gate takes the cheapest,
and the unoverlapped one where none is cheaper. It sees one op alone: whether
other work could hide a collective is not known here.
"""

import functools
import math
import re
from typing import Literal

import jax
import jax.numpy as jnp

from collective_mm import placement
from collective_mm.chips import find_chip
from collective_mm.decision import Candidate, Decision
from collective_mm.mesh import AxisName
from collective_mm.pass_times import SCHEDULES, PassTimes, sums_everywhere

Op = Literal["all_gather_matmul", "matmul_reduce_scatter"]
Shape = tuple[int, ...]

# Of the unoverlapped time; what is gained below it the model cannot tell.
_MARGIN = 0.01
# What two directions may cost over one: they leave each link time for the sends
# of the other pass, which the model of one pass does not see.
_SPARE = 0.04

_FUSED_GATHERS = "xla_tpu_enable_async_collective_fusion_fuse_all_gather"
_ASYNC_FLAGS = (
  "xla_tpu_enable_async_collective_fusion",
  _FUSED_GATHERS,
  "xla_tpu_enable_async_collective_fusion_multiple_steps",
  "xla_tpu_overlap_compute_collective_tc",
  "xla_enable_async_all_gather",
  # A gather over a whole slice is an all-reduce otherwise, which blocks.
  "xla_tpu_prefer_async_allgather_to_allreduce",
)
_PREFETCH = {
  # Five sends at a time are under way otherwise; v5p has flags for some 150.
  "xla_max_concurrent_async_collective_permutes": "128",
  # Start them early: the compiler thinks compute longer than it is.
  "xla_lhs_prioritize_async_depth_over_stall": "ENABLED",
  "xla_lhs_output_fusion_latency_multiplier": "0.5",
  "xla_lhs_loop_fusion_latency_multiplier": "0.5",
  "xla_tpu_enable_async_collective_fusion_fuse_kloop_fusions": "true",
}
# Else libtpu 0.0.50.1 takes the steps of a ring to be longer than they are, and
# starts a send on v5p and v6e right before it waits for it.
_SHORT_STEPS = {"xla_lhs_output_fusion_latency_multiplier": "0.1"}
# On v5e products carry gathers, and are slower for it. Few do if they look
# short to the compiler; in a layer hardly longer than its gathers many must.
_SHORT_PRODUCTS = {"xla_lhs_output_fusion_latency_multiplier": "0.2"}
_LONG_PRODUCTS = {"xla_lhs_output_fusion_latency_multiplier": "1"}
# SparseCores gather beside products, which are slower if they carry a gather.
_OFFLOAD = {
  _FUSED_GATHERS: "false",
  "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
  "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
  "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": "true",
  # Start them early: the compiler thinks gathers shorter than they are.
  "xla_tpu_sparse_core_all_gather_latency_multiplier": "3",
}


def compiler_options(
  chip: str, *, prefetch: bool = False, whole_dims: bool = False
) -> dict[str, str]:
  """The compiler options under which sends and gathers hide best on `chip`.

  They make the TPU compiler's all-gathers asynchronous and its order of sends
  and products follow the rings (`docs/gate.md` has what they are worth). What
  makes gathers asynchronous is left out where `fuses_gathers` is false.

  Args:
    chip: a chip's short name or a `device_kind`, such as "v4" or "TPU v4".
    prefetch: for a program with a `prefetch_scan`, whose many sends have long
      layers to hide behind; its gathers are left to the SparseCores where
      `offloads_gathers` is true. A program of small ops alone is faster
      without.
    whole_dims: for a `prefetch_scan` on a mesh of `make_mesh(whole_dims=True)`,
      whose layers are hardly longer than their gathers.

  Returns:
    Options for `jax.jit(...).lower(...).compile(compiler_options=...)`, and for
    `jax.jit(..., compiler_options=...)`; none for what is not a TPU.

  Example:
    >>> compiler_options("cpu")
    {}
  """
  found = find_chip(chip)
  if found is None and not chip.startswith("TPU"):
    return {}
  name = None if found is None else found.name
  fused = fuses_gathers(chip)
  flags = [f for f in _ASYNC_FLAGS if fused or f != _FUSED_GATHERS]
  options = dict.fromkeys(flags, "true")
  if not fused and offloads_gathers(chip):
    options |= _SHORT_STEPS
  if prefetch:
    options |= _PREFETCH | (_OFFLOAD if offloads_gathers(chip) else {})
    if name == "v5e":
      options |= _LONG_PRODUCTS if whole_dims else _SHORT_PRODUCTS
  return options


def offloads_gathers(chip: str) -> bool:
  """Whether the compiler can leave all-gathers to the SparseCores of `chip`.

  libtpu 0.0.42.1 and 0.0.50.1 do for v5p and v6e when told to, and for TPU7x
  unasked; a v4 has SparseCores but gathers without them.

  Args:
    chip: as in `compiler_options`.
  """
  found = find_chip(chip)
  return found is not None and found.name in ("v5p", "v6e")


def fuses_gathers(chip: str, libtpu: str | None = None) -> bool:
  """Whether the compiler takes the option that makes gathers asynchronous.

  libtpu 0.0.42.1 takes it for every chip. 0.0.50.1 refuses it for all but v5e,
  "not supported", and warns of wrong results and hangs there.

  Args:
    chip: as in `compiler_options`.
    libtpu: its version; that of the installed one if not given.
  """
  found = find_chip(chip)
  if found is not None and found.name == "v5e":
    return True
  if libtpu is None:
    libtpu = _installed("libtpu") or _installed("libtpu-nightly") or "0"
  numbers = (int(n) for n in re.findall(r"\d+", libtpu)[:3])
  return tuple(numbers) <= (0, 0, 42)


@functools.cache
def _installed(package: str) -> str | None:
  # Takes as long to import as a third of the library.
  from importlib import metadata

  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None


def _shapes(name: str, given: Shape | tuple[Shape, ...]) -> tuple[Shape, ...]:
  """A shape, or a tuple of them, as a tuple of them."""
  shapes = given if given and isinstance(given[0], tuple) else (given,)
  if any(not s or any(n < 1 for n in s) for s in shapes):
    raise ValueError(
      f"{name} must be a shape of positive sizes, or a tuple of them, got "
      f"{given}"
    )
  return shapes


def explain(
  op: Op,
  *,
  x: Shape | tuple[Shape, ...],
  w: Shape | tuple[Shape, ...],
  axis_size: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
  axis_name: AxisName = "model",
  gather_dim: int | None = None,
  scatter_dim: int | None = None,
  dtype: jax.typing.DTypeLike = jnp.bfloat16,
  wire_dtype: jax.typing.DTypeLike | None = None,
  chunks: int = 1,
  chip: str | None = None,
  all_reduces: bool | None = None,
  async_options: bool = True,
) -> Decision:
  """Returns the schedule that `schedule="auto"` stands for, and its reasons.

  Takes the shapes that the op would see inside `jax.shard_map`, so that no
  device is needed.

  Args:
    op: "all_gather_matmul" or "matmul_reduce_scatter".
    x: shape of one device's `x`, or of each `x` of a tuple.
    w: shape of one device's `w`, or of each `w` of a tuple.
    axis_size: devices on the ring, `t`; or give `mesh`.
    mesh: takes the size of `axis_name`, its hops and the chip from it.
    axis_name: mesh axis of the ring, or a tuple of axes in mesh order.
    gather_dim, scatter_dim, wire_dtype, chunks: as in the ops.
    dtype: dtype of `x` and `w`.
    chip: a chip's short name or `device_kind`; by default that of the mesh, or
      else of `jax.devices()[0]`.
    all_reduces: whether the compiler makes all-reduces of reductions, which
      makes rings pay earlier; by default as `pass_times.sums_everywhere`
      says of `mesh`, and that it does not without one.
    async_options: whether the program is compiled with `compiler_options`, as
      "auto" takes it to be.

  Raises:
    ValueError: if the shapes, the dim or the axis do not fit.

  Example:
    >>> explain("all_gather_matmul", x=(2048, 6144), w=(6144, 5376),
    ...         axis_size=8, gather_dim=0, chip="v5e").schedule
    ('two_way', 'async')
  """
  if op not in ("all_gather_matmul", "matmul_reduce_scatter"):
    raise ValueError(
      f"op must be all_gather_matmul or matmul_reduce_scatter, got {op!r}"
    )
  gathers = op == "all_gather_matmul"
  name, dim = (
    ("gather_dim", gather_dim) if gathers else ("scatter_dim", scatter_dim)
  )
  if dim is None or (gather_dim is None) == (scatter_dim is None):
    raise ValueError(
      f"{op} needs {name} alone, got {gather_dim=}, {scatter_dim=}"
    )
  if (axis_size is None) == (mesh is None):
    raise ValueError(
      f"one of axis_size and mesh must be given, got {axis_size=}, {mesh=}"
    )
  hops, devices = 1, math.inf
  if mesh is not None:
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    hops = placement.longest_hop(mesh, axis_name)
    axis_size = math.prod(mesh.shape[n] for n in names)
    chip, devices = chip or mesh.devices.flat[0].device_kind, mesh.size
  if axis_size < 1 or chunks < 1:
    raise ValueError(
      f"axis_size and chunks must be at least 1, got {axis_size=}, {chunks=}"
    )
  xs, ws = _shapes("x", x), _shapes("w", w)
  ndim = len(xs[0])
  if not -ndim <= dim < ndim:
    raise ValueError(
      f"{name} must be a dim of x, from {-ndim} to {ndim - 1}, got {dim}"
    )
  by_rows = dim % ndim != ndim - 1
  times = axis_size if gathers and not by_rows else 1
  if len(xs) != (1 if gathers else len(ws)):
    raise ValueError(
      f"x must be one shape{'' if gathers else ' for each w'}, got {len(xs)} "
      f"for {len(ws)} of w"
    )
  for xi, wi in zip(xs * (len(ws) // len(xs)), ws, strict=True):
    if len(wi) != 2 or -(-wi[0] // times) != xi[-1]:
      raise ValueError(
        f"w must be a matrix of {times} x {xi[-1]} = {times * xi[-1]} rows for "
        f"{name}={dim} and {axis_size} devices, got w={wi}, x={xi}"
      )
  rows = math.prod(xs[0][:-1]) * (axis_size if gathers and by_rows else 1)
  kind = chip or jax.devices()[0].device_kind
  if all_reduces is None:
    all_reduces = sums_everywhere(kind, axis_size, devices)
  return choose(
    op,
    rows=rows,
    inner=ws[0][0] if gathers else sum(wi[0] for wi in ws),
    outer=sum(wi[1] for wi in ws) if gathers else ws[0][1],
    size=axis_size,
    by_rows=by_rows,
    dtype=jnp.dtype(dtype),
    wire_dtype=None if wire_dtype is None else jnp.dtype(wire_dtype),
    chunks=chunks,
    device_kind=kind,
    hops=hops,
    all_reduces=all_reduces,
    async_options=async_options,
    gathers_fused=fuses_gathers(kind),
  )


@functools.lru_cache(maxsize=4096)
def choose(
  op: Op,
  *,
  rows: int,
  inner: int,
  outer: int,
  size: int,
  by_rows: bool,
  dtype: jax.typing.DTypeLike,
  wire_dtype: jax.typing.DTypeLike | None,
  chunks: int,
  device_kind: str | None,
  hops: int = 1,
  all_reduces: bool = False,
  async_options: bool = True,
  gathers_fused: bool = True,
) -> Decision:
  """Returns the schedule of an op whose product is `x[R, K] @ w[K, F]`.

  Args:
    op: "all_gather_matmul" or "matmul_reduce_scatter".
    rows, inner, outer, size, by_rows, chunks, hops, all_reduces, async_options,
      gathers_fused: as in `pass_times.PassTimes`; `inner` is summed over a
      tuple of pairs, `outer` over a tuple of weights.
    dtype: dtype of the arrays.
    wire_dtype: dtype in which partial sums travel in forward; None for `dtype`.
    device_kind: a chip's `device_kind` or short name.
  """
  chip = find_chip(device_kind or "")
  candidates: tuple[Candidate, ...] = ()
  if size == 1 or chip is None or chip.permute_bandwidth is None:
    kind = "unoverlapped" if size == 1 else "two_way"
    schedule, reason = (kind, kind), "an axis of one device sends nothing"
    if size > 1:
      reason = f"no link model for {device_kind!r}: {kind} rings give the same "
      reason += "values, and no time is claimed for them"
  else:
    itemsize = jnp.dtype(dtype).itemsize
    times = PassTimes(
      chip=chip,
      rows=rows,
      inner=inner,
      outer=outer,
      size=size,
      by_rows=by_rows,
      itemsize=itemsize,
      wire_itemsize=jnp.dtype(wire_dtype).itemsize if wire_dtype else itemsize,
      chunks=chunks,
      hops=hops,
      all_reduces=all_reduces,
      async_options=async_options,
      gathers_fused=gathers_fused,
    )
    candidates = tuple(
      Candidate(s, *(times.seconds(op, s, backward=b) for b in (False, True)))
      for s in SCHEDULES
    )
    forward, why = _cheapest(times, op, False, candidates)
    backward, why_backward = _cheapest(times, op, True, candidates)
    schedule, reason = (forward, backward), f"{why}; {why_backward}"
  return Decision(
    op=op,
    schedule=schedule,
    chunks=chunks,
    chip=chip.name if chip else str(device_kind),
    candidates=candidates,
    reason=reason,
  )


def _cheapest(
  times: PassTimes, op: Op, backward: bool, candidates: tuple[Candidate, ...]
) -> tuple[str, str]:
  """The schedule of a pass, and why."""
  seconds = {
    c.schedule: c.backward_s if backward else c.forward_s for c in candidates
  }
  plain = seconds.pop("unoverlapped")
  if (op == "all_gather_matmul") != backward:
    del seconds["async"]  # the same: the product waits for the gather
    if backward and times.hides_dy:
      return "async", (
        f"async backward: {_ms(plain)} at most, as other work hides a gather "
        f"about as well as a ring would"
      )
  best = min(seconds, key=seconds.get)
  worth = (1 - _MARGIN) * plain
  spare = min((1 + _SPARE) * seconds[best], worth)
  if best == "one_way" and seconds["two_way"] < spare:
    best = "two_way"
  pass_name = "backward" if backward else "forward"
  # What is asynchronous costs the other work nothing that a ring would not.
  if seconds[best] > worth and seconds.get("async", plain) < plain:
    best = "async"
  elif seconds[best] > worth:
    return "unoverlapped", (
      f"unoverlapped {pass_name}: {_ms(plain)}, where {best} would take "
      f"{_ms(seconds[best])}"
    )
  ring = times.ring(op, best, backward)
  hidden = "" if ring.products_s >= ring.send_s else "part of "
  how = f"each {_ms(ring.products_s)} of products hides {hidden}a "
  how += f"{_ms(ring.send_s)} send"
  if backward and op == "all_gather_matmul" and times.hides_gathers:
    rest = "an asynchronous gather" if best == "async" else "a second ring"
    how += f" and {rest} brings x"
  return best, (
    f"{best} {pass_name}: {_ms(seconds[best])} against {_ms(plain)} "
    f"unoverlapped, as {how}"
  )


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:.3g} ms"
