"""The sharded Dense layers as Flax modules, of either kind.

    from collective_mm.flax import linen, nnx

    linen.ColumnDense, linen.RowDense    # were nn.Dense, nn.DenseGeneral
    nnx.ColumnDense, nnx.RowDense        # were nnx.Linear

Needs flax, which the rest of the library does not: `pip install
collective-mm[flax]`.
"""

from collective_mm import flax_linen as linen
from collective_mm import flax_nnx as nnx

__all__ = ["linen", "nnx"]
