import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax.numpy as jnp
import pytest

from models import train_step
from models.optimizer import VIT_22B, make_optimizer
from models.vit_config import get_config
from profiling import aot, aot_compile, aot_programs, flops, replay

ROOT = Path(__file__).parents[1]
TINY = {
  "--model": "vit_tiny",
  "--topology": "v5e:2x2",
  "--mesh": "2,2",
  "--batch": "16",
  "--depth": "2",
}
OP = {
  "--op": "all_gather_matmul",
  "--shape": "512,256,512",
  "--topology": "v5e:2x2",
  "--mesh": "1,4",
}


def flags(folder, given, **changes):
  changed = given | {f"--{name}": value for name, value in changes.items()}
  pairs = [(n, v) for n, v in changed.items() if v is not None]
  return [*(x for pair in pairs for x in pair), "--dump_dir", str(folder)]


def run(folder, given, **changes):
  """Runs the command and returns its report."""
  assert aot.main(flags(folder, given, **changes)) == 0
  return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  pytest.importorskip("libtpu")
  folder = tmp_path_factory.mktemp("aot")
  return folder, run(folder, TINY)


@pytest.mark.tpu_compiler
def test_the_report_is_the_replay_of_the_dump(tiny, capsys):
  folder, report = tiny
  text = (folder / "module.hlo.txt").read_text()
  devices = json.loads((folder / "devices.json").read_text())
  assert sorted(devices) == [[x, y, 0, 0] for x in (0, 1) for y in (0, 1)]
  again = replay.replay(text, devices=devices, chip="v5e")
  got = report["simulated"]
  assert got["step_time_s"] == again.step_time_s > 0
  assert got["exposed_s"] == again.exposed_s
  assert sum(got["exposed_by_axes_s"].values()) == pytest.approx(
    got["exposed_communication_s"]
  )
  parts = sum(got["compute_s"].values()) + sum(got["exposed_s"].values())
  assert parts == pytest.approx(got["step_time_s"])
  tokens = 16 * get_config("vit_tiny").tokens
  assert got["tokens_per_s_per_chip"] == pytest.approx(
    tokens / 4 / got["step_time_s"]
  )
  hbm = report["hbm_bytes"]
  assert 0 < hbm["arguments"] < hbm["peak"] < hbm["usable"]
  assert str(ROOT) not in text  # paths of this machine are left out
  assert metadata.version("jax") == report["versions"]["jax"]


@pytest.mark.tpu_compiler
def test_two_runs_give_the_same_bytes_and_no_noise(tiny, tmp_path):
  # As a user would: an environment of their own, nothing set for libtpu.
  ours = ("JAX", "TPU", "XLA", "ALLOW", "PYTEST")
  env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
  for name in "ab":
    done = subprocess.run(
      [sys.executable, "-m", "profiling.aot", *flags(tmp_path / name, TINY)],
      cwd=ROOT,
      env=env,
      capture_output=True,
      text=True,
      check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "MFU" in done.stdout
  for name in ("report.json", "devices.json", "module.hlo.txt"):
    assert (tmp_path / "a" / name).read_bytes() == (
      tmp_path / "b" / name
    ).read_bytes()
  # The module itself also names the files of whoever called.
  report = (tiny[0] / "report.json").read_bytes()
  assert (tmp_path / "a" / "report.json").read_bytes() == report


@pytest.mark.tpu_compiler
def test_one_op(tmp_path, capsys):
  pytest.importorskip("libtpu")
  report = run(tmp_path, OP, schedule="two_way")
  assert report["flops"]["products_per_step"] == 6 * 512 * 256 * 512
  assert report["simulated"]["step_time_s"] > 0
  assert "all_gather_matmul of 512 x 256 x 512 on v5e:2x2" in (
    capsys.readouterr().out
  )
  baseline = run(tmp_path, OP, baseline="compiler")
  assert set(baseline["modes"]) == set(aot.MODES)
  best = min(m["step_time_s"] for m in baseline["modes"].values())
  assert baseline["simulated"]["step_time_s"] == best
  assert baseline["modes"][baseline["mode"]]["step_time_s"] == best


@pytest.mark.tpu_compiler
def test_compiler_options_can_be_added_and_left_out(tmp_path, capsys):
  pytest.importorskip("libtpu")
  flag = "xla_tpu_all_gather_collective_matmul_mode"
  with_one = run(tmp_path, OP, chip_options=f"{flag}=none")
  assert with_one["compiler_options"][flag] == "none"
  assert len(with_one["compiler_options"]) > 1
  bare = run(tmp_path, OP, chip_options="none")
  assert bare["compiler_options"] == {}


@pytest.mark.tpu_compiler
def test_what_does_not_fit_says_by_how_much(tmp_path, capsys):
  pytest.importorskip("libtpu")
  big = "262144,65536,262144"
  assert aot.main(flags(tmp_path, OP, shape=big)) == 2
  err = capsys.readouterr().err
  assert "on v5e:2x2 needs" in err and "15.75 GiB are usable" in err
  assert err.count("\n") == 1
  report = json.loads((tmp_path / "report.json").read_text())
  assert report["fits"] is False
  hbm = report["hbm_bytes"]
  assert hbm["over"] == hbm["needed"] - hbm["usable"] > 0
  room = report["modelled_bytes"]
  assert room["gathered tokens"] == 2 * 262144 * 65536
  assert "gathered tokens 32.00" in err


def test_another_message_of_the_compiler():
  with pytest.raises(ValueError, match="must say what does not fit, got what"):
    aot_compile.does_not_fit("what?")


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  "given, changes, message",
  [
    (TINY, {"topology": "v9:2x2"}, "chip must be one of v4, .*, got 'v9'"),
    (TINY, {"topology": "v3:2x2"}, "clock and links are published, got 'v3'"),
    (TINY, {"topology": "v4:3x3x3"}, "must be a slice .* got 'v4:3x3x3'"),
    (TINY, {"mesh": "2,4"}, r"number of devices, 4, got data=2, model=4"),
    (TINY, {"mesh": "2"}, "--mesh must be 2 whole numbers, .* got '2'"),
    (TINY, {"batch": "15"}, "batch=15 is not a multiple of data x model"),
    (TINY, {"batch": "0"}, "the mesh must divide the batch: batch=0"),
    (TINY, {"batch": "x"}, "--batch: invalid int value: 'x'"),
    (TINY, {"batch": None}, "--batch must be given"),
    (TINY, {"model": "vit_x"}, "model must be one of vit_tiny, .* 'vit_x'"),
    (TINY, {"model": None}, "--model must be given"),
    (TINY, {"shape": "1,2,3"}, "--shape must not be given beside --batch"),
    (TINY, {"depth": "0"}, "depth must be at least 1, got 0"),
    (TINY, {"layout": "rows"}, "layout must be tokens or features, got 'rows'"),
    (TINY, {"schedule": "three"}, "--schedule must be one of .* got 'three'"),
    (TINY, {"chip_options": "a"}, "--chip_options must be .* got 'a'"),
    (TINY, {"chip_options": "a=1"}, "No such compile option: 'a'"),
    (TINY, {"baseline": "torch"}, "--baseline: invalid choice: 'torch'"),
    (OP, {"op": "matmul"}, "op must be one of all_gather_matmul, .*'matmul'"),
    (OP, {"mesh": "2,2"}, "the mesh of one op must be 1,devices, got 2,2"),
    (OP, {"shape": "510,8,8"}, "multiples of the model axis, 4, got .510"),
    (OP, {"shape": "8,8"}, "--shape must be 3 whole numbers, .* got '8,8'"),
    (OP, {"batch": "8"}, "--batch must not be given beside --shape"),
  ],
)
def test_bad_requests_get_one_line(tmp_path, capsys, given, changes, message):
  pytest.importorskip("libtpu")
  assert aot.main(flags(tmp_path, given, **changes)) == 2
  out, err = capsys.readouterr()
  assert out == ""
  assert err.startswith("python -m profiling.aot: ") and err.count("\n") == 1
  assert re.search(message, err), err


