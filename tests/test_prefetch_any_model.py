import subprocess
import sys
from pathlib import Path

import pytest

from examples import prefetch_any_model

ROOT = Path(__file__).parents[1]


def test_runs_on_virtual_devices_and_prints_what_hides():
  result = subprocess.run(
    [sys.executable, "-W", "error", "-m", "examples.prefetch_any_model"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (result.returncode, result.stderr) == (0, "")
  *report, last = result.stdout.splitlines()
  assert report[0].startswith("kind")
  assert any(line.startswith("all-gather") for line in report)
  assert "collectives" in report[-1]
  assert last == "the gradients are equal to those without prefetch"


def test_refuses_a_slice_that_does_not_exist(capsys):
  assert prefetch_any_model.main(["prefetch_any_model", "v9:2"]) == 2
  out, err = capsys.readouterr()
  assert out == ""
  assert err.count("\n") == 1
  assert "error: name must be a chip" in err


@pytest.mark.long
@pytest.mark.tpu_compiler
def test_compiles_for_a_slice_that_is_not_here(capsys):
  pytest.importorskip("libtpu")
  assert prefetch_any_model.main(["prefetch_any_model", "v4:2x2x2"]) == 0
  assert "(modelled on a v4)" in capsys.readouterr().out
