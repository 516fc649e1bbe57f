"""Human alignment: `python -m examples.eval.human_alignment --demo`.

Shape bias, error consistency and accuracy difference between models and people
(paper, section 5.2 and Appendix J). `--answers=PATH` has the CSVs of
bethgelab/model-vs-human, `PATH/EXPERIMENT/*.csv` or `PATH/*.csv`: subjects
named "subject-..." are people, the others models. `--stimuli=PATH` with
`CATEGORY/image` lets the model of `--checkpoint`, of the 1,000 ImageNet
classes, answer too, and writes its CSV. `--predictions=FILE.npz` brings its
"probs" [N, 1000] and "names" [N], CATEGORY/image, instead.

The demo has digits made of small digits for cue-conflict images. No people
answered to those: a nearest-neighbour rule and logistic regression on pixels
stand in for them. Half a minute on two cores.
"""

import sys
from pathlib import Path

from absl import flags

from examples.eval import command
from examples.usage import UsageError, blame

_DIGITS = (
  "zero", "one", "two", "three", "four", "five", "six", "seven", "eight",
  "nine",
)  # fmt: skip
_PEOPLE = "subject"


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


def define(values: flags.FlagValues) -> None:
  """Adds the flags of this command."""
  options = {"flag_values": values}
  flags.DEFINE_string("answers", None, "folder of CSVs", **options)
  flags.DEFINE_string("stimuli", None, "CATEGORY/image to show", **options)
  flags.DEFINE_string("predictions", None, "an .npz of probs, names", **options)
  flags.DEFINE_string("experiment", "cue-conflict", "of --stimuli", **options)
  flags.DEFINE_string("model_name", "model", "of the model's CSV", **options)
  flags.DEFINE_integer("count", 400, "images of the demo", 20, **options)


def evaluate(given) -> dict:
  """Runs the evaluation; returns what `command.report` does."""
  if not (given.demo or given.answers):
    raise UsageError("--answers must name a folder of CSVs; --demo needs none")
  out = command.out_folder(given, "human_alignment")
  if given.demo:
    experiments = {"cue-conflict": _demo_answers(given, out)}
  else:
    experiments = _read(Path(given.answers))
  if given.stimuli or given.predictions:
    with blame("--predictions" if given.predictions else "--stimuli"):
      answers = _model_answers(given, out)
    experiments.setdefault(given.experiment, []).append(answers)
  ours, bias = {}, {}
  with blame("--demo" if given.demo else f"--answers={given.answers}"):
    for experiment, subjects in experiments.items():
      found, biases = _scores(experiment, subjects)
      ours |= {f"{experiment}/{name}": value for name, value in found.items()}
      bias |= biases
  if not ours:
    raise UsageError("--answers must have two subjects of one experiment")
  paper = {}
  for name in ours:
    if name.endswith("shape_bias_people"):
      paper[name] = 0.96
    elif "shape_bias" in name and "subject" not in name:
      paper[name] = "0.87 at 384 pixels"
    elif name.endswith("error_consistency_model"):
      paper[name] = "0.258 at 384, over 17 experiments (its toolbox's table)"
    elif name.endswith("accuracy_difference_model"):
      paper[name] = "0.018 at 384, over 17 experiments (its toolbox's table)"
  who = "two pixel classifiers" if given.demo else given.answers
  return command.report(
    out,
    "human_alignment",
    ours,
    paper,
    {
      "images": (
        "digits made of digits" if given.demo else ", ".join(experiments),
        "17 experiments of model-vs-human",
      ),
      "people": (who, "model-vs-human's"),
      "categories": ("10" if given.demo else "16", "16"),
    },
    figure=_figure(bias) if bias else None,
  )


def _read(root: Path) -> dict:
  """Answers by experiment."""
  from examples.eval.metrics.human import read_answers

  with blame(f"--answers={root}"):
    if not root.is_dir():
      raise ValueError("is not a folder")
    paths = sorted([*root.glob("*.csv*"), *root.glob("*/*.csv*")])
    if not paths:
      raise ValueError("has no CSV")
    found = {}
    for path in paths:
      inside = path.parent != root
      experiment = path.parent.name if inside else path.name.split("_")[0]
      found.setdefault(experiment, []).extend(read_answers(path))
    return found


