"""Do models decide, and err, as people do: model-vs-human answers.

Answers are CSV files in the layout of bethgelab/model-vs-human (Geirhos et al.
2021), one row a trial, whose definitions these are (`plotting/analyses.py`).
"""

import csv
import dataclasses
import gzip
import itertools
from pathlib import Path

import numpy as np

from examples.eval.metrics.rows import class_probabilities, named

COLUMNS = ("subj", "object_response", "category", "condition", "imagename")


@dataclasses.dataclass(frozen=True)
class Answers:
  """What one subject answered, one entry a trial, `[N]` each.

  Attributes:
    subject: its name.
    responses: the category answered; "na" for none, which is wrong.
    categories: the right one.
    conditions: of the stimulus, as its contrast.
    images: ids that are the same for every subject.
    textures: the category of the texture in a cue-conflict image, "" in
      others.
  """

  subject: str
  responses: np.ndarray
  categories: np.ndarray
  conditions: np.ndarray
  images: np.ndarray
  textures: np.ndarray

  @property
  def right(self) -> np.ndarray:
    """Whether each answer is the right one."""
    return self.responses == self.categories

  def only(self, condition: str) -> "Answers":
    """The trials of one condition."""
    keep = self.conditions == condition
    columns = {
      field.name: getattr(self, field.name)[keep]
      for field in dataclasses.fields(self)
      if field.name != "subject"
    }
    return Answers(self.subject, **columns)


def read_answers(path: Path) -> list[Answers]:
  """Reads a CSV of answers, gzipped or not; one `Answers` a subject.

  Args:
    path: with the columns `COLUMNS`, and others, which are not read.

  Raises:
    ValueError: if a column is missing, there are no rows, or naming the lines
      that are cut short or repeat an image of their subject.
  """
  opened = gzip.open if Path(path).suffix == ".gz" else open
  with opened(path, "rt", newline="") as file:
    reader = csv.DictReader(file)
    missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
    if missing:
      raise ValueError(
        f"{path} must have the columns {', '.join(COLUMNS)}; "
        f"{', '.join(missing)} missing"
      )
    rows = list(reader)
  if not rows:
    raise ValueError(f"{path} must have rows, got none")
  short = np.array([any(row[c] is None for c in COLUMNS) for row in rows])
  if short.any():
    lines = np.flatnonzero(short) + 2  # the header is line 1
    raise ValueError(f"{path} has lines cut short: {named(lines)}")
  subjects = dict.fromkeys(row["subj"] for row in rows)
  return [
    from_rows(subject, [row for row in rows if row["subj"] == subject])
    for subject in subjects
  ]


def from_rows(subject: str, rows: list[dict]) -> Answers:
  """Makes the answers of one subject from rows with `COLUMNS`.

  Raises:
    ValueError: naming images that come twice in one condition.
  """
  images = [image_id(row["imagename"]) for row in rows]
  keys = [
    (row["condition"], image) for row, image in zip(rows, images, strict=True)
  ]
  seen, again = set(), []
  for i, key in enumerate(keys):
    if key in seen:
      again.append(i)
    seen.add(key)
  if again:
    raise ValueError(
      f"{subject} must answer each image once: not so in "
      f"{named(np.array(again), names=images)}"
    )
  return Answers(
    subject,
    responses=np.array([row["object_response"] for row in rows]),
    categories=np.array([row["category"] for row in rows]),
    conditions=np.array([row["condition"] for row in rows]),
    images=np.array(images),
    textures=np.array([texture(row["imagename"]) for row in rows]),
  )


def write_answers(path: Path, subject: str, rows: list[dict]) -> None:
  """Writes the answers of one subject in the public layout.

  Args:
    path: the CSV.
    subject: its name.
    rows: with `object_response`, `category`, `condition` and `imagename`.
  """
  head = ("subj", "session", "trial", "rt", *COLUMNS[1:])
  with open(path, "w", newline="") as file:
    writer = csv.DictWriter(file, head)
    writer.writeheader()
    for trial, row in enumerate(rows, 1):
      fixed = {"subj": subject, "session": 1, "trial": trial, "rt": "NaN"}
      writer.writerow(fixed | row)


def image_id(name: str) -> str:
  """Returns the part of an image's name that all subjects share.

  Example:
    >>> image_id("0001_s5n_s01_0_bird_00_bird3-bird2.png")
    'bird3-bird2.png'
    >>> image_id("0000_cl_s01_bw_boat_40_n02951358_5952.JPEG")
    'n02951358_5952.JPEG'
  """
  parts = name.split("_")
  if len(parts) > 1 and parts[-2].startswith("n0"):
    return "_".join(parts[-2:])
  return parts[-1]


def texture(name: str) -> str:
  """Returns the texture of a cue-conflict image, "" if it names none.

  Example:
    >>> texture("0003_s5n_s01_0_dog_00_dog10-bicycle1.png")
    'bicycle'
  """
  _, dash, last = image_id(name).split(".")[0].rpartition("-")
  return "".join(c for c in last if not c.isdigit()) if dash else ""


