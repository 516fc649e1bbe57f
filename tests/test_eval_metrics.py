"""The metrics against hand vectors and published check values."""

import jax.numpy as jnp
import numpy as np
import pytest

from examples.eval.metrics import (
  classification,
  corruptions,
  distillation,
  effective_robustness,
  fewshot,
  head2toe,
  label_maps,
  retrieval,
  zero_shot,
)
from models.vit_config import get_config


def test_top1_counts_any_of_several_labels_and_no_unlabelled_image():
  logits = np.array(
    [[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.0, 0.1, 0.9], [0.9, 0.1, 0.0]]
  )
  labels = classification.multi_hot([[0, 2], [1, 2], 2, []], 3)
  assert classification.top1(logits, labels) == pytest.approx(2 / 3)
  # ReaL's unlabelled image does not count, whatever the model says of it.
  flipped = logits.copy()
  flipped[3] = flipped[3, ::-1]
  assert classification.top1(flipped, labels) == pytest.approx(2 / 3)
  padded = classification.top1(logits, labels, mask=np.array([1, 0, 1, 1]))
  assert padded == 1


def test_mean_class_accuracy_sees_the_tail():
  labels = classification.multi_hot([0, 0, 0, 1], 3)
  logits = np.eye(3)[[0, 0, 0, 0]]
  assert classification.top1(logits, labels) == 0.75
  assert classification.mean_class_accuracy(logits, labels) == 0.5


def test_label_sets_have_the_published_sizes():
  a, r, o = (label_maps.label_map(name) for name in label_maps.SETS)
  assert (len(a), len(r), len(o)) == (200, 200, 113)
  assert len(a.keys() & r.keys()) == 86  # not the same set
  assert label_maps.OBJECTNET_CLASSES == 313
  assert o["chair"] == (423, 559, 765)  # several of ImageNet's in one
  for groups in (a, r, o):
    flat = [v for group in groups.values() for v in group]
    assert len(set(flat)) == len(flat)
    assert max(flat) < label_maps.IMAGENET_CLASSES


def test_restrict_renormalises_over_the_groups():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((5, 1000)) * 3
  groups = list(label_maps.label_map("objectnet").values())
  p = label_maps.restrict(logits, groups)
  assert p.shape == (5, 113)
  np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
  raw = np.exp(logits)
  chair = list(label_maps.label_map("objectnet")).index("chair")
  want = raw[:, [423, 559, 765]].sum(1) / raw[:, sum(groups, ())].sum(1)
  np.testing.assert_allclose(p[:, chair], want, rtol=1e-12)


