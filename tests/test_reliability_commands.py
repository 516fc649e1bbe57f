"""The commands of calibration, fairness, Plex, alignment and attribution."""

import dataclasses
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from examples.data import digits
from examples.eval.metrics import calibration, human
from examples.eval.metrics.sixteen_classes import SIXTEEN_CLASSES
from examples.presets import PRESETS

DATA = Path(__file__).parent / "data"
COMMANDS = (
  "calibration",
  "fairness",
  "plex",
  "human_alignment",
  "perceptual",
  "attribution",
)


def run(name, *flags):
  return importlib.import_module(f"examples.eval.{name}").main([name, *flags])


def result(out, name):
  assert (out / f"{name}.png").stat().st_size > 1000
  return json.loads((out / f"{name}.json").read_text())


@pytest.mark.parametrize("name", [*COMMANDS, "model_card"])
def test_help_says_how_to_run_it(name, capsys):
  assert run(name, "--help") == 0
  assert f"python -m examples.eval.{name}" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("name", "flags", "message"),
  [
    ("fairness", (), "--celeba must name CelebA's folder"),
    ("perceptual", (), "--bapps must name the folder 2afc/val"),
    ("human_alignment", (), "--answers must name a folder of CSVs"),
    ("model_card", (), "--checkpoint must name the folder of a run"),
    ("plex", (), "--checkpoint must name"),
    ("attribution", (), "--checkpoint must name"),
    ("calibration", (), "--checkpoint must name"),
    (
      "calibration",
      ("--demo", "--predictions=x.npz"),
      "--predictions needs no --demo",
    ),
    (
      "calibration",
      ("--predictions=nowhere.npz",),
      "--predictions=nowhere.npz: No such file",
    ),
    ("human_alignment", ("--answers=nowhere",), "is not a folder"),
    ("model_card", ("--checkpoint=nowhere",), "--checkpoint=nowhere"),
    ("plex", ("--variant=vast",), "should be one of"),
  ],
)
def test_what_is_missing_is_said_in_a_line(name, flags, message, capsys):
  assert run(name, *flags) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert message in error


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
  """Probabilities that are too sure: the logits are three times too large."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2000, 5))
  fair = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  labels = (fair.cumsum(axis=1) > rng.uniform(size=(2000, 1))).argmax(axis=1)
  probs = calibration.scale_temperature(fair, 3.0)
  path = tmp_path_factory.mktemp("predictions") / "sure.npz"
  np.savez(path, probs=probs, labels=labels)
  return path, probs, labels


def test_calibration_of_another_models_predictions(
  predictions, tmp_path, capsys
):
  path, probs, labels = predictions
  flags = f"--predictions={path}", f"--out={tmp_path}", "--seed=4"
  assert run("calibration", *flags) == 0
  ours = result(tmp_path, "calibration")["ours"]
  _, rest = calibration.fit_split(2000, seed=4)
  want = calibration.expected_calibration_error(probs[rest], labels[rest])
  assert ours["ece"] == pytest.approx(want)
  assert ours["ece_scaled"] < 0.3 * ours["ece"]
  # 400 images fit T = 3 with a standard error of 0.3.
  assert ours["temperature"] == pytest.approx(3, abs=1)
  said = capsys.readouterr().out
  assert "a point of Figure 9" in said
  assert "images: 1600; the paper: 40000" in said


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"probs": [[0.5, 0.5]]}, "must have probs, labels; labels missing"),
    (
      {"probs": [[0.5, 0.5], [2, 0]], "labels": [0, 1]},
      "must lie in [0, 1]: not so in row 1, where the first is 2",
    ),
    (
      {"probs": [[0.5, 0.5]] * 3, "labels": [0, 1, 7]},
      "labels must be classes from 0 to 1: not so in row 2",
    ),
    (
      {"probs": [[0.5, 0.5]], "labels": [0]},
      "both parts must have rows: 20 % of 1 rows are 0",
    ),
  ],
)
def test_bad_predictions_are_named(arrays, message, tmp_path, capsys):
  path = tmp_path / "bad.npz"
  np.savez(path, **arrays)
  assert run("calibration", f"--predictions={path}", f"--out={tmp_path}") == 2
  assert message in capsys.readouterr().err


def test_alignment_of_published_answers(tmp_path, capsys):
  """Two people, and a model that sees shapes two times out of three."""
  people = human.read_answers(DATA / "cue_conflict_subjects.csv.gz")
  names = [
    f"{category}/{image}"
    for category, image in zip(
      people[0].categories, people[0].images, strict=True
    )
  ]
  said = [
    people[0].textures[i] if i % 3 == 0 else people[0].categories[i]
    for i in range(len(names))
  ]
  probs = np.zeros((len(names), 1000))
  for row, category in zip(probs, said, strict=True):
    row[SIXTEEN_CLASSES[category]] = 0.001
  np.savez(tmp_path / "model.npz", probs=probs, names=names)
  folder = tmp_path / "answers" / "cue-conflict"
  folder.mkdir(parents=True)
  (folder / "people.csv.gz").symlink_to(DATA / "cue_conflict_subjects.csv.gz")
  flags = (
    f"--answers={folder.parent}",
    f"--predictions={tmp_path / 'model.npz'}",
    f"--out={tmp_path}",
  )
  assert run("human_alignment", *flags) == 0
  ours = result(tmp_path, "human_alignment")["ours"]
  key = "cue-conflict/{}".format
  assert ours[key("error_consistency_people")] == pytest.approx(
    0.356786, abs=5e-7
  )
  assert ours[key("shape_bias_people")] == pytest.approx(
    (0.961717 + 0.943809) / 2, abs=1e-6
  )
  conflict = people[0].categories != people[0].textures
  third = np.arange(1280) % 3 == 0
  want = (conflict & ~third).sum() / conflict.sum()
  assert ours[key("shape_bias_model")] == pytest.approx(want)
  (model,) = human.read_answers(tmp_path / "model.csv")
  assert model.responses.tolist() == said
  assert "0.87 at 384 pixels" in capsys.readouterr().out


def test_images_that_one_subject_lacks_are_named(tmp_path, capsys):
  head = ",".join(human.COLUMNS)
  rows = "{0},cat,cat,0,cat1-dog1.png\n{0},dog,cat,0,cat2-dog2.png\n".format
  text = f"{head}\n{rows('subject-01')}{rows('subject-02')}"
  (tmp_path / "cue-conflict_a.csv").write_text(
    text + "subject-02,cat,cat,0,cat3-dog3.png\n"
  )
  flags = f"--answers={tmp_path}", f"--out={tmp_path / 'out'}"
  assert run("human_alignment", *flags) == 2
  error = capsys.readouterr().err
  assert "only subject-02 has row cat3-dog3.png" in error
  assert f"--answers={tmp_path}" in error


def test_the_card_tells_what_the_run_knows(tmp_path, capsys):
  config = PRESETS["digits"]
  (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
  (tmp_path / "metrics.jsonl").write_text(
    '{"step": 100, "eval/accuracy": 0.5}\n'
    '{"step": 500, "eval/accuracy": 0.97}\n{"step": 6'
  )
  (tmp_path / "eval").mkdir()
  (tmp_path / "eval" / "calibration.json").write_text(
    json.dumps({"name": "calibration", "ours": {"ece": 0.02}, "paper": {}})
  )
  assert run("model_card", f"--checkpoint={tmp_path}") == 0
  text = (tmp_path / "model_card.md").read_text()
  assert f"# Model card: {config.name}" in text
  assert "4 layers of width 64, 4 heads, MLP 256; parallel blocks" in text
  assert "| held-out part: accuracy | 0.97 |" in text
  assert "| calibration: ece | 0.02 |" in text
  assert "500 steps of 128 images: 6.4e+04 images" in text
  assert text.count("To be filled in") >= 5
  for line in text.splitlines():
    assert not line.startswith("|") or line.count("|") == 3, line
  (tmp_path / "metrics.jsonl").write_text("{}\nnot json\n")
  assert run("model_card", f"--checkpoint={tmp_path}") == 2
  assert "metrics.jsonl line 2 is no record" in capsys.readouterr().err


def test_digits_of_digits_have_both():
  from examples.eval.human_alignment import digit_of_digits

  one, other = digits.load("val").scans[:2]
  image = digit_of_digits(one, other, 64)
  assert image.shape == (64, 64, 1)
  # At the size of a scan it is the large one, fainter.
  cells = image[..., 0].reshape(8, 8, 8, 8).mean(axis=(1, 3))
  assert np.corrcoef(cells.ravel(), one.ravel())[0, 1] > 0.999
  # A cell full of ink shows the small one.
  row, column = np.unravel_index(one.argmax(), one.shape)
  cell = image[8 * row :, 8 * column :][:8, :8, 0]
  assert np.corrcoef(cell.ravel(), other.ravel())[0, 1] > 0.999


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_the_demo_runs_from_end_to_end(name, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert run(name, "--demo", f"--out={tmp_path}") == 0
  record = result(tmp_path, name)
  assert all(math.isfinite(value) for value in record["ours"].values())
  assert "settings that differ" in capsys.readouterr().out
  check = {
    "calibration": lambda r: r["error"] < 0.2,
    "fairness": lambda r: (
      r["parity_debiased_on_the_fit"] <= 0.01 + 1e-9
      and r["parity_debiased"] < r["parity"]
    ),
    "plex": lambda r: r["plain_accuracy"] > 0.8 and r["plex_accuracy"] > 0.5,
    "human_alignment": lambda r: 0 <= r["cue-conflict/shape_bias_model"] <= 1,
    "perceptual": lambda r: r["score_trained"] > 50,
    "attribution": lambda r: r["largest_gap"] < 1e-3,
  }
  assert check[name](record["ours"])
