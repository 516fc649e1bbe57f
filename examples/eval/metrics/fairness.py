"""Demographic parity, the randomized threshold optimizer, and subgroups."""

import dataclasses

import numpy as np
from scipy import optimize
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples.eval.metrics.calibration import expected_calibration_error
from examples.eval.metrics.oracle_collaborative import oracle_collaborative_auc
from examples.eval.metrics.rows import (
  named,
  same_length,
  two_classes,
  unit_scores,
)


def group_rows(groups, expected=None) -> dict:
  """Returns a mask over the rows for each subgroup.

  Args:
    groups: `[N]`, the subgroup of each row.
    expected: the subgroups that must have rows; by default those that do.

  Raises:
    ValueError: if a subgroup has no rows, or naming rows of no subgroup.
  """
  groups = np.asarray(groups)
  if groups.ndim != 1 or not len(groups):
    raise ValueError(f"groups must be [N] with rows, got shape {groups.shape}")
  wanted = np.unique(groups) if expected is None else np.asarray(expected)
  strangers = ~np.isin(groups, wanted)
  if strangers.any():
    raise ValueError(
      f"every row must belong to one of the subgroups {_listed(wanted)}: not "
      f"so in {named(strangers)}, where the first is {groups[strangers][0]}"
    )
  masks = {key: groups == key for key in wanted.tolist()}
  empty = [key for key, mask in masks.items() if not mask.any()]
  if empty:
    raise ValueError(
      f"every subgroup must have rows: {_listed(empty)} is none of rows 0 to "
      f"{len(groups) - 1}"
    )
  return masks


def demographic_parity(predictions, groups, expected=None) -> float:
  """Returns `max_k E[y|k] - min_k E[y|k]` over the subgroups k.

  Args:
    predictions: `[N]` in [0, 1]: predicted classes, or the probability with
      which a randomised rule says yes.
    groups: `[N]`.
    expected: as in `group_rows`.

  Example:
    >>> demographic_parity([1, 1, 0, 1], ["a", "a", "b", "b"])
    0.5
  """
  predictions = unit_scores("predictions", predictions)
  same_length(predictions=predictions, groups=groups)
  masks = group_rows(groups, expected).values()
  means = [float(predictions[mask].mean()) for mask in masks]
  return max(means) - min(means)


@dataclasses.dataclass(frozen=True)
class RandomizedThreshold:
  """A rule that says yes with probability `clip((y - t_k) / gamma, 0, 1)`.

  `y` is the score on [-1, 1] and `t_k` the threshold of subgroup `k`.

  Attributes:
    thresholds: `t_k` of each subgroup.
    gamma: width of the range in which the rule is random.
    low: the score that is -1.
    high: the score that is 1.
  """

  thresholds: dict
  gamma: float
  low: float
  high: float

  def __call__(self, scores, groups) -> np.ndarray:
    """Returns the probability of yes, `[N]`.

    Raises:
      ValueError: naming rows of a subgroup that the fit did not have.
    """
    scores, groups = np.asarray(scores, np.float64), np.asarray(groups)
    same_length(scores=scores, groups=groups)
    strangers = ~np.isin(groups, list(self.thresholds))
    if strangers.any():
      raise ValueError(
        f"subgroups must be among those of the fit, "
        f"{_listed(self.thresholds)}: not so in {named(strangers)}, where the "
        f"first is {groups[strangers][0]}"
      )
    at = np.array([self.thresholds[key] for key in groups.tolist()])
    return _rule(_rescaled(scores, self.low, self.high), at, self.gamma)


def fit_randomized_threshold(
  scores,
  groups,
  *,
  epsilon: float = 0.0,
  gamma: float = 0.05,
  rate: float | None = None,
  expected=None,
) -> RandomizedThreshold:
  """Fits the rule that keeps most of the scores under a parity constraint.

      min_x sum_i gamma/2 x_i^2 - y_i x_i   over 0 <= x <= 1
      such that |E[x|k] - rate| <= epsilon/2 in every subgroup k

  (Alabdulmohsin & Lucic 2021). The constraint ties no two subgroups together,
  and its multipliers only move the threshold: where `t = 0` breaks it, `t_k`
  is the root of `E[clip((y - t)/gamma, 0, 1)|k] = rate -+ epsilon/2`, a
  falling function of t. google-research/ml_debiaser finds it by stochastic
  gradient descent; here a root finder does, to 1e-12.

  Args:
    scores: `[N]`, of the positive class; scaled to [-1, 1] by their range.
    groups: `[N]`.
    epsilon: largest demographic parity on these rows.
    gamma: width of the random range, of the 2 between the least and the
      largest score.
    rate: share of yes in every subgroup; by default the mean score, as a
      share of the range.
    expected: as in `group_rows`.

  Raises:
    ValueError: if an option is out of range, all scores are equal, or a
      subgroup is empty.
  """
  scores = np.asarray(scores, np.float64)
  same_length(scores=scores, groups=groups)
  masks = group_rows(groups, expected)
  for name, value in (("epsilon", epsilon), ("rate", rate)):
    if value is not None and not 0 <= value <= 1:
      raise ValueError(f"{name} must lie in [0, 1], got {value}")
  if gamma <= 0:
    raise ValueError(f"gamma must be positive, got {gamma}")
  low, high = float(scores.min()), float(scores.max())
  if not high > low:
    raise ValueError(f"scores must differ, got {low:g} in all rows")
  y = _rescaled(scores, low, high)
  if rate is None:
    rate = float((y.mean() + 1) / 2)
  thresholds = {
    key: _threshold(y[mask], rate, epsilon, gamma)
    for key, mask in masks.items()
  }
  return RandomizedThreshold(thresholds, gamma, low, high)


