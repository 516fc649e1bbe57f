"""Tensor-parallel matmuls for JAX that hide their communication."""

import importlib
from typing import TYPE_CHECKING

from collective_mm.all_reduce import matmul_all_reduce as matmul_all_reduce
from collective_mm.collective import all_gather_matmul as all_gather_matmul
from collective_mm.collective import (
  matmul_reduce_scatter as matmul_reduce_scatter,
)
from collective_mm.dense import ColumnDense as ColumnDense
from collective_mm.dense import RowDense as RowDense
from collective_mm.mesh import make_mesh as make_mesh
from collective_mm.prefetch import prefetch_scan as prefetch_scan

if TYPE_CHECKING:
  from collective_mm.overlap import OverlapReport as OverlapReport
  from collective_mm.overlap import overlap_report as overlap_report

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
  # Reading schedules takes a third of the time to import; few programs do.
  if name in ("OverlapReport", "overlap_report"):
    return getattr(importlib.import_module("collective_mm.overlap"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
