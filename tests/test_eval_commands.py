"""The evaluation commands as users meet them: whole runs and bad requests."""

import json
import os

import pytest

from examples.eval import (
  command,
  demo,
  distill,
  fewshot,
  finetune,
  head2toe,
  lbfgs_probe,
  linear_probe,
  lit,
  ood,
  retrieval,
  zero_shot,
)

COMMANDS = {
  module.__name__.rpartition(".")[2]: module
  for module in (
    distill,
    fewshot,
    finetune,
    head2toe,
    lbfgs_probe,
    linear_probe,
    lit,
    ood,
    retrieval,
    zero_shot,
  )
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """An empty folder to run in: demos keep their models under `runs/`."""
  before = os.getcwd()
  path = tmp_path_factory.mktemp("here")
  os.chdir(path)
  yield path
  os.chdir(before)


def run(name, *flags):
  return COMMANDS[name].main([name, *flags])


def ours(folder, name):
  """The numbers of a command's report; its plot is there too."""
  path = folder / "runs" / f"eval-{name}" / f"{name}.json"
  assert path.with_suffix(".png").stat().st_size > 0
  return json.loads(path.read_text())["ours"]


def test_fewshot_is_above_raw_pixels(folder, capsys, monkeypatch):
  monkeypatch.setattr(demo, "_STEPS", 150)
  monkeypatch.setattr(demo, "_DRAWN", 1024)
  assert run("fewshot", "--demo", "--mesh=8,1", "--shots=1,5") == 0
  found = ours(folder, "fewshot")
  for k in (1, 5):
    assert found[f"{k}-shot [%]"] > found[f"{k}-shot of raw pixels [%]"] + 5
  assert found["5-shot [%]"] > found["1-shot [%]"]
  said = capsys.readouterr().out
  assert "lost (Figure 12)" in said and "settings that differ" in said
  # k larger than a class, on features that are kept by now.
  assert run("fewshot", "--demo", "--mesh=8,1", "--shots=100") == 2
  assert "every class must have 100 images, class 0 has" in (
    capsys.readouterr().err
  )


@pytest.mark.long
@pytest.mark.parametrize("name", ["linear_probe", "lbfgs_probe", "head2toe"])
def test_probes_are_above_raw_pixels(folder, name):
  assert run(name, "--demo") == 0
  found = ours(folder, name)
  assert found["top-1 [%]"] > found["top-1 of raw pixels [%]"] + 10


@pytest.mark.long
def test_head2toe_selects_by_group_lasso(folder):
  assert run("head2toe", "--demo", "--keep=0.1") == 0
  found = ours(folder, "head2toe")
  assert found["features"] == int(found["features before selection"] * 0.1)
  assert found["top-1 [%]"] > found["top-1 of raw pixels [%]"]


@pytest.mark.long
def test_text_reaches_unseen_combinations(folder):
  assert run("lit", "--demo") == 0
  assert run("zero_shot", "--demo") == 0
  assert ours(folder, "zero_shot")["top-1 [%]"] > 90
  assert run("retrieval", "--demo") == 0
  found = ours(folder, "retrieval")
  assert found["image to text R@1 [%]"] > 20 * found["by chance at 1 [%]"]


@pytest.mark.long
def test_a_teacher_helps(folder):
  assert run("distill", "--demo") == 0
  found = ours(folder, "distill")
  alone = found["same student without a teacher [%]"]
  assert found["student, top-1 [%]"] > alone + 1


@pytest.mark.long
def test_finetuning_is_above_the_probe(folder):
  assert run("finetune", "--demo") == 0
  found = ours(folder, "finetune")
  before = found["top-1 of a linear probe before [%]"]
  assert found["top-1 [%]"] > before - 2
  # What it wrote is a checkpoint for the others.
  model = folder / "runs" / "eval-finetune" / "model.safetensors"
  flags = (f"--checkpoint={model}", "--data=shapes:unseen", "--shots=5")
  assert run("fewshot", *flags) == 0


@pytest.mark.long
def test_robustness_of_the_demo(folder):
  assert run("ood", "--demo") == 0
  found = ours(folder, "ood")
  assert found["noise [%]"] < found["clean [%]"]
  assert found["even digits, among themselves [%]"] >= found["clean [%]"] - 2
  assert "effective robustness on noise [%]" in found


@pytest.mark.parametrize(
  ("name", "flags", "message"),
  [
    ("fewshot", (), "--data must name a data set, as folder:PATH"),
    ("linear_probe", ("--data=digits",), "--checkpoint must name a run's"),
    ("fewshot", ("--demo", "--data=x"), "--demo brings its own"),
    ("fewshot", ("--demo", "--shots=one"), "--shots=one: invalid literal"),
    ("head2toe", ("--demo", "--keep=0"), r"--keep=0.0: fraction must be in"),
    ("lbfgs_probe", ("--demo", "--l2=-1"), "--l2=-1: l2 must be at least 0"),
    ("fewshot", ("--demo", "--mesh=3,2"), "--mesh=3,2: data x model must be"),
    ("fewshot", ("--demo", "--mesh=a,b"), "--mesh=a,b: must be two whole"),
    ("fewshot", ("--nothing",), "Unknown command line flag 'nothing'"),
    ("fewshot", ("rest",), "flags look like --name=value, got 'rest'"),
    (
      "linear_probe",
      ("--data=folder:/nowhere", "--checkpoint=x"),
      "--data=folder:/nowhere: ",
    ),
    (
      "linear_probe",
      ("--data=digits", "--checkpoint=nowhere"),
      "--checkpoint: nowhere: must be a folder, a .npz or a",
    ),
    ("ood", (), "--sets must name a data set, as imagenet_a:PATH"),
    (
      "ood",
      ("--sets=imagenet_a:/nowhere",),
      "--sets=imagenet_a:/nowhere: imagenet_a must be in /nowhere, which is",
    ),
    ("ood", ("--sets=x:y",), "--sets=x:y: must be one of imagenet, real"),
    ("lit", ("--data=webli:x",), "--data=webli:x: captions of 'webli:x'"),
    ("retrieval", ("--data=coco:/no",), "captions_val2017.json, which is not"),
  ],
)
def test_bad_requests_are_one_clear_line(folder, capsys, name, flags, message):
  assert run(name, *flags) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ") and said.count("\n") == 1
  assert message in said


def test_help_shows_the_flags(capsys):
  assert run("fewshot", "--help") == 0
  said = capsys.readouterr().out
  assert "python -m examples.eval.fewshot --demo" in said and "--shots" in said


def test_a_report_shows_the_papers_number_and_what_differs(tmp_path, capsys):
  record = command.report(
    tmp_path,
    "probe",
    {"top-1 [%]": 12.3456, "raw [%]": 5.0},
    {"top-1 [%]": 89.5, "raw [%]": "baseline"},
    {"width": (64, 6144), "image": (224, 224)},
  )
  said = capsys.readouterr().out.splitlines()
  assert said[1].split() == ["top-1", "[%]", "12.35", "89.5"]
  assert said[2].split() == ["raw", "[%]", "5", "-", "baseline"]
  assert "  width: 64; the paper: 6144" in said
  assert not any("image:" in line for line in said)
  assert json.loads((tmp_path / "probe.json").read_text()) == json.loads(
    json.dumps(record)
  )
  assert (tmp_path / "probe.png").stat().st_size > 0
