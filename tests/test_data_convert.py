import json

import pytest

from examples.data import convert
from examples.data.skipped import Skipped
from examples.data.sources import open_source
from tests.image_files import folder_of, write

KINDS = ("records", "tfrecords")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = folder_of(tmp_path_factory.mktemp("images"), count=5)
  (root / "hierarchy.csv").write_text("cat,animal\ndog,animal\n")
  return root


def by_name(spec, split):
  source = open_source(spec, split)
  return {source.name(i): source.read(i) for i in range(len(source))}


@pytest.mark.parametrize("kind", KINDS)
def test_shards_hold_the_files_as_they_were(folder, tmp_path, kind, capsys):
  out = tmp_path / "out"
  flags = [f"--from=folder:{folder}", f"--to={kind}:{out}", "--per-shard=4"]
  assert convert.main(flags) == 0
  assert capsys.readouterr().out == (
    f"{kind}:{out}: 10 train and 10 val examples\n"
  )
  assert len(list(out.glob("train-0000?-of-00003.*"))) == 3
  assert open_source(f"{kind}:{out}", "val").classes == ("cat", "dog", "animal")
  for split in ("train", "val"):
    ours = by_name(f"{kind}:{out}", split)
    assert ours == by_name(f"folder:{folder}", split)
    # Not by class, as the folder has them.
    labels = [example["label"][0] for example in ours.values()]
    assert labels not in (sorted(labels), sorted(labels)[::-1])


def test_broken_images_are_left_out(folder, tmp_path, caplog):
  broken = folder_of(tmp_path / "in", count=2)
  path = broken / "train/cat/0.jpg"
  path.write_bytes(path.read_bytes()[:-100])
  skipped = Skipped(1)
  counts = convert.convert(
    f"folder:{broken}", f"records:{tmp_path / 'out'}", skipped=skipped
  )
  assert counts == {"train": 3, "val": 4}
  assert list(skipped.reasons) == ["train/cat/0.jpg"]
  assert "skipped image 1 of at most 1: train/cat/0.jpg: " in caplog.text
  with pytest.raises(ValueError, match=r"max_bad=0 .*train/cat/0.jpg"):
    convert.convert(
      f"folder:{broken}", f"records:{tmp_path / '2'}", skipped=Skipped(0)
    )
  # What was interrupted is not taken for a data set.
  with pytest.raises(ValueError, match=r"classes\.json must list"):
    open_source(f"records:{tmp_path / '2'}", "train")


def test_requests_that_cannot_be(folder, tmp_path, capsys):
  def refused(message, origin=f"folder:{folder}", to=None, *more):
    to = to or f"records:{tmp_path / 'new'}"
    assert convert.main([f"--from={origin}", f"--to={to}", *more]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and message in line

  write(tmp_path, "full/x", b"")
  refused("must be empty or not there yet", to=f"records:{tmp_path / 'full'}")
  refused("records:PATH or tfrecords:PATH, got 'zip:x'", to="zip:x")
  refused("images of 'digits' are not files", "digits")
  refused("none is not a folder", f"folder:{tmp_path / 'none'}")
  refused("at least 1 image, got 0", f"folder:{folder}", None, "--per-shard=0")
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_shards_that_cannot_be(tmp_path, kind):
  spec = f"{kind}:{tmp_path}"
  with pytest.raises(ValueError, match="no shards of the part 'val'"):
    open_source(spec, "val")
  shard = write(tmp_path, "x-validation.shard-00000-of-00001", b"junk" * 99)
  for text in ("[]", "[1]", "{}", "x"):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=r"classes\.json must list the names"):
      open_source(spec, "val")
  (tmp_path / "classes.json").write_text(json.dumps(["cat"]))
  with pytest.raises(ValueError, match=rf"{shard.name} is not "):
    open_source(spec, "val")
