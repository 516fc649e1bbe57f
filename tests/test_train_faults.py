"""What happens to a run in weeks: signals, kills, NaNs, full disks."""

import dataclasses
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from train_runs import TINY, Trainer, checkpoints, lines, metrics

from examples import train, train_loop
from examples.data import digits
from examples.stop import Stopped
from examples.train_flags import parse
from examples.train_loop import NonFinite, run

STEPS, EVERY = 80, 20
FLAGS = [
  *TINY,
  "--mesh=8,1",  # compiles in less time than rings
  *(f"--steps={STEPS}", f"--checkpoint_every={EVERY}", "--eval_every=50"),
]


def config(*flags):
  return parse(["train", *FLAGS, *flags]).config


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_once):
  """A run that nothing happened to."""
  return run(config(), tmp_path_factory.mktemp("whole") / "run")


def started(folder):
  return [start["step"] for start in lines(folder / "starts.jsonl")]


def last_step(folder):
  return max((r["step"] for r in metrics(folder, "train/")), default=0)


def assert_the_same(result, whole):
  """Compares the ends of two runs, and all that they logged, bit for bit."""
  jax.tree.map(np.testing.assert_array_equal, result["state"], whole["state"])
  for group in ("train/", "eval/"):
    assert metrics(result["workdir"], group) == (
      metrics(whole["workdir"], group)
    )


def killed_at(folder, condition, compiled_once, number=signal.SIGKILL):
  """Starts or continues a run, ends it when `condition` holds; its exit code
  and stderr, the step that it started from and the last that it logged."""
  before = len(started(folder))
  with Trainer(
    *FLAGS, f"--workdir={folder}", "--auto_resume", **compiled_once
  ) as child:
    child.wait_for(lambda: len(started(folder)) > before and condition())
    child.send(number)
    code, _, err = child.end()
  return code, err, started(folder)[-1], last_step(folder)


def test_after_a_kill_and_a_sigterm_a_run_ends_bit_for_bit_as_a_whole_one(
  whole, compiled_once, tmp_path
):
  folder = tmp_path / "run"
  code, _, start, reached = killed_at(
    folder, lambda: last_step(folder) > EVERY + 3, compiled_once
  )
  assert (code, start) == (-signal.SIGKILL, 0)

  code, err, start, _ = killed_at(
    folder,
    lambda: last_step(folder) > reached + 5,
    compiled_once,
    signal.SIGTERM,
  )
  # The newest checkpoint may still have been on its way to the disk.
  assert reached - start < 2 * EVERY and start % EVERY == 0
  assert code == 128 + signal.SIGTERM, err
  stopped = checkpoints(folder)[-1]
  assert f"stopped at step {stopped} of {STEPS}; --resume" in err
  assert stopped == last_step(folder)  # saved where it stopped

  result = run(config(), folder, resume="auto")
  assert started(folder) == [0, start, stopped]
  assert_the_same(result, whole)


@pytest.mark.long
def test_twenty_kills_at_random_moments_lose_at_most_an_interval(
  compiled_once, tmp_path
):
  every = 10
  flags = [*FLAGS, "--steps=800", "--eval_every=800"]
  flags += [f"--checkpoint_every={every}"]
  folder, moments = tmp_path / "run", random.Random(0)
  for _ in range(20):
    before = last_step(folder)
    with Trainer(
      *flags, f"--workdir={folder}", "--auto_resume", **compiled_once
    ) as child:
      if moments.random() < 0.7:  # in its steps and saves
        beyond = before + moments.randint(1, 2 * every)
        child.wait_for(lambda step=beyond: last_step(folder) >= step)
        time.sleep(moments.uniform(0, 0.2))
      else:  # or while it starts
        time.sleep(moments.uniform(0, 6))
      reached, saved = last_step(folder), checkpoints(folder)
      child.send(signal.SIGKILL)
      child.end()
    # What was whole before the kill is whole after it, and the newest is at
    # most one save and one interval behind.
    assert not saved or checkpoints(folder)[-1] >= saved[-1]
    assert reached - max(saved, default=0) <= 2 * every
  assert len(set(started(folder))) >= 8  # it did go on from checkpoints
  result = run(parse(["train", *flags]).config, folder, resume="auto")
  whole = run(parse(["train", *flags]).config, tmp_path / "whole")
  assert_the_same(result, whole)


