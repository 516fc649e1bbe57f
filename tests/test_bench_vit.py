import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ("--layers=1", "--width=16", "--mlp=32", "--heads=4", "--rounds=2")


def start(*flags, **env):
  return subprocess.Popen(
    [sys.executable, "-m", "profiling.bench_vit", *flags],
    cwd=ROOT,
    env=os.environ | env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def bench(*flags):
  process = start(*flags)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def rows_of(out):
  rows = [line for line in out.splitlines() if line.startswith("| ")][1:]
  return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_the_table_the_lines_the_events_and_the_trace(tmp_path):
  results, trace = tmp_path / "results", tmp_path / "trace"
  code, out, err = bench(*SMALL, f"--out_dir={results}", f"--trace_dir={trace}")
  assert (code, err) == (0, "")
  assert out.startswith("Measured on 8 x cpu (")
  assert "depth 1, width 16, mesh 2 data x 4 model, tokens sharded" in out
  assert "HBM peak of all methods: n/a." in out
  rows = rows_of(out)
  assert [row[0] for row in rows] == ["unoverlapped", "auto"]
  for row in rows:
    median, low, high = map(float, re.findall(r"[\d.]+", row[1]))
    assert 0 < low <= median <= high
    # A trace of a CPU has no device's time in it, and a CPU no peak.
    assert (row[2], row[4:]) == ("n/a", ["n/a"] * 3)
    tokens_per_s = 32 * 16 / 8 / (median / 1e3)
    assert float(row[3].replace(",", "")) == pytest.approx(
      tokens_per_s, rel=0.01
    )
  assert (results / "table.md").read_text() in out
  lines = (results / "results.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert [r["method"] for r in records] == ["unoverlapped", "auto"]
  assert {r["what"] for r in records} == {"measured"}
  assert {r["grad_norm"] for r in records} == {records[0]["grad_norm"]}
  for name in ("unoverlapped", "auto"):
    assert list((results / name).glob("events.out.tfevents.*"))
  (plane,) = trace.rglob("*.xplane.pb")
  assert b"unoverlapped" in plane.read_bytes()  # the steps bear names


def test_one_device_has_its_twins_beside_it():
  process = start(
    *(*SMALL, "--schedules=unoverlapped", "--dtype=bfloat16", "--remat"),
    "--twins=plain,linen",
    XLA_FLAGS="--xla_force_host_platform_device_count=1",
  )
  out, err = process.communicate(timeout=300)
  assert (process.returncode, err) == (0, "")
  assert "mesh 1 data x 1 model" in out
  assert [row[0] for row in rows_of(out)] == ["unoverlapped", "plain", "linen"]


@pytest.mark.long
def test_two_processes_make_one_mesh_and_the_first_one_speaks():
  # What Slurm tells each process of a job.
  job = {
    "SLURM_JOB_ID": str(os.getpid()),
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
  }
  processes = [
    start(
      *(*SMALL, "--distributed", "--schedules=unoverlapped", "--mesh=2,4"),
      **job,
      SLURM_PROCID=str(i),
      SLURM_LOCALID=str(i),
      JAX_LOCAL_DEVICE_IDS="0,1,2,3",
    )
    for i in range(2)
  ]
  said = [process.communicate(timeout=300) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  (first, _), (second, _) = said
  assert "Measured on 8 x cpu" in first and "2 processes" in first
  assert "method" not in second  # but the transport has a word to say


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--model=vit_99"], "model must be one of vit_tiny, vit_s"),
    (["--heads=3"], "heads must divide width: width=64"),
    (["--mesh=3,3"], "must be the number of devices, 8, got data=3, model=3"),
    (["--mesh=8"], "--mesh must be two whole numbers, data,model, got 8"),
    (["--mesh=1,8"], "the model axis must divide heads: heads=4"),
    (["--batch=12"], "the mesh must divide the batch: batch=12"),
    (["--schedules=none"], "--schedules must be some of auto,unoverlapped,"),
    (["--twins=torch"], "--twins must be some of plain,linen, got torch"),
    (["--twins=linen"], "--twins=linen is for one device, got 8"),
    (["--layout=rows"], "--layout=rows: value should be one of"),
    (["--rounds=0"], "--rounds=0: 0 is not a positive integer"),
    (["--blocks=4"], "Unknown command line flag 'blocks'"),
    (["--out_dir=setup.cfg/results"], "Not a directory"),
    (["--distributed"], "--distributed needs a TPU slice, Slurm or Open MPI"),
    (["8"], "only flags are understood, got 8"),
  ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(flags, message):
  code, out, err = bench(*flags)
  assert (code, out) == (2, "")
  (line,) = err.splitlines()
  assert line.startswith("bench_vit: ") and message in line
