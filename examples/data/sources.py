"""Opens what `--data` names."""

from collections.abc import Callable

from examples.data import digits
from examples.data.folder import open_folder
from examples.data.source import Source

SPLITS = ("train", "val")
# What opens a spec "KIND:PATH", by kind.
_OPENERS: dict[str, Callable[[str, str], Source]] = {
  "folder": open_folder,
}


def open_source(spec: str, split: str) -> Source:
  """Returns the examples of one part of a data set, read when asked for.

  Args:
    spec: "digits", the bundled scans, or "folder:PATH", images by class.
    split: "train" or "val".

  Raises:
    NotImplementedError: if the spec is none of these.
    ValueError: if there is something wrong with what it names.
  """
  if split not in SPLITS:
    raise ValueError(f"split must be train or val, got {split!r}")
  kind, _, path = spec.partition(":")
  if spec == "digits":
    return digits.load(split)
  if path and kind in _OPENERS:
    return _OPENERS[kind](path, split)
  known = ", ".join(("digits", *(f"{kind}:PATH" for kind in _OPENERS)))
  raise NotImplementedError(
    f"data set {spec!r} cannot be read by this command, only {known}"
  )
