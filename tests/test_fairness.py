import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.eval.metrics import fairness


def draw(seed, rows=400, groups=3):
  rng = np.random.default_rng(seed)
  group = rng.permutation(np.arange(rows) % groups)
  scores = rng.uniform(0, 1, rows) ** (1 + group)  # unequal rates
  labels = rng.uniform(0, 1, rows) < scores
  return labels, scores, group


def test_parity_of_a_table():
  said = [1, 1, 0, 1, 0, 0, 0, 0]
  groups = list("aaaabbcc")
  assert fairness.demographic_parity(said, groups) == 0.75


@given(
  st.integers(0, 30),
  st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
  st.sampled_from([0.01, 0.05, 0.5, 2.0]),
  st.sampled_from([None, 0.0, 0.2, 1.0]),
)
def test_the_optimizer_meets_its_constraint_on_the_fit(
  seed, epsilon, gamma, rate
):
  _, scores, groups = draw(seed)
  rule = fairness.fit_randomized_threshold(
    scores, groups, epsilon=epsilon, gamma=gamma, rate=rate
  )
  yes = rule(scores, groups)
  if rate is None:
    rate = (scores.mean() - scores.min()) / np.ptp(scores)
  for mask in fairness.group_rows(groups).values():
    assert abs(yes[mask].mean() - rate) <= epsilon / 2 + 1e-9
  assert fairness.demographic_parity(yes, groups) <= epsilon + 2e-9


def test_the_optimum_is_where_the_conditions_say():
  # Perturbing the thresholds within the constraint never lowers the objective.
  _, scores, groups = draw(0, groups=2)
  gamma = 0.3
  rule = fairness.fit_randomized_threshold(
    scores, groups, epsilon=0.0, gamma=gamma
  )
  y = 2 * (scores - scores.min()) / np.ptp(scores) - 1

  def objective(x):
    return (gamma / 2 * x**2 - y * x).sum()

  x = rule(scores, groups)
  rng = np.random.default_rng(1)
  for _ in range(50):
    other = np.clip(x + rng.normal(size=x.shape) * 0.1, 0, 1)
    for mask in fairness.group_rows(groups).values():
      # Back to the rate of the group, towards a feasible point.
      rate, mean = x[mask].mean(), other[mask].mean()
      if mean > rate:
        other[mask] *= rate / mean
      else:
        other[mask] = 1 - (1 - other[mask]) * (1 - rate) / (1 - mean)
    assert objective(x) <= objective(other) + 1e-9


def test_a_uniform_group_has_a_closed_form():
  # E[clip((y - t)/gamma, 0, 1)] = (1 - t - gamma/2)/2 for y uniform on [-1, 1].
  scores = (np.arange(20_000) + 0.5) / 20_000
  rule = fairness.fit_randomized_threshold(
    scores, np.zeros(20_000), rate=0.3, gamma=0.2
  )
  assert rule.thresholds[0.0] == pytest.approx(1 - 0.1 - 0.6, abs=2e-4)


def test_a_loose_constraint_leaves_the_classifier_alone():
  labels, scores, groups = draw(2)
  points = fairness.trade_off(
    (labels, scores, groups), (labels, scores, groups), epsilons=[0, 0.5, 1]
  )
  parity = [point["parity"] for point in points]
  accuracy = [point["accuracy"] for point in points]
  assert parity[0] < 1e-9 and parity == sorted(parity)
  assert accuracy == sorted(accuracy)


def test_the_accuracy_of_a_coin():
  assert fairness.rule_accuracy([0, 1, 1], [0.5, 0.5, 1.0]) == pytest.approx(
    2 / 3
  )


def test_subgroups_are_scored_apart():
  labels = [0, 1, 0, 1]
  scores = [0.1, 0.9, 0.9, 0.1]
  result = fairness.subgroup_scores(labels, scores, ["a", "a", "b", "b"])
  assert result["a"] == pytest.approx(
    {"accuracy": 1.0, "ece": 0.1, "oc_auc": 1.0, "rows": 2}
  )
  assert result["b"] == pytest.approx(
    {"accuracy": 0.0, "ece": 0.9, "oc_auc": 0.0, "rows": 2}
  )


def test_logistic_regression_finds_a_line():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(500, 4))
  labels = features[:, 0] > 0.2
  scores = fairness.logistic_scores(
    features[:400], labels[:400], features[400:]
  )
  assert ((scores > 0.5) == labels[400:]).mean() > 0.95


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: fairness.demographic_parity([1, 2], ["a", "b"]),
      r"predictions must lie in \[0, 1\]: not so in row 1",
    ),
    (
      lambda: fairness.demographic_parity([1, 0], ["a", "a"], ["a", "b"]),
      "every subgroup must have rows: b is none of rows 0 to 1",
    ),
    (
      lambda: fairness.demographic_parity([1, 0], ["a", "c"], ["a", "b"]),
      "subgroups a, b: not so in row 1, where the first is c",
    ),
    (
      lambda: fairness.demographic_parity([1, 0], ["a"]),
      "got predictions 2, groups 1",
    ),
    (
      lambda: fairness.demographic_parity([], []),
      r"must have rows, got shape \(0,\)",
    ),
    (
      lambda: fairness.subgroup_scores([1, 1, 0], [0.5] * 3, ["a", "a", "b"]),
      "both classes for OC-AUC of subgroup a: all rows, 0 to 1, have label 1",
    ),
    (
      lambda: fairness.fit_randomized_threshold([0.5, 0.5], ["a", "b"]),
      "scores must differ, got 0.5 in all rows",
    ),
    (
      lambda: fairness.fit_randomized_threshold([0, 1], ["a", "b"], epsilon=2),
      r"epsilon must lie in \[0, 1\], got 2",
    ),
    (
      lambda: fairness.fit_randomized_threshold([0, 1], ["a", "b"], gamma=0),
      "gamma must be positive, got 0",
    ),
    (
      lambda: fairness.fit_randomized_threshold([0, 1], ["a", "b"])([1], ["c"]),
      "those of the fit, a, b: not so in row 0, where the first is c",
    ),
    (
      lambda: fairness.logistic_scores(
        np.ones((2, 1)), [1, 1], np.ones((1, 1))
      ),
      "both classes for logistic regression",
    ),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
