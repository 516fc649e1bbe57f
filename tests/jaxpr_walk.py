"""Reads the equations of a traced function."""

from collections.abc import Iterator
from typing import Any


def equations(jaxpr: Any) -> Iterator[Any]:
  """Yields every equation of a jaxpr and of the jaxprs inside it, in order."""
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
          yield from equations(inner)


def kept_by_forward(jaxpr: Any) -> list[tuple[int, ...]]:
  """Shapes that the first scan stacks for later, each of one step."""
  scan = next(e for e in equations(jaxpr) if e.primitive.name == "scan")
  body = getattr(scan.params["jaxpr"], "jaxpr", scan.params["jaxpr"])
  return [
    inner.aval.shape
    for outer, inner in zip(scan.outvars, body.outvars, strict=True)
    if outer.aval.ndim > inner.aval.ndim  # else a carry
  ]
