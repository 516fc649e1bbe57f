import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
CELL = re.compile(r"([\d.]+) \[([\d.]+), ([\d.]+)\], ([\d.]+)x")


def bench(*flags, env=os.environ):
  return subprocess.run(
    [sys.executable, "-m", "profiling.bench_matmul", *flags],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
    timeout=300,
  )


def cells(row):
  return row.strip("| ").split(" | ")


def test_the_measured_table(tmp_path):
  done = bench(
    *("--shape=24,20,48", "--dtype", "bfloat16", "--model_axis", "4"),
    *("--rounds", "2", "--json", tmp_path / "times.json"),
  )
  assert (done.returncode, done.stderr) == (0, "")
  heading, _, header, rule, *rows, _, note = done.stdout.splitlines()
  assert heading.startswith("Measured on 4 x cpu (")
  assert "bfloat16, model axis 4" in heading
  names = cells(header)[2:]
  assert names == [
    *("roof", "unoverlapped", "compiler"),
    *("one_way", "two_way", "two_way_async", "auto"),
  ]
  assert rule == f"|{'---|' * 9}"
  assert [cells(row)[:2] for row in rows] == [
    ["all_gather_matmul", "24 x 20 x 48"],
    ["matmul_reduce_scatter", "24 x 20 x 48"],
  ]
  for row in rows:
    times = [tuple(map(float, cell)) for cell in CELL.findall(row)]
    assert len(times) == 7
    assert times[0][3] == 1.0
    assert all(0 < low <= median <= high for median, low, high, _ in times)
  assert note.startswith("CPU figures say nothing about overlap")
  lines = (tmp_path / "times.json").read_text().splitlines()
  written = [json.loads(line) for line in lines]
  assert [line["method"] for line in written] == 2 * names
  assert {line["what"] for line in written} == {"measured"}
  assert all(0 < t["min_ms"] <= t["median_ms"] <= t["max_ms"] for t in written)


def test_some_ops_shapes_and_methods():
  done = bench(
    *("--op=matmul_reduce_scatter", "--shape=8,20,48", "--shape=16,20,48"),
    *("--methods=two_way,one_way", "--rounds=1", "--model_axis=2"),
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert "over roof" not in done.stdout
  header, _, *rows = [
    line for line in done.stdout.splitlines() if line.startswith("|")
  ]
  assert cells(header)[2:] == ["one_way", "two_way"]
  assert [cells(row)[:2] for row in rows] == [
    ["matmul_reduce_scatter", "8 x 20 x 48"],
    ["matmul_reduce_scatter", "16 x 20 x 48"],
  ]


@pytest.mark.tpu_compiler
def test_the_simulated_table(tmp_path):
  pytest.importorskip("libtpu")
  # A user has set nothing, and sees nothing of libtpu's search for a TPU.
  names = ("JAX_PLATFORMS", "XLA_FLAGS", "TPU_", "ALLOW_MULTIPLE_LIBTPU_LOAD")
  env = {k: v for k, v in os.environ.items() if not k.startswith(names)}
  done = bench(
    *("--simulate=v6e,v5p", "--shape=1024,512,2048"),
    "--methods=roof,unoverlapped,compiler_none,compiler_default,auto",
    *("--json", tmp_path / "times.json"),
    env=env,
  )
  assert (done.returncode, done.stderr) == (0, "")
  heading, command, _, header, _, *rows, _, first, _, second = (
    done.stdout.splitlines()
  )
  assert re.match(r"Simulated, jax [\d.]+, libtpu [\d.]+: compiled", heading)
  assert "v5p:2x2x2, v6e:2x4, model axis 8" in heading
  assert "bfloat16, ms" in heading
  assert command.startswith(
    "`python -m profiling.bench_matmul --simulate=v6e,v5p --shape=1024,512,2048"
  )
  assert cells(header)[3:] == [
    *("roof", "unoverlapped", "compiler_none", "compiler_default"),
    *("auto", "unoverlapped / auto", "best compiler / auto"),
  ]
  assert [cells(row)[:3] for row in rows] == [
    [chip, op, "1,024 x 512 x 2,048"]
    for chip in ("v5p", "v6e")
    for op in ("all_gather_matmul", "matmul_reduce_scatter")
  ]
  lines = (tmp_path / "times.json").read_text().splitlines()
  written = [json.loads(line) for line in lines]
  assert len(written) == 20
  assert {(line["what"], line["model_axis"]) for line in written} == {
    ("simulated", 8)
  }
  ratios = [], []
  for i, row in enumerate(rows):
    times = [line["step_time_ms"] for line in written[5 * i : 5 * i + 5]]
    roof, unoverlapped, none, default, auto = times
    assert 0 < roof < min(times[1:])
    for ratio, best in zip(
      ratios, (unoverlapped, min(none, default)), strict=True
    ):
      ratio.append(best / auto)
    assert cells(row)[3:] == [f"{time:.2f}" for time in times] + [
      f"{ratio[-1]:.3f}" for ratio in ratios
    ]
  for line, title, ratio in zip(
    (first, second), ("unoverlapped", "best compiler"), ratios, strict=True
  ):
    mean = math.prod(ratio) ** (1 / 4)
    assert line == (
      f"{title} / auto: {mean:.3f} in geometric mean, {min(ratio):.3f} "
      f"at least, of 4."
    )


@pytest.mark.parametrize(
  "flags, message",
  [
    (
      ["--shape=16,20,100"],
      "first and last multiples of the model axis, 8; got 16,20,100",
    ),
    (
      ["--shape=10,20,16", "--model_axis=4"],
      "first and last multiples of the model axis, 4; got 10,20,16",
    ),
    (["--shape=16,20"], "--shape must be tokens,width,features, three pos"),
    (["--shape=16,0,16"], "--shape must be tokens,width,features, three pos"),
    (
      ["--model_axis=9"],
      "--model_axis must be at most the number of devices here, 8",
    ),
    (["--op=matmul"], "--op must be some of all_gather_matmul,matmul_reduce_"),
    (
      ["--methods=compiler_none"],
      "--methods must be some of roof,unoverlapped,compiler,one_way,two_way,"
      "two_way_async,auto, got compiler_none",
    ),
    (["--simulate=v3"], "--simulate must be some of v4,v5e,v5p,v6e, got v3"),
    (
      ["--simulate=v4", "--rounds=3"],
      "--rounds is for what is measured, not simulated",
    ),
    (
      ["--simulate=v4", "--model_axis=4"],
      "--model_axis is for what is measured, not simulated",
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
