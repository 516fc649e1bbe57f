"""The trainer as users meet it: whole runs, resumed runs and bad requests."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from train_runs import metrics

from examples import evaluate, train
from examples.checkpoints import restore
from examples.presets import PRESETS, from_json
from examples.train_flags import parse
from examples.train_loop import run
from examples.usage import UsageError
from models.train_step import abstract

ROOT = Path(__file__).parents[1]
DIGITS = PRESETS["digits"]
TINY_FLAGS = [
  *("--width=16", "--mlp=32", "--depth=1", "--batch=16", "--steps=6"),
  *("--log_every=1", "--eval_every=3", "--checkpoint_every=3"),
]


def request(*flags):
  return parse(["train", *flags])


def like(state):
  return abstract(state, jax.tree.map(lambda x: x.sharding, state))


def files(folder: Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_once):
  """A run of six steps, with checkpoints of the third and the last."""
  config = request(*TINY_FLAGS).config
  return run(config, tmp_path_factory.mktemp("whole") / "run")


def test_a_run_leaves_its_files(whole):
  folder = whole["workdir"]
  assert from_json(json.loads((folder / "config.json").read_text())) == (
    request(*TINY_FLAGS).config
  )
  assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
    "3",
    "6",
  ]
  assert (folder / "curves.png").stat().st_size > 0
  assert len(list(folder.glob("events.out.tfevents.*"))) == 1


def test_a_run_logs_every_scalar(whole):
  folder = whole["workdir"]
  assert [r["step"] for r in metrics(folder, "train/")] == [1, 2, 3, 4, 5, 6]
  assert [r["step"] for r in metrics(folder, "eval/")] == [3, 6]
  first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
  assert set(first) == {
    "step",
    "train/loss",
    "train/grad_norm",
    "train/max_attention_logit",
    "train/learning_rate",
    "speed/step_ms",
    "speed/images_per_s",
    "speed/tokens_per_s",
    "speed/share_waiting_for_data",
  }
  # With a zero head kernel each class is given one chance in ten: ln(10) for
  # the right one and 9 ln(10/9) for the others.
  assert first["train/loss"] == pytest.approx(3.2508, abs=1e-3)
  assert first["speed/tokens_per_s"] == 16 * first["speed/images_per_s"]
  assert 0 <= first["speed/share_waiting_for_data"] <= 1


def test_a_run_returns_its_result(whole):
  assert whole["steps"] == int(whole["state"].step) == 6
  assert whole["tokens_per_s"] > 0
  last = metrics(whole["workdir"], "eval/")[-1]
  assert whole["accuracy"] == last["eval/accuracy"]
  # Of the 360 held-out scans a whole number is right: padding counts nothing.
  assert (whole["accuracy"] * 360) == pytest.approx(
    round(whole["accuracy"] * 360)
  )


def test_a_resumed_run_ends_bit_for_bit_as_a_whole_one(whole, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(whole["workdir"], folder)
  shutil.rmtree(folder / "checkpoints" / "6")  # as if killed before step 6
  resumed = request("--resume", f"--workdir={folder}")
  result = run(resumed.config, folder, resume=True)

  jax.tree.map(np.testing.assert_array_equal, result["state"], whole["state"])
  assert result["loss"] == whole["loss"]
  for group in ("train/", "eval/"):
    assert metrics(folder, group) == metrics(whole["workdir"], group)
  assert (folder / "checkpoints" / "6").exists()


@pytest.mark.long
def test_the_command_repeats_a_run_and_says_little(
  whole, compiled_once, tmp_path
):
  folder = tmp_path / "run"
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "examples.train",
      *TINY_FLAGS,
      f"--workdir={folder}",
    ],
    cwd=ROOT,
    env={**os.environ, **compiled_once},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert metrics(folder, "train/") == metrics(whole["workdir"], "train/")

  *_, picture, last = done.stdout.splitlines()
  assert picture == f"curves: {folder / 'curves.png'}"
  assert last.startswith(f"test accuracy {whole['accuracy']:.2%}; tokens/s: ")
  assert "per device, n/a per chip, n/a per TensorCore; MFU n/a (" in last


@pytest.mark.long
def test_the_default_run_reads_digits(tmp_path):
  result = run(DIGITS, tmp_path / "run")
  assert result["accuracy"] >= 0.97
  losses = [r["train/loss"] for r in metrics(tmp_path / "run", "train/")]
  assert losses[-1] < losses[0] / 10


def refuse(capfd, *flags):
  """Runs the command in this process; returns its one line on stderr."""
  assert train.main(["train", *flags]) == 2
  out, err = capfd.readouterr()
  assert out == ""
  assert err.startswith("error: ") and err.count("\n") == 1, err
  return err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (
      ["--mesh=3,4"],
      "--mesh=3,4: data x model must be the number of devices, 8, got data=3, "
      "model=4 (3 x 4 = 12)",
    ),
    (["--mesh=8"], "--mesh=8: must be two whole numbers, data,model"),
    (["--mesh=2,x"], "--mesh=2,x: must be two whole numbers, data,model"),
    (
      ["--width=66"],
      "--width=66: heads must divide width: width=66 is not a multiple of "
      "heads=4",
    ),
    (
      ["--width=60", "--heads=6"],
      "--mesh=2,4 --heads=6 --mlp=256 --width=60: the model axis must divide "
      "heads: heads=6 is not a multiple of model=4",
    ),
    (
      ["--batch=12"],
      "--mesh=2,4 --batch=12: the mesh must divide the batch: batch=12 is not "
      "a multiple of data x model = 2 x 4 = 8",
    ),
    (
      ["--preset=vit_23b"],
      "--preset=vit_23b: value should be one of "
      "<digits|images|finetune|vit_b|vit_l|vit_22b>",
    ),
    (
      ["--preset=vit_22b"],
      "--data=jft_4b: data set 'jft_4b' cannot be read by this command, "
      "only digits, shapes, folder:PATH, records:PATH, tfrecords:PATH",
    ),
    (["--steps=0"], "--steps=0: 0 is not a positive integer"),
    (["--steps=-5"], "--steps=-5: -5 is not a positive integer"),
    (["--eval_every=0"], "--eval_every=0: 0 is not a positive integer"),
    (["--lr=0"], "--lr=0.0: peak_lr must be above 0, got 0.0"),
    (
      ["--layout=rows"],
      "--layout=rows: value should be one of <tokens|features>",
    ),
    (
      ["--schedule=two_way,best"],
      "--schedule=two_way,best: must be one of auto, unoverlapped, async, "
      "one_way, two_way, or two of them, forward,backward",
    ),
    (["--stepz=9"], "Unknown command line flag 'stepz'. Did you mean: steps ?"),
    (["--set", "bath=9"], "--set bath=9: no key 'bath'; did you mean 'batch'?"),
    (
      ["--set", "microbatches=3"],
      "--mesh=2,4 --batch=128: microbatches must divide the images of a "
      "device: 128 / 8 = 16 is not a multiple of microbatches=3",
    ),
    (
      ["--set", 'optimizer.groups=[{"pattern": "heads/.*"}]'],
      "--set optimizer.groups: pattern 'heads/.*' must be the whole path of a "
      "parameter; the nearest is 'head/bias'",
    ),
    (
      ["--config=none.toml"],
      "--config=none.toml: No such file or directory: none.toml",
    ),
    (
      ["--preset=finetune"],
      "--preset=finetune needs --init_from, weights to tune",
    ),
    (["--auto_resume"], "--auto_resume needs --workdir, the folder of the run"),
    (
      ["--distributed"],
      "--distributed needs --workdir, a folder that all hosts share",
    ),
    (["--process_id=1"], "--process_id needs --distributed"),
    (["9"], "flags look like --name=value, got '9'"),
    (["--resume"], "--resume needs --workdir, the folder of the run"),
  ],
)
def test_bad_requests(flags, message, capfd, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert refuse(capfd, *flags) == message
  assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_a_run_is_refused(whole, capfd):
  folder = whole["workdir"]
  before = files(folder)
  message = refuse(capfd, *TINY_FLAGS, f"--workdir={folder}")
  assert message == (
    f"--workdir={folder}: the folder is not empty; name another, or add "
    "--resume to continue the run in it"
  )
  assert files(folder) == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capfd):
  (tmp_path / "file").write_text("not a folder")
  folder = tmp_path / "file" / "run"
  message = refuse(capfd, *TINY_FLAGS, f"--workdir={folder}")
  assert message == f"--workdir={folder}: Not a directory: {folder}"
  assert (tmp_path / "file").read_text() == "not a folder"


def test_resuming_nothing_is_refused(tmp_path, capfd):
  folder = tmp_path / "none"
  message = refuse(capfd, "--resume", f"--workdir={folder}")
  assert message == (
    f"--resume --workdir={folder}: No such file or directory: "
    f"{folder / 'config.json'}"
  )
  assert not folder.exists()


def without_checkpoints(folder):
  shutil.rmtree(folder / "checkpoints")
  return "has no finished checkpoint"


def with_half_a_config(folder):
  path = folder / "config.json"
  path.write_text(path.read_text()[:100])
  return "is not the config of a run"


@pytest.mark.parametrize("damage", [without_checkpoints, with_half_a_config])
def test_resuming_a_damaged_run_is_refused(whole, tmp_path, capfd, damage):
  folder = tmp_path / "run"
  shutil.copytree(whole["workdir"], folder)
  expected = damage(folder)
  before = files(folder)
  message = refuse(capfd, "--resume", f"--workdir={folder}")
  assert message.startswith("--resume") and expected in message
  assert str(folder) in message
  assert files(folder) == before


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--width=32", "that run has width=16, got width=32"),
    ("--batch=32", "that run has batch=16, got batch=32"),
    ("--seed=1", "that run has seed=0, got seed=1"),
    ("--steps=5", "--steps=5: the run in .* is at step 6 already"),
  ],
)
def test_resuming_as_another_run_is_refused(whole, capfd, flag, message):
  folder = whole["workdir"]
  before = files(folder)
  said = refuse(capfd, "--resume", f"--workdir={folder}", flag)
  with pytest.raises(UsageError, match=message):
    raise UsageError(said)
  assert files(folder) == before


@pytest.mark.long
def test_a_loss_that_blows_up_stops_the_run(compiled_once, tmp_path, capfd):
  flags = [*TINY_FLAGS, f"--workdir={tmp_path / 'run'}"]
  assert train.main(["train", *flags, "--lr=1e38"]) == 1
  err = capfd.readouterr().err
  assert err.startswith("error: loss is ") and "try a lower --lr" in err


def test_a_run_is_evaluated_alone(whole, capfd):
  folder = whole["workdir"]
  assert evaluate.main(["evaluate", f"--workdir={folder}"]) == 0
  got = json.loads(capfd.readouterr().out)
  assert got == {
    "step": 6,
    "data": "digits",
    "loss": whole["loss"],
    "accuracy": whole["accuracy"],
  }


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "--workdir must name the folder of a run"),
    (["--workdir=none"], "No such file or directory: none/config.json"),
    (["9"], "flags look like --name=value, got '9'"),
  ],
)
def test_what_cannot_be_evaluated(flags, message, capfd):
  assert evaluate.main(["evaluate", *flags]) == 2
  err = capfd.readouterr().err
  assert err.startswith("error: ") and message in err
  assert err.count("\n") == 1


def test_a_run_with_everything_on(compiled_once, tmp_path):
  config = tmp_path / "config.toml"
  config.write_text(
    """
ema_decay = 0.9
loss = "softmax"
microbatches = 2
trace_steps = 2
[[optimizer.groups]]
pattern = "embed/.*"
freeze = true
"""
  )
  folder = tmp_path / "run"
  flags = [*TINY_FLAGS, "--mesh=8,1", f"--config={config}"]
  result = run(request(*flags).config, folder)
  assert list((folder / "trace").rglob("*.xplane.pb"))
  first = metrics(folder, "train/")[0]
  # A head of zeros gives each of ten classes the same chance.
  assert first["train/loss"] == pytest.approx(math.log(10), rel=1e-6)
  last = metrics(folder, "eval/")[-1]
  assert last["eval/ema_loss"] == result["ema_loss"] != result["loss"]
  # What it saved brings the average along.
  saved = restore(folder / "checkpoints", like(result["state"]))
  jax.tree.map(np.testing.assert_array_equal, saved, result["state"])
