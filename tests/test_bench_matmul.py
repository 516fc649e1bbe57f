import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
CELL = re.compile(r"([\d.]+) \[([\d.]+), ([\d.]+)\], ([\d.]+)x")


def bench(*flags):
  return subprocess.run(
    [sys.executable, "-m", "profiling.bench_matmul", *flags],
    cwd=ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_the_table():
  done = bench(
    *("--tokens", "24", "--width", "20", "--features", "48"),
    *("--dtype", "bfloat16", "--model_axis", "4", "--rounds", "2"),
  )
  assert (done.returncode, done.stderr) == (0, "")
  heading, _, header, rule, *rows, _, note = done.stdout.splitlines()
  assert heading.startswith("Measured on 4 x cpu (")
  assert "24 tokens, width 20, 48 features, bfloat16, model axis 4" in heading
  assert header == "| op | roof | unoverlapped | one_way | two_way |"
  assert rule == "|---|---|---|---|---|"
  assert [row.split(" | ")[0] for row in rows] == [
    "| all_gather_matmul",
    "| matmul_reduce_scatter",
  ]
  for row in rows:
    cells = [tuple(map(float, cell)) for cell in CELL.findall(row)]
    assert len(cells) == 4
    assert cells[0][3] == 1.0
    assert all(0 < low <= median <= high for median, low, high, _ in cells)
  assert note.startswith("CPU figures say nothing about overlap")


@pytest.mark.parametrize(
  "flags, message",
  [
    (
      ["--features=100"],
      "--features must be a multiple of the model axis, 8, got 100",
    ),
    (
      ["--tokens=10", "--model_axis=4"],
      "--tokens must be a multiple of the model axis, 4, got 10",
    ),
    (
      ["--model_axis=9"],
      "--model_axis must be at most the number of devices here, 8",
    ),
    (["--rounds=0"], "--rounds=0: 0 is not a positive integer"),
    (["--dtype=float16"], "--dtype=float16: value should be one of"),
    (["--depth=4"], "Unknown command line flag 'depth'"),
    (["1024"], "only flags are understood, got 1024"),
  ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(flags, message):
  done = bench(*flags)
  assert done.returncode == 2
  assert done.stdout == ""
  (line,) = done.stderr.splitlines()
  assert line.startswith("bench_matmul: ") and message in line