@pytest.mark.tpu_compiler
def test_the_blocks_alone(tiny, tmp_path, capsys):
  assert aot.main([*flags(tmp_path, TINY), "--blocks"]) == 0
  report = json.loads((tmp_path / "report.json").read_text())
  assert report["blocks"] and not tiny[1]["blocks"]
  alone, whole = (r["simulated"]["stretches"] for r in (report, tiny[1]))
  # Two blocks leave no loop; what is joined over data is there all the same.
  assert {a for s in alone for a in s["sends_s"]} >= {"data", "model"}
  assert {a for s in whole for a in s["sends_s"]} >= {"data", "model"}
  assert (
    report["simulated"]["step_time_s"] < tiny[1]["simulated"]["step_time_s"]
  )
  capsys.readouterr()
  folder = str(tmp_path)
  # A mesh of other slices' dims is refused before anything is compiled.
  given = flags(folder, TINY, topology="v5e:4x4", mesh="8,2")
  assert aot.main([*given, "--whole_dims"]) == 2
  assert "slice 0 has 4x4x1 chips, got model=2" in capsys.readouterr().err
  for given in (flags(folder, TINY, baseline="compiler"), flags(folder, OP)):
    assert aot.main([*given, "--blocks"]) == 2
    assert "--blocks must not be given beside" in capsys.readouterr().err


def test_without_libtpu(tmp_path, capsys, monkeypatch):
  version = metadata.version

  def missing(name):
    if name == "libtpu":
      raise metadata.PackageNotFoundError(name)
    return version(name)

  monkeypatch.setattr(metadata, "version", missing)
  assert aot.main(flags(tmp_path, TINY)) == 2
  assert "the TPU compiler must be here: the libtpu" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.tpu_compiler
def test_flops_are_the_compilers():
  pytest.importorskip("libtpu")
  cfg = get_config("vit_b", depth=1, classes=10)  # a loop's body counts once
  mesh = aot_programs.mesh_on("v5e:2x2", 4, 1)
  optimizer, batch = make_optimizer(VIT_22B), 256
  step = train_step.make_train_step(
    cfg, optimizer, mesh, compute_dtype=jnp.bfloat16
  )
  compiled = step.lower(
    train_step.abstract_state(cfg, optimizer, mesh),
    train_step.abstract_batch(cfg, mesh, batch),
  ).compile()
  # Nobody needs the gradient of the images, which we count.
  unused = 2 * cfg.tokens * cfg.patch_dim * cfg.width
  want = batch * (flops.vit_flops_per_image(cfg) - unused) / mesh.size
  assert compiled.cost_analysis()["flops"] == pytest.approx(want, rel=0.01)


@pytest.mark.long
@pytest.mark.tpu_compiler
def test_vit_22b_on_1024_chips(tmp_path):
  pytest.importorskip("libtpu")
  report = run(
    tmp_path,
    TINY,
    model="vit_22b",
    depth=None,
    topology="v4:8x8x16",
    mesh="256,4",
    batch="65536",
  )
  assert report["depth"] == 48
  assert len(json.loads((tmp_path / "devices.json").read_text())) == 1024
  assert report["fits"]
  assert 0.3 < report["simulated"]["mfu"] < 1