def test_folders_are_numbered_as_the_classes_are():
  names = [f"n{i:08}" for i in range(200)]
  assert label_maps.by_folder("imagenet_a", names[::-1]) == list(
    range(199, -1, -1)
  )
  objectnet = [*label_maps.label_map("objectnet"), "squeegee"]
  assert label_maps.by_folder("objectnet", objectnet) == [*range(113), -1]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: label_maps.label_map("imagenet_b"), "must be one of imagenet_a"),
    (lambda: label_maps.restrict(np.ones((1, 5)), [[7]]), "5, got class 7"),
    (
      lambda: label_maps.relabel([1, 5], [[0, 1]]),
      "does not know class 5 of image 1; it has 2 classes",
    ),
    (lambda: label_maps.by_folder("imagenet_r", ["n1"]), "200 class folders"),
    (lambda: label_maps.by_folder("objectnet", ["pen"]), "folder 'air|folder"),
    (lambda: classification.multi_hot([4], 3), "from 0 to 2, got"),
    (
      lambda: classification.top1(np.ones((1, 2)), np.ones((1, 3))),
      "the shape of logits",
    ),
    (
      lambda: classification.top1(np.ones((1, 2)), np.zeros((1, 2))),
      "no image has a label",
    ),
    (lambda: corruptions.corruption_errors({}, 0.5), "15 corruptions: missing"),
    (
      lambda: corruptions.corruption_errors(
        {name: [0.5] for name in corruptions.ALEXNET_ERRORS}, 0.5
      ),
      "must have 5 severities, got 1",
    ),
    (
      lambda: effective_robustness.fit_line([0.5], [0.5]),
      "two models or more",
    ),
    (
      lambda: effective_robustness.fit_line([0.5, 1.0], [0.5, 0.9]),
      "between 0 and 1",
    ),
    (lambda: fewshot.support([0, 1], 0, 0), "shots must be at least 1"),
    (
      lambda: fewshot.support([0, 0, 1], 2, 0, strict=True),
      "every class must have 2 images, class 1 has 1",
    ),
    (
      lambda: fewshot.choose_l2({"a": {1: 0.5}, "b": {2: 0.5}}),
      "the same strengths",
    ),
    (lambda: fewshot.Ridge(np.ones((2, 3)), [0], 2), "features and a label"),
    (lambda: retrieval.recall(np.ones((2, 3)), [0, 1]), "each of 3 texts"),
    (lambda: retrieval.recall(np.ones((2, 2)), [0, 0]), "must have a text"),
    (lambda: zero_shot.classifier(np.ones((2, 2)), [0, 2]), "class 1 has no"),
    (lambda: head2toe.keep(np.ones(3), 0), r"in \(0, 1\], got 0"),
    (
      lambda: distillation.distillation_kl(jnp.ones((1, 2)), jnp.ones((1, 3))),
      "the same classes",
    ),
    (
      lambda: distillation.distillation_kl(jnp.ones(2), jnp.ones(2), 0),
      "temperature must be above 0",
    ),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_alexnet_has_a_corruption_error_of_one():
  table = corruptions.ALEXNET_ERRORS
  assert len(table) == 15
  accuracy = {name: [1 - error] * 5 for name, error in table.items()}
  found = corruptions.corruption_errors(
    accuracy, 1 - corruptions.ALEXNET_CLEAN_ERROR
  )
  assert found["mce"] == pytest.approx(1)
  assert found["relative_mce"] == pytest.approx(1)
  assert found["accuracy"] == pytest.approx(1 - np.mean(list(table.values())))
  perfect = {name: [1.0] * 5 for name in table}
  assert corruptions.corruption_errors(perfect, 1)["mce"] == 0


def test_effective_robustness_is_zero_on_the_line():
  standard = np.array([0.4, 0.6, 0.8])
  shifted = effective_robustness.Line(0.9, -0.5).predict(standard)
  line = effective_robustness.fit_line(standard, shifted)
  assert line.slope == pytest.approx(0.9)
  assert line.intercept == pytest.approx(-0.5)
  found = effective_robustness.effective_robustness(0.8, shifted[2], line)
  assert found == pytest.approx(0, abs=1e-12)


# big_vision image_text_retrieval_test.py: distances of 4 images and 8 texts.
PERFECT = [
  [0.0, 0.0, 0.1, 0.5, 0.1, 0.2, 0.5, 0.1],
  [0.5, 0.4, 0.0, 0.0, 0.4, 0.2, 0.6, 0.4],
  [0.5, 0.4, 0.1, 0.5, 0.0, 0.0, 0.8, 0.3],
  [0.5, 0.4, 0.1, 0.5, 0.3, 0.2, 0.0, 0.0],
]
IMAGES = [
  [0.8, 0.8, 0.1, 0.5, 0.1, 0.2, 0.5, 0.1],
  [0.5, 0.4, 0.0, 0.0, 0.4, 0.2, 0.6, 0.4],
  [0.5, 0.4, 0.1, 0.5, 0.0, 0.8, 0.8, 0.3],
  [0.5, 0.4, 0.1, 0.5, 0.4, 0.2, 0.3, 0.3],
]
TEXTS = [
  [0.8, 0.8, 0.1, 0.5, 0.1, 0.2, 0.1, 0.1],
  [0.5, 0.4, 0.0, 0.0, 0.4, 0.2, 0.6, 0.4],
  [0.5, 0.4, 0.1, 0.5, 0.0, 0.8, 0.8, 0.3],
  [0.5, 0.4, 0.1, 0.5, 0.4, 0.2, 0.3, 0.3],
]


