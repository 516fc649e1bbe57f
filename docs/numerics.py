"""Measures the tables of numerics.md and writes them into it.

    python docs/numerics.py

Takes about two minutes on two CPU cores; needs libtpu for the second table,
which is read from what the TPU compiler makes.
"""

import dataclasses
import functools
import importlib.metadata
import os
import pathlib
from collections.abc import Callable, Iterator

from profiling import platform

if __name__ == "__main__":  # before jax is imported
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  platform.select(16)

import jax
import jax.numpy as jnp
import numpy as np

import collective_mm
from collective_mm import make_mesh, overlap_report
from collective_mm.collective import SAVED_NAME
from collective_mm.overlap import Collective
from profiling import topology

PAGE = pathlib.Path(__file__).with_suffix(".md")
SIZES = (2, 3, 4, 8, 16)
SLICE = "v5e:2x2"
MIB = 2**20
_DIM_NAMES = {
  "all_gather_matmul": "gather_dim",
  "matmul_reduce_scatter": "scatter_dim",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """One row of the first table; `dim` is 0 for rows, -1 for features."""

  op: str
  dim: int
  dtype: str
  wire_dtype: str | None
  schedule: str


def settings() -> Iterator[Setting]:
  """Every row of the first table."""
  for op in _DIM_NAMES:
    for dim in (0, -1):
      for dtype in ("float32", "bfloat16"):
        # Gathers send `x` itself: only sums have a choice.
        wires = (None,)
        if op == "matmul_reduce_scatter" and dtype != "float32":
          wires = (None, "float32")
        for wire in wires:
          for schedule in ("two_way", "unoverlapped"):
            yield Setting(
              op=op, dim=dim, dtype=dtype, wire_dtype=wire, schedule=schedule
            )


def sharded(op: str, dim: int, devices: list, **options) -> Callable:
  """The op on a ring of `devices` as a function of global arrays."""
  gathers = op == "all_gather_matmul"
  in_features, by_rows = jax.P(None, "model"), jax.P("model")
  travels = by_rows if dim == 0 else in_features
  if op in _DIM_NAMES:
    options[_DIM_NAMES[op]] = dim
  x_spec, w_spec, y_spec = in_features, by_rows, travels
  if gathers:
    x_spec, w_spec, y_spec = travels, in_features, in_features
  elif op == "matmul_all_reduce":
    y_spec = jax.P()
  return jax.shard_map(
    functools.partial(getattr(collective_mm, op), axis_name="model", **options),
    mesh=make_mesh(data=1, model=len(devices), devices=devices),
    in_specs=(x_spec, w_spec),
    out_specs=y_spec,
  )


def error(
  setting: Setting,
  size: int,
  *,
  rows: int = 96,
  terms: int = 768,
  columns: int = 96,
) -> tuple[float, float]:
  """Returns the largest and the RMS error, over the RMS of the product.

  Both factors are unit normals, rounded to the dtype first.

  Args:
    setting: which op, and how.
    size: devices on the ring.
    rows: rows of the product.
    terms: products that each number sums, over all devices.
    columns: columns of the product.
  """
  x, w, exact = _factors(setting.dtype, rows, terms, columns)
  options = {"schedule": setting.schedule}
  if setting.wire_dtype:
    options["wire_dtype"] = setting.wire_dtype
  op = sharded(setting.op, setting.dim, jax.devices()[:size], **options)
  return relative_error(np.asarray(jax.jit(op)(x, w), np.float64), exact)


def rounding(
  dtype: str, *, rows: int = 96, terms: int = 768, columns: int = 96
) -> tuple[float, float]:
  """Returns `error` of the exact product, rounded to `dtype` once."""
  exact = _factors(dtype, rows, terms, columns)[2]
  rounded = np.asarray(jnp.asarray(exact, dtype), np.float64)
  return relative_error(rounded, exact)


def _factors(dtype, rows, terms, columns):
  rng = np.random.default_rng(0)
  x, w = (
    jnp.asarray(rng.standard_normal(shape), dtype)
    for shape in ((rows, terms), (terms, columns))
  )
  return x, w, np.asarray(x, np.float64) @ np.asarray(w, np.float64)


def relative_error(y: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
  """The largest and the RMS difference, over the RMS of `exact`."""
  wrong, scale = y - exact, np.sqrt(np.mean(exact**2))
  return np.abs(wrong).max() / scale, np.sqrt(np.mean(wrong**2)) / scale


def error_table(sizes: tuple[int, ...] = SIZES, **shape: int) -> str:
  """The first table, in Markdown."""
  head = ["op", "travels", "dtype", "`wire_dtype`", "schedule"]
  lines = _header([*head, *(f"t = {t}" for t in sizes)])
  for s in settings():
    cells = [
      f"`{s.op}`",
      "features" if s.dim else "rows",
      s.dtype,
      s.wire_dtype or ("default" if s.op == "matmul_reduce_scatter" else "-"),
      s.schedule,
    ]
    for t in sizes:
      cells.append(_numbers(error(s, t, **shape)))
    lines.append(_row(cells))
  return "\n".join(lines)


def _numbers(error):
  largest, rms = error
  return f"{rms:.1e} ({largest:.1e})"


def policies() -> dict[str, Callable | None]:
  """Columns of the second table."""
  offered = jax.checkpoint_policies
  return {
    "no checkpoint": None,
    "`nothing_saveable`": offered.nothing_saveable,
    "the name saved": offered.save_only_these_names(SAVED_NAME),
    "`dots_saveable`": offered.dots_saveable,
  }


def sent(f: Callable, *arrays: jax.ShapeDtypeStruct) -> float:
  """Bytes that each device sends when `f` runs, read from its schedule."""
  return sum(map(_sent, overlap_report(_compiled(f, *arrays)).collectives))


def _compiled(f, *arrays):
  return jax.jit(f).lower(*arrays).compile()


def _sent(collective: Collective) -> float:
  # A ring of t passes on all but one t-th of a whole array; a sum that all
  # devices get passes there twice.
  share = (collective.devices - 1) / collective.devices
  parts = {
    "collective-permute": 1,
    "all-gather": share,
    "reduce-scatter": share,
    "all-reduce": 2 * share,
  }
  return collective.runs * collective.nbytes * parts[collective.kind]


def bytes_of_policies(
  op: str,
  after: Callable,
  *,
  rows: int = 4096,
  width: int = 1024,
  **options: str,
) -> list[float]:
  """Bytes sent forward, then backward under each of `policies`.

  Args:
    op: the op's name; it maps `[rows, width]` to the same shape in bfloat16.
    after: what is done with its output inside the checkpoint.
    rows: rows of the whole `x`.
    width: features of `x` and of the output.
    **options: more of the op's arguments.
  """
  devices = topology.devices(SLICE)
  f = sharded(op, 0, devices, **options)
  mesh = make_mesh(data=1, model=len(devices), devices=devices)
  gathers = op == "all_gather_matmul"
  specs = (jax.P("model"), jax.P(None, "model"))
  x, w = (
    jax.ShapeDtypeStruct(
      shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec)
    )
    for shape, spec in zip(
      ((rows, width), (width, width)),
      specs if gathers else specs[::-1],
      strict=True,
    )
  )

  def used(x, w):
    return after(f(x, w))

  def trained(policy):
    g = jax.checkpoint(used, policy=policy) if policy else used

    def run(x, w):
      y, gradient = jax.vjp(g, x, w)
      return y, gradient(y)

    return run

  forward = sent(used, x, w)
  return [forward] + [
    sent(trained(policy), x, w) - forward for policy in policies().values()
  ]


def _linear(y):
  return y


def bytes_table(**shape: int) -> str:
  """The second table, in Markdown."""
  lines = _header(["op", "then", "forward", *policies()])
  for op, options in (
    ("all_gather_matmul", {"dw": "regather"}),
    ("all_gather_matmul", {"dw": "save"}),
    ("matmul_reduce_scatter", {}),
    ("matmul_all_reduce", {}),
  ):
    name = f"`{op}`" + "".join(f', `{k}="{v}"`' for k, v in options.items())
    for after, word in ((_linear, "-"), (jax.nn.gelu, "gelu")):
      numbers = bytes_of_policies(op, after, **shape, **options)
      lines.append(_row([name, word, *(f"{n / MIB:g}" for n in numbers)]))
  return "\n".join(lines)


def _header(names: list[str]) -> list[str]:
  return [_row(names), _row(["---"] * len(names))]


def _row(cells: list[str]) -> str:
  return f"| {' | '.join(cells)} |"


def rewrite(page: str, name: str, text: str) -> str:
  """`page` with `text` between the two markers of `name`."""
  first, last = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
  before, found, rest = page.partition(first)
  _, also_found, after = rest.partition(last)
  if not found or not also_found:
    raise ValueError(f"page must hold {first!r} and then {last!r}, got neither")
  return before + first + text + last + after


def main() -> None:
  """Measures both tables and writes them into the page."""
  by = f"jax {jax.__version__}; made by `python docs/numerics.py`"
  libtpu = importlib.metadata.version("libtpu")
  page = PAGE.read_text()
  once = _numbers(rounding("bfloat16"))
  page = rewrite(
    page,
    "errors",
    f"Measured on CPU, {by}. The exact product rounded to bfloat16 once, below "
    f"which no bfloat16 row can be: {once}.\n\n{error_table()}",
  )
  page = rewrite(
    page,
    "bytes",
    f"MiB that each device sends. Compiled for {SLICE} (mesh 1 x 4), libtpu "
    f"{libtpu}, {by}.\n\n{bytes_table()}",
  )
  PAGE.write_text(page)


if __name__ == "__main__":
  main()
