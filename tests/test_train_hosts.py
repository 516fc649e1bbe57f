"""Several real processes, CPUs and loopback: one mesh, one model, one run."""

import contextlib
import signal

import numpy as np
import pytest
from train_runs import TINY, Trainer, checkpoints, free_port, lines, metrics

from examples.train_flags import parse
from examples.train_loop import run

STEPS, EVERY = 30, 8
FLAGS = [
  *TINY,
  *(f"--steps={STEPS}", f"--checkpoint_every={EVERY}", f"--eval_every={STEPS}"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, compiled_once):
  """The run of one process."""
  folder = tmp_path_factory.mktemp("alone") / "run"
  run(parse(["train", *FLAGS, "--mesh=8,1"]).config, folder)
  return folder


@contextlib.contextmanager
def job(folder, count, compiled_once):
  """Processes of two devices each: four make a mesh (4, 2), so that rings run
  inside them and data goes across; two make (4, 1), which compiles sooner."""
  mesh = {2: "4,1", 4: "4,2"}[count]
  port = free_port()
  devices = "--xla_force_host_platform_device_count=2"
  quick = "--xla_backend_optimization_level=0"
  with contextlib.ExitStack() as stack:
    yield [
      stack.enter_context(
        Trainer(
          *FLAGS,
          *(f"--mesh={mesh}", f"--workdir={folder}", "--auto_resume"),
          *("--distributed", f"--coordinator=localhost:{port}"),
          *(f"--num_processes={count}", f"--process_id={i}"),
          "--host_timeout=120",
          **compiled_once,
          XLA_FLAGS=f"{devices} {quick}",
        )
      )
      for i in range(count)
    ]


def reached(folder):
  return max((r["step"] for r in metrics(folder, "train/")), default=0)


def starts(folder):
  return lines(folder / "starts.jsonl")


def kill_one(folder, count, compiled_once):
  """Kills the last of `count` processes in a step; the others must end."""
  before = reached(folder)
  with job(folder, count, compiled_once) as processes:
    processes[-1].wait_for(lambda: reached(folder) > before + EVERY + 1)
    processes[-1].send(signal.SIGKILL)
    ends = [process.end() for process in processes]
  codes = [code for code, *_ in ends]
  assert codes[-1] == -signal.SIGKILL
  assert all(code != 0 for code in codes), ends
  # Whichever ends first takes the coordinator or its connections along; where
  # jax's coordination service is the first to notice, it aborts them all.
  lost = "error: a process of the run was lost"
  assert any(
    lost in err or code == -signal.SIGABRT for code, _, err in ends[:-1]
  ), ends


def finish(folder, count, compiled_once):
  with job(folder, count, compiled_once) as processes:
    ends = [process.end() for process in processes]
  assert [code for code, *_ in ends] == [0] * count, ends
  assert "test accuracy" in ends[0][1]
  assert f"devices of {count} processes" in ends[0][1]
  for _, out, _ in ends[1:]:
    assert "accuracy" not in out and "run folder" not in out


def assert_as_alone(folder, alone):
  got, want = metrics(folder, "train/"), metrics(alone, "train/")
  assert [r["step"] for r in got] == list(range(1, STEPS + 1))
  for a, b in zip(got, want, strict=True):
    for name in ("train/loss", "train/grad_norm"):
      # The order of sums differs, and Adam divides by the root of them: each
      # step adds some rounding. A host with other images would miss by 1e-2.
      np.testing.assert_allclose(a[name], b[name], rtol=2e-4, err_msg=name)
  (a,), (b,) = metrics(folder, "eval/"), metrics(alone, "eval/")
  np.testing.assert_allclose(a["eval/loss"], b["eval/loss"], rtol=2e-4)


def test_two_processes_lose_one_start_again_and_end_as_one(
  alone, compiled_once, tmp_path
):
  folder = tmp_path / "run"
  kill_one(folder, 2, compiled_once)
  saved = checkpoints(folder)[-1]
  finish(folder, 2, compiled_once)
  first, second = starts(folder)
  assert (first["step"], second["step"]) == (0, saved)
  assert first["processes"] == second["processes"] == 2
  assert_as_alone(folder, alone)


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_process_that_nobody_joins_says_so_and_ends(index, tmp_path):
  with Trainer(
    *("--distributed", f"--workdir={tmp_path / 'run'}", "--host_timeout=2"),
    *(f"--coordinator=localhost:{free_port()}", "--num_processes=2"),
    f"--process_id={index}",
  ) as process:
    code, out, err = process.end()
  assert (code, out) == (1, "")
  *_, last = err.splitlines()
  assert last == (
    "error: the processes of the run did not all come within --host_timeout=2 s"
  )
  assert not (tmp_path / "run").exists()


def test_without_a_cluster_the_coordinator_must_be_named(tmp_path):
  with Trainer("--distributed", f"--workdir={tmp_path / 'run'}") as process:
    code, out, err = process.end()
  assert (code, out) == (2, "")
  assert err.startswith("error: --distributed needs a TPU slice, Slurm or Open")
  assert err.count("\n") == 1
  assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_four_processes_stop_together_lose_one_and_end_as_one(
  alone, compiled_once, tmp_path
):
  folder = tmp_path / "run"
  with job(folder, 4, compiled_once) as processes:
    processes[2].wait_for(lambda: reached(folder) > 3)
    processes[2].send(signal.SIGTERM)  # to one of them alone
    ends = [process.end() for process in processes]
  assert [code for code, *_ in ends] == [128 + signal.SIGTERM] * 4, ends
  stopped = checkpoints(folder)[-1]
  for *_, err in ends:
    assert f"stopped at step {stopped} of {STEPS}" in err
  kill_one(folder, 4, compiled_once)
  finish(folder, 4, compiled_once)
  assert [s["step"] for s in starts(folder)][:2] == [0, stopped]
  assert_as_alone(folder, alone)