@pytest.mark.parametrize(
  ("distances", "way", "want"),
  [
    (PERFECT, "image to text", (1, 1, 1)),
    (PERFECT, "text to image", (1, 1, 1)),
    (IMAGES, "image to text", (0.5, 0.75, 1)),
    (TEXTS, "text to image", (0.375, 1, 1)),
  ],
)
def test_recall_is_the_published_one(distances, way, want):
  found = retrieval.recall(np.array(distances), [0, 0, 1, 1, 2, 2, 3, 3])
  assert tuple(found[f"{way} R@{k}"] for k in (1, 5, 10)) == want


def ridge_data(n, d=12, classes=4):
  rng = np.random.default_rng(n)
  labels = np.arange(n) % classes
  return rng.standard_normal((n, d)) * 3 + labels[:, None], labels, classes


@pytest.mark.parametrize("n", [8, 40])
@pytest.mark.parametrize("l2", [1.0, 2.0, 8.0, fewshot.L2])
def test_primal_equals_dual_equals_a_direct_solve(n, l2):
  x, y, classes = ridge_data(n)
  primal = fewshot.Ridge(x, y, classes, form="primal").weights(l2)
  dual = fewshot.Ridge(x, y, classes, form="dual").weights(l2)
  np.testing.assert_allclose(primal, dual, atol=1e-6)
  z = (x - x.mean(0)) / (x.std(0) + 1e-5)
  z = np.pad(z, ((0, 0), (0, 1)), constant_values=100)
  targets = np.where(y[:, None] == np.arange(classes), 1, -1)
  direct = np.linalg.solve(z.T @ z + l2 * np.eye(13), z.T @ targets)
  np.testing.assert_allclose(primal, direct, atol=1e-6)


def test_no_l2_is_the_least_norm_solution():
  # Fewer images than features: scenic's test has l2 = 0 too, where only the
  # dual is defined.
  x, y, classes = ridge_data(8)
  scores = fewshot.Ridge(x, y, classes, form="dual").scores(x, 0.0)
  targets = np.where(y[:, None] == np.arange(classes), 1, -1)
  np.testing.assert_allclose(scores, targets, atol=1e-6)


def test_a_class_with_fewer_images_gives_all_it_has():
  labels = np.array([0, 0, 0, 1, 2, 2])
  few, more = (fewshot.support(labels, k, seed=3) for k in (1, 2))
  assert labels[more].tolist() == [0, 0, 1, 2, 2]
  assert set(few) <= set(more)
  assert fewshot.support(labels, 2, seed=3).tolist() == more.tolist()


def test_zero_shot_averages_normalised_prompts():
  prompts = np.array([[10.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
  weights = zero_shot.classifier(prompts, np.array([0, 0, 1]))
  np.testing.assert_allclose(weights[0], [np.sqrt(0.5)] * 2, rtol=1e-6)
  scores = zero_shot.scores(np.array([[5.0, 4.0], [-1.0, 0.1]]), weights)
  assert scores.argmax(axis=1).tolist() == [0, 1]


def test_distillation_is_zero_when_equal_and_scales_with_temperature():
  rng = np.random.default_rng(0)
  s, t = rng.standard_normal((2, 3, 5))
  assert distillation.distillation_kl(jnp.array(t), jnp.array(t)).max() == 0
  p = np.exp(t / 2) / np.exp(t / 2).sum(1, keepdims=True)
  q = np.exp(s / 2) / np.exp(s / 2).sum(1, keepdims=True)
  want = 4 * (p * np.log(p / q)).sum(1)
  got = distillation.distillation_kl(jnp.array(s), jnp.array(t), 2.0)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_head2toe_has_the_papers_dimension():
  cfg = get_config("vit_22b")
  assert head2toe.feature_count(cfg) == 349_081 == 52 * 6144 + 29_593
  x = {"a": np.ones((2, 4)), "b": 5 * np.ones((2, 9))}
  joined = head2toe.concatenated(x)
  assert joined.shape == (2, 13)
  np.testing.assert_allclose(np.square(joined[:, 4:]).sum(1), 1)