def rule_accuracy(labels, yes) -> float:
  """Returns the expected accuracy of a randomised rule.

  Args:
    labels: `[N]`, 0 or 1.
    yes: `[N]`, the probability of saying 1.
  """
  yes = unit_scores("yes", yes)
  same_length(labels=labels, yes=yes)
  labels = np.asarray(labels, bool)
  return float(np.where(labels, yes, 1 - yes).mean())


def subgroup_scores(
  labels, scores, groups, *, fraction: float = 0.01, expected=None
) -> dict:
  """Returns accuracy, ECE and OC-AUC of each subgroup.

  ECE is that of 15 equal bins; OC-AUC the binary one, its certainty the
  distance to the threshold.

  Args:
    labels: `[N]`, 0 or 1.
    scores: `[N]`, P(label 1).
    groups: `[N]`.
    fraction: what the oracle sees of each subgroup.
    expected: as in `group_rows`.

  Raises:
    ValueError: if a subgroup is empty or all its labels are the same, or
      naming rows outside [0, 1].
  """
  scores, labels = unit_scores("scores", scores), np.asarray(labels)
  same_length(labels=labels, scores=scores, groups=groups)
  results = {}
  for key, mask in group_rows(groups, expected).items():
    y, p = two_classes(labels[mask], f"OC-AUC of subgroup {key}"), scores[mask]
    results[key] = {
      "accuracy": float(((p > 0.5) == y).mean()),
      "ece": expected_calibration_error(p, y),
      "oc_auc": oracle_collaborative_auc(y, p, fraction=fraction),
      "rows": int(mask.sum()),
    }
  return results


def trade_off(fit, report, *, epsilons, gamma: float = 0.05) -> list[dict]:
  """Returns accuracy against parity as the constraint loosens.

  Args:
    fit: `(labels, scores, groups)` that the rules are fitted on.
    report: the same of the rows that they are judged by.
    epsilons: the constraints.
    gamma: as in `fit_randomized_threshold`.

  Returns:
    For each: `epsilon`, and `accuracy` and `parity` on the reported rows.
  """
  points = []
  labels, scores, groups = report
  for epsilon in epsilons:
    rule = fit_randomized_threshold(
      fit[1], fit[2], epsilon=epsilon, gamma=gamma
    )
    yes = rule(scores, groups)
    points.append(
      {
        "epsilon": float(epsilon),
        "accuracy": rule_accuracy(labels, yes),
        "parity": demographic_parity(yes, groups),
      }
    )
  return points


def logistic_scores(features, labels, other_features) -> np.ndarray:
  """Returns P(label 1) on other rows by logistic regression on features.

  Features are standardised; the rest is scikit-learn's default, L2 with C = 1.

  Args:
    features: `[N, D]` to fit on.
    labels: `[N]`, 0 or 1.
    other_features: `[M, D]`.

  Raises:
    ValueError: if all labels are the same.
  """
  labels = two_classes(labels, "logistic regression")
  same_length(features=features, labels=labels)
  model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
  model.fit(features, labels)
  return model.predict_proba(other_features)[:, 1]


def _threshold(y, rate, epsilon, gamma) -> float:
  def share(t):
    return _rule(y, t, gamma).mean()

  goal = np.clip(share(0.0), rate - epsilon / 2, rate + epsilon / 2)
  goal = np.clip(goal, 0, 1)
  if share(0.0) == goal:
    return 0.0
  # At the two ends the rule says always yes, and always no.
  return optimize.brentq(
    lambda t: share(t) - goal, y.min() - gamma, y.max(), xtol=1e-14
  )


def _rule(y, threshold, gamma):
  return np.clip((y - threshold) / gamma, 0, 1)


def _rescaled(scores, low, high):
  return 2 * (scores - low) / (high - low) - 1


def _listed(keys) -> str:
  return ", ".join(str(key) for key in keys)