def _scores(experiment, subjects):
  """Numbers by name, and the shape bias of everybody in cue-conflict."""
  import numpy as np

  from examples.eval.metrics import human

  people = [s for s in subjects if s.subject.startswith(_PEOPLE)]
  models = [s for s in subjects if s not in people]
  found, bias = {}, {}
  if experiment == "cue-conflict":
    counts = {s.subject: human.shape_bias(s) for s in subjects}
    bias = {name: count["shape_bias"] for name, count in counts.items()}
    if people:
      found["shape_bias_people"] = float(
        np.mean([bias[s.subject] for s in people])
      )
    found |= {f"shape_bias_{m.subject}": bias[m.subject] for m in models}
  if len(people) > 1:
    found["error_consistency_people"] = human.human_agreement(people)
  for model in models if people else ():
    means = human.mean_error_consistency(model, people)
    found |= {
      f"error_consistency_{model.subject}": means["kappa"],
      f"observed_consistency_{model.subject}": means["observed"],
      f"accuracy_difference_{model.subject}": human.accuracy_difference(
        model, people
      ),
    }
  for subject in subjects:
    found[f"accuracy_{subject.subject}"] = float(subject.right.mean())
  return found, bias


def _model_answers(given, out):
  """The model's answers to `--stimuli`, or from its probabilities."""
  import numpy as np

  from examples.eval.arrays import read_npz
  from examples.eval.metrics.human import category_probabilities
  from examples.eval.metrics.sixteen_classes import SIXTEEN_CLASSES
  from examples.eval.predict import open_classes, open_model

  if given.predictions:
    probs, names = read_npz(given.predictions, "probs", "names")
    names = names.tolist()
  else:
    source = open_classes(given.stimuli)
    model = open_model(given, out)
    probs, _ = model.probabilities(source)
    names = [source.name(i) for i in range(len(source))]
  if len(probs) != len(names):
    raise ValueError(
      f"every image must have probabilities, got {len(probs)} for {len(names)}"
    )
  groups = category_probabilities(probs, SIXTEEN_CLASSES)
  said = np.array(list(SIXTEEN_CLASSES))[groups.argmax(axis=1)]
  return _written(given.model_name, out, names, said)


def _written(subject, out, names, said):
  """Writes answers to images named CATEGORY/image, and returns them."""
  from examples.eval.metrics.human import read_answers, write_answers

  rows = [
    {
      "object_response": answer,
      "category": name.split("/")[0],
      "condition": "0",
      "imagename": name.split("/")[-1],
    }
    for name, answer in zip(names, said, strict=True)
  ]
  path = out / f"{subject}.csv"
  write_answers(path, subject, rows)
  (answers,) = read_answers(path)
  return answers


def _demo_answers(given, out):
  """Answers of the demo's ViT and of two pixel classifiers."""
  import numpy as np
  from sklearn.linear_model import LogisticRegression
  from sklearn.neighbors import KNeighborsClassifier

  from examples.data import digits
  from examples.eval.predict import Images, open_model

  model = open_model(given, out)
  scans = digits.load("val")
  rng = np.random.default_rng(given.seed)
  images, names = [], []
  for i in range(given.count):
    large, small = rng.integers(len(scans), size=2)
    images.append(
      digit_of_digits(scans.scans[large], scans.scans[small], model.cfg.image)
    )
    shape, texture = (_DIGITS[scans.labels[k]] for k in (large, small))
    names.append(f"{shape}/{shape}{i}-{texture}{small}.png")
  labels = [_DIGITS.index(name.split("/")[0]) for name in names]
  source = Images(images, labels, _DIGITS)
  probs, _ = model.probabilities(source)
  answers = [_written("model", out, names, np.array(_DIGITS)[probs.argmax(1)])]

  train = digits.load("train")
  drawn = [digits.render(scan, model.cfg.image).ravel() for scan in train.scans]
  pixels = np.stack([image.ravel() for image in images])
  for number, rule in enumerate(
    (KNeighborsClassifier(5), LogisticRegression(max_iter=300)), 1
  ):
    said = rule.fit(np.stack(drawn), train.labels).predict(pixels)
    name = f"{_PEOPLE}-{number:02d}"
    answers.append(_written(name, out, names, np.array(_DIGITS)[said]))
  return answers


def digit_of_digits(large, small, size: int):
  """Draws a large digit whose ink is small digits, `[size, size, 1]`.

  Args:
    large, small: scans `[8, 8]` in [-1, 1].
    size: of the image.
  """
  import numpy as np
  from PIL import Image

  ink = np.kron((large + 1) / 2, np.ones((8, 8)))
  ink = ink * (0.35 + 0.65 * np.tile((small + 1) / 2, (8, 8)))
  image = Image.fromarray((2 * ink - 1).astype(np.float32))
  return np.asarray(image.resize((size, size), Image.Resampling.BOX))[..., None]


def _figure(bias):
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6, 1.5 + 0.3 * len(bias)), layout="constrained")
  axis = figure.subplots()
  axis.barh(range(len(bias)), list(bias.values()))
  axis.set_yticks(range(len(bias)), list(bias))
  axis.axvline(0.96, color="k", linestyle=":", label="people, in the paper")
  axis.axvline(0.87, color="r", linestyle=":", label="ViT-22B-384")
  axis.set(xlim=(0, 1), xlabel="shape bias")
  axis.legend()
  return figure


if __name__ == "__main__":
  sys.exit(main(sys.argv))
