"""Opens what `--data` names."""

from collections.abc import Callable

from examples.data import digits
from examples.data.folder import open_folder
from examples.data.records import open_records, open_tfrecords
from examples.data.shapes import open_shapes
from examples.data.source import Source

SPLITS = ("train", "val")
# What opens a spec "KIND:PATH", by kind.
_OPENERS: dict[str, Callable[[str, str], Source]] = {
  "folder": open_folder,
  "records": open_records,
  "tfrecords": open_tfrecords,
}


def open_source(spec: str, split: str) -> Source:
  """Returns the examples of one part of a data set, read when asked for.

  Args:
    spec: "digits", the bundled scans; "shapes", drawn ones, or
      "shapes:unseen"; "folder:PATH", images by class; "records:PATH" or
      "tfrecords:PATH", ArrayRecord or TFRecord shards.
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
  if kind == "shapes":
    return open_shapes(path, split)
  if path and kind in _OPENERS:
    return _OPENERS[kind](path, split)
  known = ", ".join(
    ("digits", "shapes", *(f"{kind}:PATH" for kind in _OPENERS))
  )
  raise NotImplementedError(
    f"data set {spec!r} cannot be read by this command, only {known}"
  )
