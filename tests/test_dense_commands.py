"""The dense commands: their errors, and that --demo shows what it claims."""

import json

import pytest

from examples.eval import depth, segmentation, video


@pytest.mark.parametrize(
  ("module", "arguments", "message"),
  [
    (segmentation, [], "--data must name a data set, as ade20k:PATH"),
    (segmentation, ["--data=coco:x"], "--data=coco:x: must be ade20k:PATH"),
    (segmentation, ["--decoder=unet"], "--decoder=unet: value should be one"),
    (segmentation, ["--data=scenes:2"], "--checkpoint must name a run"),
    (depth, [], "--data must name a data set, as frames:PATH"),
    (depth, ["--data=frames:nowhere"], "nowhere/train must hold frames"),
    (video, [], "--data must name a data set, as frames:PATH"),
    (video, ["--data=frames:nowhere"], "nowhere/train must hold a folder"),
  ],
)
def test_bad_requests_are_one_line(module, arguments, message, capsys):
  assert _run(module, arguments) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  assert message in error


@pytest.mark.long
def test_demos_show_what_they_claim(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  found = {}
  for module, name in (
    (segmentation, "segmentation"),
    (depth, "depth"),
    (video, "video"),
  ):
    assert _run(module, ["--demo"]) == 0, capsys.readouterr().err
    path = tmp_path / "runs" / f"eval-{name}" / f"{name}.json"
    found |= json.loads(path.read_text())["ours"]
  assert found["mIoU %, linear, fine-tuned"] > found["mIoU %, linear, frozen"]
  assert found["dpt: abs_rel"] < found["linear: abs_rel"]
  mean = found["top-1 %, mean of the frames"]
  # Played backwards a clip is one of the opposite motion: chance is a half.
  assert mean < 65
  assert found["top-1 %, temporal transformer"] > mean + 10


def _run(module, arguments):
  return module.command.main(
    [module.__name__, *arguments], module.__doc__, module.evaluate,
    module.define,
  )  # fmt: skip
