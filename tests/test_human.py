"""Counts and kappas of the people in bethgelab/model-vs-human."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from examples.eval.metrics import human
from examples.eval.metrics.sixteen_classes import SIXTEEN_CLASSES

DATA = Path(__file__).parent / "data"
CUE_CONFLICT = DATA / "cue_conflict_subjects.csv.gz"
# How often each of the ten people named the shape and the texture.
PEOPLE = [
  (829, 33), (907, 54), (1006, 34), (727, 64), (1017, 38),
  (976, 24), (906, 57), (928, 41), (1031, 14), (909, 39),
]  # fmt: skip


@pytest.fixture(scope="module")
def people():
  return human.read_answers(CUE_CONFLICT)


def of_bits(subject, bits):
  """Answers that are right where the bits are set."""
  rows = [
    row(f"{i:05d}.png", "right" if bit else "na", "right")
    for i, bit in enumerate(bits)
  ]
  return human.from_rows(subject, rows)


def row(name, response, category, condition="0"):
  return {
    "object_response": response,
    "category": category,
    "condition": condition,
    "imagename": name,
  }


def crowd(experiment):
  stored = json.loads((DATA / "human_right.json").read_text())[experiment]
  for i, text in enumerate(stored["right"], 1):
    packed = np.frombuffer(bytes.fromhex(text), np.uint8)
    bits = np.unpackbits(packed, count=stored["images"])
    yield of_bits(f"subject-{i:02d}", bits)


def test_two_people_are_read(people):
  assert [answers.subject for answers in people] == ["subject-01", "subject-02"]
  assert [len(answers.images) for answers in people] == [1280, 1280]
  assert (people[0].categories == people[0].textures).sum() == 80


@pytest.mark.parametrize(("person", "bias"), [(0, 0.961717), (1, 0.943809)])
def test_shape_bias_of_people(people, person, bias):
  got = human.shape_bias(people[person])
  assert (got["shape"], got["texture"]) == PEOPLE[person]
  assert got["shape_bias"] == pytest.approx(bias, abs=5e-7)


@pytest.mark.parametrize(
  ("person", "bias"), [(2, 0.967308), (3, 0.919090), (8, 0.986603)]
)
def test_shape_bias_of_others_by_their_counts(person, bias):
  got = human.shape_bias(conflict(*PEOPLE[person]))
  assert got["shape_bias"] == pytest.approx(bias, abs=5e-7)


def conflict(shape, textured, neither=7, agreeing=80):
  named = ["cat"] * shape + ["dog"] * textured + ["na"] * neither
  rows = [row(f"cat{i}-dog1.png", said, "cat") for i, said in enumerate(named)]
  # Where shape and texture agree an answer tells nothing.
  rows += [row(f"cat{i}-cat2.png", "cat", "cat") for i in range(agreeing)]
  return human.from_rows("someone", rows)


def test_shape_bias_of_the_crowd():
  each = [human.shape_bias(conflict(*n))["shape_bias"] for n in PEOPLE]
  assert np.mean(each) == pytest.approx(0.957587, abs=5e-7)
  pooled = human.shape_bias(conflict(*np.sum(PEOPLE, axis=0)))
  assert pooled["shape_bias"] == pytest.approx(0.958688, abs=5e-7)


def test_error_consistency_of_two_people(people):
  got = human.error_consistency(*people)
  want = {"expected": 0.601610, "observed": 0.743750, "kappa": 0.356786}
  assert got == pytest.approx(want, abs=5e-7)


@pytest.mark.parametrize(
  ("experiment", "expected", "observed", "kappa", "mean"),
  [
    ("cue_conflict", 0.601610, 0.743750, 0.356786, 0.331052),
    ("sketch", 0.905950, 0.956250, 0.534822, 0.369620),
    ("edge", 0.844531, 0.881250, 0.236181, 0.318436),
    ("silhouette", 0.593750, 0.806250, 0.523077, 0.475709),
  ],
)
def test_error_consistency_of_crowds(
  experiment, expected, observed, kappa, mean
):
  humans = list(crowd(experiment))
  got = human.error_consistency(humans[0], humans[1])
  want = {"expected": expected, "observed": observed, "kappa": kappa}
  assert got == pytest.approx(want, abs=1.5e-6)
  assert human.human_agreement(humans) == pytest.approx(mean, abs=1.5e-6)
  # The mean over humans of each one's mean over the others is the same.
  each = [human.mean_error_consistency(h, humans)["kappa"] for h in humans]
  assert np.mean(each) == pytest.approx(mean, abs=1.5e-6)


# Of the ten pairs of five people: images that both had right, the first alone,
# the second alone, and neither. (Its images carry ImageNet's terms.)
STYLIZED = [
  (258, 154, 60, 328), (263, 149, 59, 329), (324, 88, 99, 289),
  (321, 91, 89, 299), (222, 96, 100, 382), (272, 46, 151, 331),
  (262, 56, 148, 334), (267, 55, 156, 322), (260, 62, 150, 328),
  (322, 101, 88, 289),
]  # fmt: skip


def test_error_consistency_of_stylized_images():
  kappas = []
  for counts in STYLIZED:
    one, other = ([1, 1, 0, 0], [1, 0, 1, 0])
    pair = [
      of_bits(i, np.repeat(b, counts)) for i, b in enumerate((one, other))
    ]
    kappas.append(human.error_consistency(*pair))
  want = {"expected": 0.496925, "observed": 0.732500, "kappa": 0.468270}
  assert kappas[0] == pytest.approx(want, abs=5e-7)
  mean = np.mean([k["kappa"] for k in kappas])
  assert mean == pytest.approx(0.500582, abs=5e-7)


def test_agreeing_always_is_one_and_chance_zero():
  same = of_bits("a", [1, 1, 1])
  assert human.error_consistency(same, same)["kappa"] == 1.0
  by_chance = of_bits("a", [1, 1, 0, 0]), of_bits("b", [1, 0, 1, 0])
  assert human.error_consistency(*by_chance)["kappa"] == 0.0


def test_means_go_over_humans_then_conditions():
  def subject(name, *conditions):
    rows = [
      row(f"{i}.png", "x" if bit else "na", "x", condition)
      for condition, bits in enumerate(conditions)
      for i, bit in enumerate(bits)
    ]
    return human.from_rows(name, rows)

  model = subject("model", [1, 1, 0, 0], [1, 1, 1, 0])
  humans = [
    subject("a", [1, 1, 0, 0], [1, 1, 1, 0]),
    subject("b", [1, 0, 1, 0], [1, 1, 1, 0]),
  ]
  got = human.mean_error_consistency(model, humans)
  assert got == {"kappa": 0.75, "observed": 0.875}
  model = subject("model", [1, 1, 1, 0], [1, 1, 1, 1])
  # Gaps of 1/4 in each condition to both humans.
  assert human.accuracy_difference(model, humans) == pytest.approx(1 / 16)


def test_categories_average_their_classes():
  probs = np.array([[0.3, 0.1, 0.1, 0.5]])
  got = human.category_probabilities(probs, {"a": [0, 3], "b": [1, 2]})
  np.testing.assert_allclose(got, [[0.4, 0.1]])


def test_sixteen_categories_of_the_thousand_classes():
  assert list(SIXTEEN_CLASSES) == sorted(SIXTEEN_CLASSES)
  assert len(SIXTEEN_CLASSES) == 16
  members = list(itertools.chain(*SIXTEEN_CLASSES.values()))
  assert len(members) == len(set(members)) == 207
  assert {name: len(SIXTEEN_CLASSES[name]) for name in ("dog", "bird")} == {
    "dog": 109,
    "bird": 49,
  }
  one_hot = np.eye(1000)[[404, 499, 268]]
  top = human.category_probabilities(one_hot, SIXTEEN_CLASSES).argmax(axis=1)
  assert [list(SIXTEEN_CLASSES)[i] for i in top] == ["airplane", "knife", "dog"]


def test_written_answers_are_read_again(tmp_path, people):
  path = tmp_path / "model.csv"
  rows = [row("cat1-dog2.png", "cat", "cat"), row("dog1-cat2.png", "na", "dog")]
  human.write_answers(path, "model", rows)
  (answers,) = human.read_answers(path)
  assert answers.subject == "model"
  assert answers.images.tolist() == ["cat1-dog2.png", "dog1-cat2.png"]
  assert answers.right.tolist() == [True, False]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("subj,category\na,b\n", "object_response, condition, imagename missing"),
    (",".join(human.COLUMNS) + "\n", "must have rows, got none"),
    (
      ",".join(human.COLUMNS) + "\na,cat,cat,0,x.png\na,cat\n",
      "lines cut short: row 3",
    ),
    (
      ",".join(human.COLUMNS) + "\n" + "a,cat,cat,0,1_x.png\n" * 2,
      "a must answer each image once: not so in row x.png",
    ),
  ],
)
def test_bad_files_are_named(tmp_path, text, message):
  path = tmp_path / "answers.csv"
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    human.read_answers(path)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda one: human.error_consistency(one, of_bits("b", [1, 1])),
      "must have the same images: only a has row 00002.png",
    ),
    (
      lambda one: human.accuracy_difference(one, [of_bits("b", [1] * 4)]),
      "only b has row 00003.png",
    ),
    (
      human.shape_bias,
      "named SHAPE1-TEXTURE2: not so in rows 00000.png, 00001.png, 00002.png",
    ),
    (
      lambda one: human.shape_bias(conflict(0, 0)),
      "name the shape or the texture of some image, got neither in 7",
    ),
    (
      lambda one: human.mean_error_consistency(one, [one]),
      "a must be compared with another human",
    ),
    (lambda one: human.human_agreement([one]), "at least two, got 1"),
    (
      lambda one: human.category_probabilities([[0.5, 0.5]], {"c": [2]}),
      "classes from 0 to 1: not so in c",
    ),
  ],
)
def test_bad_answers_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(of_bits("a", [1, 0, 1]))
