"""Tensor-parallel matmuls for JAX that hide their communication."""

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from collective_mm.all_reduce import matmul_all_reduce as matmul_all_reduce
  from collective_mm.collective import all_gather_matmul as all_gather_matmul
  from collective_mm.collective import (
    matmul_reduce_scatter as matmul_reduce_scatter,
  )
  from collective_mm.dense import ColumnDense as ColumnDense
  from collective_mm.dense import RowDense as RowDense
  from collective_mm.mesh import make_mesh as make_mesh
  from collective_mm.overlap import OverlapReport as OverlapReport
  from collective_mm.overlap import overlap_report as overlap_report
  from collective_mm.prefetch import prefetch_scan as prefetch_scan

# Modules are imported by the first use of a name: no program needs them all.
_MODULES = {
  "ColumnDense": "dense",
  "OverlapReport": "overlap",
  "RowDense": "dense",
  "all_gather_matmul": "collective",
  "make_mesh": "mesh",
  "matmul_all_reduce": "all_reduce",
  "matmul_reduce_scatter": "collective",
  "overlap_report": "overlap",
  "prefetch_scan": "prefetch",
}

__all__ = [
  "ColumnDense",
  "OverlapReport",
  "RowDense",
  "all_gather_matmul",
  "make_mesh",
  "matmul_all_reduce",
  "matmul_reduce_scatter",
  "overlap_report",
  "prefetch_scan",
]


def __getattr__(name: str):
  if name in _MODULES:
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    globals()[name] = value = getattr(module, name)
    return value
  # `collective_mm.gate`, as if all were imported; private names are probes.
  if not name.startswith("_") and importlib.util.find_spec(
    f"{__name__}.{name}"
  ):
    return importlib.import_module(f"{__name__}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
