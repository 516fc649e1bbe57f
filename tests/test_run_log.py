import json
import struct

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from examples.run_log import RunLog


def read_events(folder):
  """Returns `{tag: [(step, value), ...]}` from a folder's event files.

  An event file is a series of records: length, a checksum of it, data, and a
  checksum of that (TensorFlow's TFRecord).
  """
  scalars = {}
  for path in sorted(folder.glob("events.out.tfevents.*")):
    stream = path.read_bytes()
    while stream:
      (size,) = struct.unpack("<Q", stream[:8])
      event = Event.FromString(stream[12 : 12 + size])
      stream = stream[16 + size :]
      for value in event.summary.value:
        scalars.setdefault(value.tag, []).append(
          (event.step, value.simple_value)
        )
  return scalars


def read_lines(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture
def folder(tmp_path):
  """The folder of a run that logged steps 1 to 4."""
  with RunLog(tmp_path) as log:
    for step in range(1, 5):
      log.write(step, {"train/loss": 1 / step})
    log.write(4, {"eval/loss": 0.5, "eval/accuracy": 0.75})
  return tmp_path


def test_every_scalar_is_in_lines_and_events(folder):
  assert read_lines(folder)[1:] == [
    {"step": 2, "train/loss": 0.5},
    {"step": 3, "train/loss": 1 / 3},
    {"step": 4, "train/loss": 0.25},
    {"step": 4, "eval/loss": 0.5, "eval/accuracy": 0.75},
  ]
  events = read_events(folder)
  assert events["eval/accuracy"] == [(4, 0.75)]
  assert [step for step, _ in events["train/loss"]] == [1, 2, 3, 4]
  assert events["train/loss"][2][1] == pytest.approx(1 / 3)


def test_the_picture_shows_something(folder):
  with Image.open(folder / "curves.png") as picture:
    picture.load()
    assert picture.format == "PNG"
    assert picture.width > 500
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_a_loss_of_zero_is_drawn_too(tmp_path):
  with RunLog(tmp_path) as log:
    log.write(1, {"train/loss": 0.0})
  assert (tmp_path / "curves.png").stat().st_size > 0


def test_a_run_continues_its_history_from_its_checkpoint(folder):
  with RunLog(folder, start=2) as log:
    assert [r["step"] for r in log.history] == [1, 2]
    log.write(3, {"train/loss": 9.0})
  assert [r["train/loss"] for r in read_lines(folder)] == [1.0, 0.5, 9.0]


def test_the_line_that_a_killed_run_left_half_is_dropped(folder):
  path = folder / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 4, "train/lo')
  with RunLog(folder, start=4) as log:
    assert len(log.history) == 5
  assert len(read_lines(folder)) == 5


def test_an_error_leaves_lines_and_picture(tmp_path):
  def fail():
    with RunLog(tmp_path) as log:
      log.write(1, {"train/loss": 1.0})
      raise FloatingPointError

  with pytest.raises(FloatingPointError):
    fail()
  assert read_lines(tmp_path) == [{"step": 1, "train/loss": 1.0}]
  assert (tmp_path / "curves.png").stat().st_size > 0