def test_a_run_saves_by_the_clock_and_on_ctrl_c(whole, tmp_path, monkeypatch):
  folder = tmp_path / "run"
  clock = iter(range(0, 10**6, 90))  # each look at it is 90 s later
  monkeypatch.setattr(train_loop, "_clock", lambda: next(clock))

  def interrupt():
    while last_step(folder) < 45:
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

  before = signal.getsignal(signal.SIGINT)
  hand = threading.Thread(target=interrupt)
  hand.start()
  flags = ["--checkpoint_every=1000", "--set", "checkpoint_minutes=30"]
  with pytest.raises(Stopped, match=f"stopped at step .* of {STEPS}") as caught:
    run(config(*flags, "--set", "keep=9"), folder)
  hand.join()
  assert caught.value.signal == signal.SIGINT
  assert signal.getsignal(signal.SIGINT) is before
  assert (folder / "curves.png").exists()
  # Each step looks once and a save does; 30 minutes are 20 looks.
  *due, stopped = checkpoints(folder)
  assert due[:2] == [20, 41] and 45 <= stopped < STEPS
  assert (
    metrics(folder, "train/") == (metrics(whole["workdir"], "train/")[:stopped])
  )


@pytest.fixture
def spoilt(monkeypatch, request):
  """32 digits, two batches, of which some are not numbers."""

  def load(spec, split):
    source = digits.load(split)
    scans, labels = source.scans[:32].copy(), source.labels[:32]
    if split == "train":
      scans[request.param] = np.nan
    return dataclasses.replace(source, scans=scans, labels=labels)

  monkeypatch.setattr("examples.run_setup.open_source", load)


one_is_nan = pytest.mark.parametrize("spoilt", [7], indirect=True)
all_are_nan = pytest.mark.parametrize("spoilt", [...], indirect=True)


@one_is_nan
def test_a_nan_stops_the_run_and_names_the_images(
  whole, spoilt, tmp_path, capfd, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert train.main(["train", *FLAGS, "--checkpoint_every=1"]) == 1
  (folder,) = Path("runs").iterdir()  # the default: a fresh folder
  assert folder.name.startswith("digits-")
  assert (folder / "curves.png").stat().st_size > 0
  said = json.loads((folder / "nonfinite.json").read_text())
  step = said["step"]
  assert step in (1, 2) and said["loss"] == "nan"
  assert "digit 7" in said["images"] and len(said["images"]) == 16
  err = capfd.readouterr().err
  assert f"error: loss is nan at step {step}, whose images are digit" in err
  good = {
    1: "there is no checkpoint yet",
    2: f"the last good checkpoint is {folder / 'checkpoints' / '1'}",
  }
  assert f"{good[step]}; try a lower --lr" in err
  assert checkpoints(folder) == ([1] if step == 2 else [])


@one_is_nan
def test_a_nan_is_left_out_where_that_is_asked_for(
  whole, spoilt, tmp_path, capfd
):
  # The last batch of an epoch may be followed by the first of the next.
  flags = [f"--checkpoint_every={STEPS}", "--set", "skip_nonfinite=2"]
  result = run(config(*flags), tmp_path / "run")
  records = metrics(tmp_path / "run", "train/")
  skipped = [r["train/skipped"] for r in records]
  assert sum(skipped) == STEPS / 2  # one batch of each epoch of two
  assert [np.isnan(r["train/loss"]) for r in records] == [
    x == 1 for x in skipped
  ]
  assert np.isfinite(result["loss"])
  assert "update left out" in capfd.readouterr().out
  jax.tree.map(
    lambda x: np.testing.assert_array_equal(np.isfinite(x), True),
    result["state"].params,
  )


@all_are_nan
def test_more_in_a_row_than_asked_for_stop_the_run(whole, spoilt, tmp_path):
  with pytest.raises(NonFinite, match="loss is nan at step 3, whose images"):
    run(config("--set", "skip_nonfinite=2"), tmp_path / "run")
  records = metrics(tmp_path / "run", "train/")
  assert [r["train/skipped"] for r in records] == [1, 1]


# That saves fail cleanly is test_checkpoints.py's to show, in a process too.
@pytest.mark.long
def test_a_full_disk_stops_the_run_in_one_line(whole, compiled_once, tmp_path):
  folder = tmp_path / "run"
  with Trainer(*FLAGS, f"--workdir={folder}", **compiled_once) as child:
    # No file may grow beyond this; the arrays of a checkpoint do.
    child.limit_files(12_000)
    code, _, err = child.end()
  assert code == 1
  # jax may warn that its cache of programs cannot grow either.
  said = [line for line in err.splitlines() if "warn" not in line.lower()]
  assert len(said) == 1, err
  assert said[0].startswith(f"error: checkpoint {folder / 'checkpoints'}")
  assert "could not be written: File too large" in said[0]
  assert not checkpoints(folder)
