import json
import sys

import pytest

from collective_mm import make_mesh
from examples import run_folder
from examples.presets import PRESETS, changed
from examples.usage import UsageError

DIGITS = PRESETS["digits"]


def test_what_a_killed_claim_left_does_not_refuse_the_next(tmp_path):
  (tmp_path / "config.tmp").write_text("{")
  assert not run_folder.has_run(tmp_path)
  run_folder.claim(tmp_path, DIGITS)
  assert run_folder.has_run(tmp_path)
  assert run_folder.read_config(tmp_path) == DIGITS
  with pytest.raises(UsageError, match="the folder is not empty"):
    run_folder.claim(tmp_path, DIGITS)


def test_each_start_is_recorded(tmp_path):
  mesh = make_mesh(data=2, model=4)
  for step in (0, 30):
    run_folder.record_start(tmp_path, step, mesh)
  lines = (tmp_path / "starts.jsonl").read_text().splitlines()
  first, second = map(json.loads, lines)
  assert (first["step"], second["step"]) == (0, 30)
  assert first["command"] == sys.orig_argv
  assert first["mesh"] == {"data": 2, "model": 4}
  assert first["processes"] == 1
  assert {"python", "jax", "jaxlib", "optax"} <= first["versions"].keys()
  # None where the tests run outside a clone.
  assert first["git"] is None or len(first["git"]["revision"]) == 40


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"ema_decay": 0.9}, "has an average=False, got an average=True"),
    ({"loss": "softmax"}, "has loss=sigmoid, got loss=softmax"),
    ({"augment": {"flip": False}}, "has augment=Augment"),
    (
      {"optimizer": {"groups": [{"pattern": "head/.*", "freeze": True}]}},
      r"has optimizer groups=\[\], got .*head/",
    ),
  ],
)
def test_what_must_not_change(tmp_path, changes, message):
  run_folder.claim(tmp_path, DIGITS)
  with pytest.raises(UsageError, match=message):
    run_folder.check_same_run(tmp_path, changed(DIGITS, changes))


def test_what_may_change(tmp_path):
  run_folder.claim(tmp_path, DIGITS)
  changes = {"microbatches": 2, "keep": 9, "optimizer": {"peak_lr": 1.0}}
  run_folder.check_same_run(tmp_path, changed(DIGITS, changes))


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
  with pytest.raises(UsageError, match="must be a folder that all hosts share"):
    run_folder.check_shared(tmp_path)
