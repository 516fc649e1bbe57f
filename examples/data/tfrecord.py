"""TFRecord files: written in order, read in any order.

A record is its length, the length's checksum, its bytes, their checksum:

    uint64 length | uint32 masked crc32c | bytes | uint32 masked crc32c

little-endian (tensorflow.org/tutorials/load_data/tfrecord). The library that
reads these takes no random access and checks no sums, hence this one.
"""

import array
import mmap
import os
import struct
from pathlib import Path

import google_crc32c

_HEAD = struct.Struct("<QI")
_TAIL = struct.Struct("<I")


class Writer:
  """Appends records to a new file; a context manager.

  Example:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "two.tfrecord"
    >>> with Writer(path) as writer:
    ...   writer.write(b"one")
    ...   writer.write(b"two")
    >>> Reader(path)[1]
    b'two'
  """

  def __init__(self, path: Path):
    self._file = path.open("xb")

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._file.close()

  def write(self, record: bytes) -> None:
    length = struct.pack("<Q", len(record))
    self._file.write(length + _TAIL.pack(_masked_crc(length)) + record)
    self._file.write(_TAIL.pack(_masked_crc(record)))


class Reader:
  """The records of one file, by number; safe to share between threads."""

  def __init__(self, path: Path):
    """Finds where the records begin, from their lengths alone.

    Raises:
      ValueError: if the file is not made of whole records.
    """
    with path.open("rb") as file:
      end = os.fstat(file.fileno()).st_size
      # An empty file has no records, and cannot be mapped.
      self._data = (
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if end else b""
      )
    self._starts, self._sizes = array.array("Q"), array.array("Q")
    at = 0
    while at < end:
      head = self._data[at : at + _HEAD.size]
      whole = len(head) == _HEAD.size
      size, crc = _HEAD.unpack(head) if whole else (0, 0)
      after = at + _HEAD.size + size + _TAIL.size
      if not whole or _masked_crc(head[:8]) != crc or after > end:
        raise ValueError(
          f"{path} is not a whole TFRecord file: record {len(self)} is broken "
          "(a compressed file must be unpacked first)"
        )
      self._starts.append(at + _HEAD.size)
      self._sizes.append(size)
      at = after

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, index: int) -> bytes:
    """Returns a record.

    Raises:
      ValueError: if its bytes are not those that were written.
    """
    start, end = self._starts[index], self._starts[index] + self._sizes[index]
    record, crc = self._data[start:end], self._data[end : end + _TAIL.size]
    if _TAIL.unpack(crc)[0] != _masked_crc(record):
      raise ValueError("its checksum does not fit its bytes")
    return record


def _masked_crc(data: bytes) -> int:
  # Turned and shifted, so that a sum of data that holds sums is a good one.
  crc = google_crc32c.value(data)
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
