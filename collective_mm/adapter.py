"""What the layers of linen, nnx and Equinox have in common.

`layer` is a `ColumnDense` or a `RowDense` of any of them, read by its fields,
which have the same names in all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from collective_mm import global_view

Weights = tuple[jax.Array, jax.Array, jax.Array | None]
"""`x`, kernel `[in, out]` and bias of a layer, in the dtype of computation."""


def column(
  found: Sequence[Weights], layer: Any, epilogue: Callable[..., Any] | None
) -> Any:
  """Layers of one input, with the options of one of them.

  Args:
    found: of each layer; `x` is the same in all.
    layer: whose options are taken.
    epilogue: as in `global_view.column`.

  Raises:
    ValueError: if only some have a bias, or as `global_view.column`.
  """
  x, biases = found[0][0], biases_of(found)
  return global_view.column(
    x,
    [kernel for _, kernel, _ in found],
    biases,
    gather_dim=layer.gather_dim,
    epilogue=epilogue,
    dw=layer.dw,
    **_options(layer, x),
  )


def biases_of(found: Sequence[Weights]) -> list[jax.Array] | None:
  """The bias of each layer; None if there are none."""
  biases = [bias for _, _, bias in found if bias is not None]
  if biases and len(biases) < len(found):
    raise ValueError("fused layers must all have a bias, or none")
  return biases or None


def row(found: Weights, layer: Any) -> jax.Array:
  """One layer, with its options."""
  return global_view.row(
    *found,
    scatter_dim=layer.scatter_dim,
    wire_dtype=layer.wire_dtype,
    **_options(layer, found[0]),
  )


def row_bias_axis(layer: Any) -> str | None:
  """The mesh axis that splits the bias of a `RowDense`."""
  return layer.axis_name if layer.scatter_dim == -1 else None


def check_column(layer: Any, in_features: int, out_features: int) -> None:
  """Refuses the sizes of a `ColumnDense` that its axis does not divide."""
  del in_features
  _check(layer, out_features=out_features)


def check_row(layer: Any, in_features: int, out_features: int) -> None:
  """Refuses the sizes of a `RowDense` that its axis does not divide."""
  _check(layer, in_features=in_features)
  if row_bias_axis(layer) is not None:
    _check(layer, out_features=out_features)


def _check(layer: Any, **sizes: int) -> None:
  mesh = global_view.ring_mesh(layer.mesh, layer.axis_name)
  for name, size in sizes.items():
    global_view.check_divides(mesh, layer.axis_name, name, size)


def _options(layer: Any, x: jax.Array) -> dict[str, Any]:
  """The options of the op that every layer has."""
  accum = layer.accum_dtype
  return {
    "mesh": layer.mesh,
    "axis_name": layer.axis_name,
    "schedule": layer.schedule,
    "chunks": layer.chunks,
    "accum_dtype": accum or jnp.promote_types(jnp.float32, x.dtype),
  }
