import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.record_writer import RecordWriter

from examples.data.tfrecord import Reader, Writer

RECORDS = [b"", b"one", bytes(range(256)) * 3, b"four"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfrecord") / "x.tfrecord"
  with Writer(path) as writer:
    for record in RECORDS:
      writer.write(record)
  return path


def test_records_are_read_in_any_order(path):
  reader = Reader(path)
  assert len(reader) == 4
  assert [reader[i] for i in (2, 0, 3, 1)] == [RECORDS[i] for i in (2, 0, 3, 1)]


def test_an_independent_writer_writes_the_same_bytes(path, tmp_path):
  theirs = RecordWriter(str(tmp_path / "theirs"))
  for record in RECORDS:
    theirs.write(record)
  theirs.close()
  assert (tmp_path / "theirs").read_bytes() == path.read_bytes()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_no_changed_byte_goes_unseen(path, data):
  whole = path.read_bytes()
  at = data.draw(st.integers(0, len(whole) - 1))
  bit = data.draw(st.integers(0, 7))
  changed = path.with_name("changed")
  changed.write_bytes(
    whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
  )
  with pytest.raises(ValueError, match=r"is broken|checksum does not fit"):
    reader = Reader(changed)
    [reader[i] for i in range(len(reader))]


@pytest.mark.parametrize("left", [1, 11, 12, 15, 17, 800])
def test_a_cut_file_is_refused(path, left):
  cut = path.with_name("cut")
  cut.write_bytes(path.read_bytes()[:left])
  with pytest.raises(ValueError, match=r"not a whole TFRecord file: record \d"):
    Reader(cut)


def test_a_compressed_file_is_refused(path):
  packed = path.with_name("packed")
  packed.write_bytes(gzip.compress(path.read_bytes()))
  with pytest.raises(ValueError, match="compressed file must be unpacked"):
    Reader(packed)


def test_an_empty_file_has_no_records(path):
  empty = path.with_name("empty")
  empty.write_bytes(b"")
  assert len(Reader(empty)) == 0


def test_a_file_is_not_written_over(path):
  with pytest.raises(FileExistsError):
    Writer(path)
