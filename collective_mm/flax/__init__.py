"""The sharded Dense layers as Flax modules, of either kind.

    from collective_mm.flax.linen import ColumnDense, RowDense  # for nn.Dense
    from collective_mm.flax.nnx import ColumnDense, RowDense  # for nnx.Linear

Needs flax, which the rest of the library does not: `pip install
collective-mm[flax]`.
"""