def shape_bias(answers: Answers) -> dict:
  """Returns how often shape wins over texture where one of the two is named.

      shape_bias = shape / (shape + texture)

  over the images whose shape and texture differ (Geirhos et al. 2019).

  Returns:
    `"shape"` and `"texture"`, counts, and `"shape_bias"`.

  Raises:
    ValueError: if no answer names either, or naming images without a texture.
  """
  bare = answers.textures == ""
  if bare.any():
    raise ValueError(
      "cue-conflict images must be named SHAPE1-TEXTURE2: not so in "
      f"{named(bare, names=answers.images)}"
    )
  conflict = answers.categories != answers.textures
  shape = int((answers.right & conflict).sum())
  other = answers.responses == answers.textures
  textured = int((other & conflict).sum())
  if not shape + textured:
    raise ValueError(
      f"{answers.subject} must name the shape or the texture of some image, "
      f"got neither in {int(conflict.sum())}"
    )
  return {
    "shape": shape,
    "texture": textured,
    "shape_bias": shape / (shape + textured),
  }


def error_consistency(one: Answers, other: Answers) -> dict[str, float]:
  """Returns Cohen's kappa of two subjects being right (Geirhos et al. 2020).

      kappa = (observed - expected) / (1 - expected),
      expected = p1 p2 + (1 - p1)(1 - p2)

  and 1 if they always agree. Trials are joined on the image.

  Returns:
    `"expected"`, `"observed"` and `"kappa"`.

  Raises:
    ValueError: naming the images that only one of the two has.
  """
  first, second = _joined(one, other)
  p, q = first.mean(), second.mean()
  expected = p * q + (1 - p) * (1 - q)
  observed = (first == second).mean()
  kappa = 1.0
  if observed < 1:
    kappa = (observed - expected) / (1 - expected)
  return {
    "expected": float(expected),
    "observed": float(observed),
    "kappa": float(kappa),
  }


def mean_error_consistency(
  subject: Answers, humans: list[Answers]
) -> dict[str, float]:
  """Returns a subject's agreement with people: over them, then conditions.

  Args:
    subject: a model, or one of the humans, who is not compared with himself.
    humans: at least one other.

  Returns:
    Means of `"kappa"` and of `"observed"`.

  Raises:
    ValueError: if there is no other human, or as in `error_consistency`.
  """
  others = [human for human in humans if human.subject != subject.subject]
  if not others:
    raise ValueError(f"{subject.subject} must be compared with another human")
  means = [
    [
      error_consistency(subject.only(condition), human.only(condition))
      for human in others
    ]
    for condition in np.unique(subject.conditions)
  ]
  return {
    name: float(np.mean([[r[name] for r in of] for of in means]))
    for name in ("kappa", "observed")
  }


def human_agreement(humans: list[Answers]) -> float:
  """Returns the mean kappa over all pairs of humans."""
  if len(humans) < 2:
    raise ValueError(f"humans must be at least two, got {len(humans)}")
  pairs = itertools.combinations(humans, 2)
  return float(np.mean([error_consistency(a, b)["kappa"] for a, b in pairs]))


def accuracy_difference(model: Answers, humans: list[Answers]) -> float:
  """Returns the mean squared accuracy gap over conditions and humans.

  Raises:
    ValueError: naming images that only one of them has.
  """
  gaps = []
  for condition in np.unique(model.conditions):
    for human in humans:
      a, b = _joined(model.only(condition), human.only(condition))
      gaps.append((a.mean() - b.mean()) ** 2)
  return float(np.mean(gaps))


def category_probabilities(probs, groups: dict[str, list[int]]) -> np.ndarray:
  """Returns the mean probability of each category's classes, `[N, G]`.

  The mean, not the sum, so that a category of many classes, as the dog with
  its 109 classes in ImageNet, is not preferred (Geirhos et al. 2018).

  Args:
    probs: `[N, K]` probabilities.
    groups: the classes of each category.

  Raises:
    ValueError: naming the categories whose classes are none of the K.
  """
  probs = class_probabilities(probs)
  classes = probs.shape[1]
  wrong = [
    name
    for name, members in groups.items()
    if not members or min(members) < 0 or max(members) >= classes
  ]
  if wrong:
    raise ValueError(
      f"categories must have classes from 0 to {classes - 1}: not so in "
      f"{', '.join(wrong)}"
    )
  means = [probs[:, members].mean(axis=1) for members in groups.values()]
  return np.stack(means, axis=1)


def _joined(one: Answers, other: Answers) -> tuple[np.ndarray, np.ndarray]:
  """Whether each is right, image by image."""
  for a, b in ((one, other), (other, one)):
    alone = ~np.isin(a.images, b.images)
    if alone.any():
      raise ValueError(
        f"{one.subject} and {other.subject} must have the same images: only "
        f"{a.subject} has {named(alone, names=a.images)}"
      )
  if not len(one.images):
    raise ValueError(f"{one.subject} must have trials, got none")
  return (
    one.right[np.argsort(one.images)],
    other.right[np.argsort(other.images)],
  )
