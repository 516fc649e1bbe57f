"""Tensor-parallel matmuls for JAX that hide their communication."""

from collective_mm.collective import all_gather_matmul as all_gather_matmul
from collective_mm.collective import (
  matmul_reduce_scatter as matmul_reduce_scatter,
)
from collective_mm.dense import ColumnDense as ColumnDense
from collective_mm.dense import RowDense as RowDense
from collective_mm.mesh import make_mesh as make_mesh

__all__ = [
  "ColumnDense",
  "RowDense",
  "all_gather_matmul",
  "make_mesh",
  "matmul_reduce_scatter",
]
