"""Values are those of robustness_metrics' `metrics/uncertainty_test.py`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from examples.eval.metrics import oracle_collaborative as oracle

LABELS = [0, 0, 1, 1, 0, 1, 1, 0]
SCORES = [0.31, 0.33, 0.42, 0.58, 0.69, 0.76, 0.84, 0.87]
COARSE = {"thresholds": 5, "bins": 3, "curve": "PR"}


@pytest.mark.parametrize(
  "options", [{"fraction": 0.67}, {"fraction": 0.9, "max_count": 5}]
)
def test_precision_recall(options):
  got = oracle.oracle_collaborative_auc(LABELS, SCORES, **options, **COARSE)
  assert got == pytest.approx(0.9434595, abs=5e-8)


def test_a_certainty_of_ones_own():
  scores = [0.31, 0.32, 0.83, 0.64]
  got = oracle.oracle_collaborative_auc(
    [1, 0, 0, 1],
    scores,
    certainty=scores,
    fraction=0.5,
    bins=4,
    thresholds=4,
  )
  assert got == 0.625


def test_a_threshold_of_certainty():
  got = oracle.oracle_collaborative_auc(
    [1, 0, 1, 1, 0, 0],
    [0.5, 0.7, 0.2, 0.4, 0.3, 0.9],
    certainty=np.linspace(0.6, 0.7, 6),
    threshold=0.64,
    thresholds=4,
    curve="PR",
  )
  assert got == pytest.approx(0.68188375, abs=5e-8)


@given(st.integers(0, 20))
def test_no_oracle_is_the_plain_auc_and_a_full_one_perfect(seed):
  rng = np.random.default_rng(seed)
  # One score between each two thresholds, so that the curve is exact.
  scores = (rng.permutation(50) + 0.5) / 50
  labels = np.arange(50) % 3 == 0
  for options in ({"fraction": 0.0}, {"threshold": 0.0}):
    got = oracle.oracle_collaborative_auc(
      labels, scores, thresholds=51, bins=7, **options
    )
    assert got == pytest.approx(roc_auc_score(labels, scores))
  for curve in ("ROC", "PR"):
    for options in ({"fraction": 1.0}, {"threshold": 1.0}):
      got = oracle.oracle_collaborative_auc(
        labels, scores, curve=curve, thresholds=11, **options
      )
      assert got == pytest.approx(1.0)


def test_more_help_is_never_worse():
  labels = [1, 0, 0, 1, 1, 0, 1, 0, 1]
  scores = [0.11, 0.62, 0.33, 0.74, 0.35, 0.26, 0.67, 0.58, 0.89]
  areas = [
    oracle.oracle_collaborative_auc(
      labels, scores, fraction=fraction, thresholds=11
    )
    for fraction in (0.0, 0.3, 0.6, 0.9)
  ]
  assert areas == sorted(areas) and areas[0] < areas[-1] <= 1


@pytest.mark.parametrize(
  ("fraction", "value"), [(0.4, 0.791667), (0.15, 0.6875), (1.0, 1.0)]
)
def test_accuracy(fraction, value):
  probs = [0.51, 0.45, 0.39, 0.66, 0.68, 0.29, 0.81, 0.85]
  got = oracle.oracle_collaborative_accuracy(
    probs, [0, 0, 0, 1, 0, 1, 1, 1], fraction=fraction, bins=10
  )
  assert got == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize(
  ("curve", "confidence", "value"),
  [
    ("ROC", [1, 0, 0, 0, 1], 1.0),
    ("ROC", [1, 0, 0, 0.1, 0], 0.75),
    ("ROC", [1, 0.5, 0.5, 0.5, 0], 0.5),
    ("ROC", [0.5] * 5, 0.5),
    ("ROC", [0.1, 0.9, 0.9, 0.9, 0.1], 0.0),
    ("PR", [1, 0, 0, 0, 1], 1.0),
    ("PR", [1, 0, 0, 0.1, 1], 1.0),
    ("PR", [1, 0.8, 0.5, 0.1, 0.5], 0.75),
    ("PR", [0.5] * 5, 0.4),
    ("PR", [0.1, 0.9, 0.9, 0.9, 0.1], 0.234),
  ],
)
def test_calibration_auc(curve, confidence, value):
  got = oracle.calibration_auc(
    [0, 0, 0, 1, 1], [0, 1, 1, 0, 1], confidence, thresholds=10, curve=curve
  )
  # The last value is given to three decimals.
  assert got == pytest.approx(value, abs=1e-3 if value == 0.234 else 1e-9)


def test_the_two_forms_answer_different_questions():
  probs = np.array(
    [[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0, 0.4, 0.6], [0.3, 0.6, 0.1]]
  )
  labels = np.array([0, 1, 1, 2])
  # Class 0 is told from the others in every row ...
  got = oracle.oracle_collaborative_auc_multiclass(
    probs, labels, form="class_indices"
  )
  assert got == 1.0
  # ... and half of the rows are wrong, one of them as confident as a right one.
  got = oracle.oracle_collaborative_auc_multiclass(
    probs, labels, form="correctness", thresholds=1001
  )
  assert got == 1.0
  swapped = [1, 1, 2, 1]  # now the most confident row is wrong
  got = oracle.oracle_collaborative_auc_multiclass(
    probs, swapped, form="correctness", fraction=0.0, thresholds=1001
  )
  assert got == pytest.approx(0.0)
  with pytest.raises(ValueError, match="class_indices or correctness, got 'a'"):
    oracle.oracle_collaborative_auc_multiclass(probs, labels, form="a")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"scores": [0.1, 1.2]}, r"scores must lie in \[0, 1\]: not so in row 1"),
    (
      {"certainty": [0.1, -1]},
      r"certainty must lie in \[0, 1\]: not so in row 1",
    ),
    ({"scores": [0.1]}, "equally many rows, got labels 2, scores 1"),
    ({"fraction": 2}, r"fraction must lie in \[0, 1\], got 2"),
    ({"bins": 1}, "bins=1, thresholds=200"),
    ({"curve": "DET"}, "curve must be ROC or PR, got 'DET'"),
  ],
)
def test_bad_input_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    oracle.oracle_collaborative_auc(
      **{"labels": [0, 1], "scores": [0.1, 0.9]} | options
    )
  with pytest.raises(ValueError, match="fraction must lie"):
    oracle.oracle_collaborative_accuracy([0.5], [1], fraction=-1)
