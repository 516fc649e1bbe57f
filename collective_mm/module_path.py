"""Where a module stands in the model that calls it, for messages.

Neither nnx nor Equinox tells a module its path; the calls that are under way
know the modules which hold it.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Path:
  """The path of `layer` in the outermost module that runs; `str` looks for it.

  While a layer is being made no module holds it yet: then it is the classes of
  its makers.

  Attributes:
    layer: the module.
    kind: the class of all modules.
    modules: `modules(root)` gives the path and the object of every module in
      `root`.
  """

  layer: Any
  kind: type
  modules: Callable[[Any], Iterable[tuple[str, Any]]]

  def __str__(self) -> str:
    name, running, makers = type(self.layer).__name__, [], {}
    frame = inspect.currentframe()
    while frame is not None:
      owner = frame.f_locals.get("self")
      if isinstance(owner, self.kind) and owner is not self.layer:
        running.insert(0, owner)
        if frame.f_code.co_name == "__init__":
          makers[id(owner)] = type(owner).__name__
      frame = frame.f_back
    if makers:
      return ".".join((*reversed(makers.values()), name))
    for root in running:
      for path, module in self.modules(root):
        if module is self.layer:
          return f"{type(root).__name__}{path} ({name})"
    return name


@contextlib.contextmanager
def blame(path: object):
  """Puts the path of a module before what a ValueError of the body says."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
