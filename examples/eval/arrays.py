"""Reads the arrays that other programs wrote."""

import zipfile
from pathlib import Path

import numpy as np


def read_npz(path: str | Path, *names: str) -> tuple[np.ndarray, ...]:
  """Returns arrays of an `.npz` file, in the order of their names.

  Raises:
    ValueError: if it is no such file, or naming the arrays that it lacks.
  """
  try:
    file = np.load(path, allow_pickle=False)
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} is not an .npz file") from error
  if not isinstance(file, np.lib.npyio.NpzFile):
    raise ValueError(f"{path} is not an .npz file, but one array")
  with file:
    missing = [name for name in names if name not in file]
    if missing:
      raise ValueError(
        f"{path} must have {', '.join(names)}; {', '.join(missing)} missing, "
        f"it has {', '.join(file)}"
      )
    return tuple(file[name] for name in names)
