"""Values are those of robustness_metrics' `metrics/uncertainty_test.py`."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.eval.metrics import calibration as cal

BINARY = [0.51, 0.45, 0.39, 0.66, 0.68, 0.29, 0.81, 0.85]
BINARY_LABELS = [0, 0, 0, 1, 0, 1, 1, 1]
TERNARY = [
  [0.31, 0.32, 0.27],
  [0.37, 0.33, 0.30],
  [0.30, 0.31, 0.39],
  [0.61, 0.38, 0.01],
  [0.10, 0.65, 0.25],
  [0.91, 0.05, 0.04],
]
TERNARY_LABELS = [1, 0, 0, 1, 0, 0]
FIVE = [
  [0.42610548, 0.41748077, 0.15641374],
  [0.44766216, 0.47721294, 0.0751249],
  [0.1862702, 0.15139402, 0.66233578],
  [0.05753544, 0.8561222, 0.08634236],
  [0.18697925, 0.29836466, 0.51465609],
]
FIVE_LABELS = [0, 1, 2, 1, 2]
PAIR = [[0.2, 0.8], [0.3, 0.7]], [1, 0]
# Two predictions of the first image, averaged.
TERTIARY = [[0.35, 0.35, 0.3], [0.8, 0.15, 0.05]], [2, 1]


@pytest.mark.parametrize(
  ("probs", "labels", "bins", "value"),
  [
    (BINARY, BINARY_LABELS, 10, 0.145),
    (BINARY, BINARY_LABELS, 15, 0.4275),
    (np.reshape(BINARY, (8, 1)), BINARY_LABELS, 15, 0.4275),
    (TERNARY, TERNARY_LABELS, 10, 0.378333333),
    (TERNARY, TERNARY_LABELS, 15, 0.378333333),
    (*PAIR, 15, 0.45),
    (*TERTIARY, 15, 0.575),
  ],
)
def test_expected_calibration_error(probs, labels, bins, value):
  got = cal.expected_calibration_error(probs, labels, bins=bins)
  assert got == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
  ("probs", "labels", "options", "value"),
  [
    (FIVE, FIVE_LABELS, ("even", "l1", 30), 0.412713502),
    (
      [0.91, 0.32, 0.66, 0.67, 0.57, 0.98, 0.41, 0.19],
      [1, 0, 1, 1, 0, 1, 0, 0],
      ("even", "l1", 30),
      0.18125,
    ),
    (*PAIR, ("adaptive", "l2", 2), 0.5147815),
    (*TERTIARY, ("adaptive", "l2", 2), 0.6174544),
    (TERNARY, TERNARY_LABELS, ("adaptive", "l2", 30), 0.549863619),
  ],
)
def test_general_calibration_error(probs, labels, options, value):
  scheme, norm, bins = options
  got = cal.general_calibration_error(
    probs, labels, scheme=scheme, norm=norm, bins=bins
  )
  assert got == pytest.approx(value, abs=1e-7)


@given(st.integers(1, 300), st.integers(1, 120), st.integers(0, 9))
def test_adaptive_bins_are_filled_alike_and_lose_no_row(rows, bins, seed):
  rng = np.random.default_rng(seed)
  confidence = rng.uniform(0.5, 1, rows)
  # Labels of class 1 alone: the error is then 1 - mean confidence, whatever
  # the bins, if each row is counted once.
  got = cal.general_calibration_error(confidence, np.ones(rows), bins=bins)
  assert got == pytest.approx(1 - confidence.mean())


def test_a_certain_row_falls_into_the_last_bin():
  bins = cal.reliability([[0.0, 1.0], [0.25, 0.75]], [1, 1], bins=4)
  np.testing.assert_array_equal(bins.counts, [0, 0, 0, 2])
  bins = cal.reliability([[0.5, 0.5]], [0], bins=2)
  np.testing.assert_array_equal(bins.counts, [0, 1])  # closed on the left


@pytest.mark.parametrize(
  ("probs", "labels", "beta"),
  [(*PAIR, 0.4177706), (*TERTIARY, -0.2375507)],
)
def test_temperature_scaling(probs, labels, beta):
  # The reference stops at .41777062, short of the root, which
  # is .41777049.
  assert cal.fit_temperature(probs, labels) == pytest.approx(beta, abs=2e-7)


def test_a_fit_that_is_always_right_stays_finite():
  beta = cal.fit_temperature([[0.45, 0.55]], [1])
  assert 10 < beta < np.inf
  np.testing.assert_allclose(
    cal.scale_temperature([[0.45, 0.55]], beta)[0, 1], 1
  )


def test_scaling_by_one_changes_nothing():
  np.testing.assert_allclose(cal.scale_temperature(FIVE, 1.0), FIVE, rtol=1e-7)


def test_temperature_undoes_a_known_one():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(20_000, 4))
  probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  labels = (probs.cumsum(axis=1) > rng.uniform(size=(20_000, 1))).argmax(axis=1)
  sharp = cal.scale_temperature(probs, 3.0)
  # The standard error of beta is 0.004 here.
  assert cal.fit_temperature(sharp, labels) == pytest.approx(1 / 3, abs=0.015)


def test_likelihoods_and_brier():
  probs = [[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]
  got = cal.negative_log_likelihood(probs, [1, 0, 0])
  assert got == pytest.approx(-(math.log(0.8 * 0.7 * 0.4)) / 3)
  soft = [[0.1, 0.9], [0.3, 0.7], [0.5, 0.5]]
  want = 0.1 * math.log(0.2) + 0.9 * math.log(0.8) + 0.3 * math.log(0.7)
  want += 0.7 * math.log(0.3) + 0.5 * math.log(0.4) + 0.5 * math.log(0.6)
  got = cal.soft_negative_log_likelihood(probs, soft)
  assert got == pytest.approx(-want / 3)
  want = (0.2**2 + 0.2**2 + 0.7**2 + 0.7**2) / 2
  assert cal.brier_score(*PAIR) == pytest.approx(want)
  want = (2 * 0.35**2 + 0.7**2 + 0.8**2 + 0.85**2 + 0.05**2) / 2
  assert cal.brier_score(*TERTIARY) == pytest.approx(want)
  assert cal.negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(
    -math.log(1e-7)
  )


def test_predictions_of_one_image_are_averaged_first():
  ids, probs, labels = cal.average_by_id(
    ["b", "a", "b"], [[0.2, 0.8], [0.5, 0.5], [0.7, 0.3]], [1, 0, 1]
  )
  assert (ids.tolist(), labels.tolist()) == (["b", "a"], [1, 0])
  np.testing.assert_allclose(probs, [[0.45, 0.55], [0.5, 0.5]])
  got = cal.negative_log_likelihood(probs[:1], labels[:1])
  assert got == pytest.approx(-math.log((0.8 + 0.3) / 2))
  with pytest.raises(
    ValueError, match=r"labels of one id must agree: .* row b"
  ):
    cal.average_by_id(["b", "b"], [[0.2, 0.8], [0.5, 0.5]], [1, 0])


def test_the_split_has_a_fifth_to_fit():
  fit, report = cal.fit_split(1797, percent=20, seed=3)
  assert (len(fit), len(report)) == (359, 1438)
  assert sorted([*fit, *report]) == list(range(1797))
  order = np.random.RandomState(3).permutation(1797)
  np.testing.assert_array_equal(fit, order[:359])
  with pytest.raises(ValueError, match="20 % of 2 rows are 0"):
    cal.fit_split(2)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: cal.brier_score([[0.2, 0.8], [1.5, -0.5]], [1, 0]),
      r"probabilities must lie in \[0, 1\]: not so in row 1, where .* 1.5",
    ),
    (
      lambda: cal.reliability([0.5, np.nan, -1], [1, 0, 1]),
      "not so in rows 1, 2, where the first is nan",
    ),
    (
      lambda: cal.reliability([0.5, 0.5], [0, 2]),
      "labels must be classes from 0 to 1: not so in row 1, where .* is 2",
    ),
    (
      lambda: cal.reliability([0.5, 0.5], [0]),
      r"labels must be one for each of the 2 rows, got shape \(1,\)",
    ),
    (lambda: cal.reliability([], []), r"must have rows, got shape \(0,\)"),
    (lambda: cal.reliability([0.5], [0], bins=0), "bins must be at least 1"),
    (
      lambda: cal.soft_negative_log_likelihood([[0.5, 0.5]], [[1, 0, 0]]),
      r"shape of the probabilities, \(1, 2\), got \(1, 3\)",
    ),
    (
      lambda: cal.general_calibration_error(*PAIR, scheme="odd"),
      "scheme must be adaptive or even, got 'odd'",
    ),
    (
      lambda: cal.general_calibration_error(*PAIR, norm="l3"),
      "norm must be l1 or l2, got 'l3'",
    ),
  ],
)
def test_bad_rows_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
