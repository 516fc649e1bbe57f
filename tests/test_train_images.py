"""The trainer on a folder of images, from its first run to fine-tuning."""

import json

import numpy as np
import pytest
from PIL import Image
from train_runs import metrics

from examples import evaluate, train

pytestmark = pytest.mark.long
SMALL = [*("--width=16", "--mlp=32", "--depth=1", "--batch=16", "--mesh=8,1")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Forty images of two classes, which differ in their colour."""
  root = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  for name, colour in (("blue", (20, 20, 220)), ("red", (220, 20, 20))):
    (root / name).mkdir()
    for i in range(20):
      noise = rng.integers(-20, 20, (40, 50, 3))
      pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(root / name / f"{i}.png")
  return root


def test_a_folder_is_learnt_and_tuned(photos, compiled_once, tmp_path, capfd):
  first = tmp_path / "first"
  flags = ["--preset=images", f"--data=folder:{photos}", "--steps=60"]
  flags += ["--lr=0.01", "--eval_every=60", f"--workdir={first}"]
  assert train.main(["train", *SMALL, *flags]) == 0
  (record,) = metrics(first, "eval/")
  assert record["eval/accuracy"] == 1
  config = json.loads((first / "config.json").read_text())
  assert config["model"]["classes"] == 2
  assert config["model"]["head_bias_init"] == 0  # one class in two

  # Larger images, another task with the same classes' number: the head stays.
  tuned = tmp_path / "tuned"
  flags = ["--preset=finetune", f"--init_from={first}", "--steps=4"]
  flags += [f"--data=folder:{photos}", "--set", "model.image=80"]
  flags += ["--batch=16", "--mesh=8,1", "--lr=0.001", f"--workdir={tuned}"]
  flags += ["--set", 'optimizer.groups=[{"pattern":"blocks/.*","freeze":true}]']
  assert train.main(["train", *flags]) == 0
  (record,) = metrics(tuned, "eval/")
  assert record["eval/accuracy"] == 1  # what was learnt is still there
  capfd.readouterr()
  assert evaluate.main(["evaluate", f"--workdir={tuned}"]) == 0
  assert json.loads(capfd.readouterr().out)["accuracy"] == 1


def test_other_classes_are_refused(photos, compiled_once, tmp_path, capfd):
  run = tmp_path / "run"
  flags = [f"--data=folder:{photos}", "--preset=images", "--steps=1"]
  assert train.main(["train", *SMALL, *flags, f"--workdir={run}"]) == 0
  (photos / "green").mkdir()
  for i in range(2):
    Image.new("RGB", (40, 40), (20, 220, 20)).save(photos / f"green/{i}.png")
  capfd.readouterr()
  assert train.main(["train", "--resume", f"--workdir={run}"]) == 2
  assert "that run has classes=2, got classes=3" in capfd.readouterr().err
  assert evaluate.main(["evaluate", f"--workdir={run}"]) == 2
  assert "must have 2 classes" in capfd.readouterr().err
