"""Shards of labelled images: ArrayRecord or TFRecord files in one folder.

Each record is a `tf.train.Example` (`examples.data.example_proto`), of JPEG and
PNG files as they were. Beside the shards, `classes.json` lists the names of the
labels. A shard belongs to the part that its name has as a word, "train", "val"
or "validation": `train-00000-of-00016.tfrecord`.
"""

import bisect
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from array_record.python import array_record_module

from examples.data import example_proto, tfrecord
from examples.data.skipped import BadImage
from examples.data.source import EncodedSource

_WORDS = {"train": "train", "val": "val|validation"}


class Reader(Protocol):
  """The records of one file, by number."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> bytes:
    """Returns a record; raises ValueError if it is broken."""


class Records(EncodedSource):
  """The images in some shards, read when they are asked for."""

  def __init__(self, shards: dict[str, Reader], classes: tuple[str, ...]):
    """Args:
    shards: by file name, in the order that counts.
    classes: names of the labels.
    """
    self.classes = classes
    self._shards = list(shards.items())
    self._ends = list(itertools.accumulate(map(len, shards.values())))

  def __len__(self) -> int:
    return self._ends[-1]

  def read(self, index: int) -> dict:
    shard = bisect.bisect_right(self._ends, index)
    file, reader = self._shards[shard]
    within = index - self._ends[shard] + len(reader)
    name = f"{file} record {within}"
    try:
      return example_proto.decode(reader[within], name)
    except ValueError as error:
      raise BadImage(name, str(error)) from error


def open_records(path: str, split: str) -> Records:
  """Opens ArrayRecord shards.

  Args:
    path: their folder.
    split: "train" or "val".

  Raises:
    ValueError: if there are none of this part, one is not an ArrayRecord file,
      or `classes.json` is not there or not a list of names.
  """
  return _open(path, split, _ArrayRecord)


def open_tfrecords(path: str, split: str) -> Records:
  """Opens TFRecord shards, not compressed; as `open_records`."""
  return _open(path, split, tfrecord.Reader)


def read_classes(folder: Path) -> tuple[str, ...]:
  """Returns the names of the labels from `classes.json`.

  Raises:
    ValueError: if the file is not there or not a list of names.
  """
  path = folder / "classes.json"
  try:
    names = json.loads(path.read_text())
    if not (names and isinstance(names, list)):
      raise ValueError
    if not all(isinstance(name, str) for name in names):
      raise ValueError
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{path} must list the names of the labels, in order: "
      '["name of label 0", ...]'
    ) from error
  return tuple(names)


class _ArrayRecord:
  def __init__(self, path: Path):
    self._reader = array_record_module.ArrayRecordReader(str(path))
    self._count = self._reader.num_records()
    # Of other files it says that they hold no records.
    if not self._count and path.stat().st_size:
      raise ValueError(f"{path} is not an ArrayRecord file, or holds no record")

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> bytes:
    try:
      return self._reader.read([index])[0]
    except RuntimeError as error:
      raise ValueError(f"it cannot be read: {error}") from error


def _open(path: str, split: str, reader: Callable[[Path], Reader]) -> Records:
  folder = Path(path)
  if not folder.is_dir():
    raise ValueError(f"{folder} is not a folder")
  word = re.compile(rf"(?<![a-z])({_WORDS[split]})(?![a-z])")
  shards = sorted(
    p
    for p in folder.iterdir()
    if p.suffix != ".json" and p.name[0] != "." and word.search(p.name.lower())
  )
  if not shards:
    raise ValueError(
      f"{folder} has no shards of the part {split!r}: none has "
      f"{' or '.join(_WORDS[split].split('|'))} in its name"
    )
  classes = read_classes(folder)
  return Records({p.name: reader(p) for p in shards}, classes)
