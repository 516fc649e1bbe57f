import numpy as np
import pytest

from examples.eval.metrics import detection


def test_average_precision_of_the_reference():
  got = detection.detection_scores([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
  assert got["auprc"] == pytest.approx(0.8333333, abs=5e-8)


def test_roc_and_fpr95_of_the_reference():
  got = detection.detection_scores([0, 0, 1, 1], [0.2, 0.4, 0.35, 0.1])
  assert got == {"auroc": 0.25, "auprc": 0.5, "fpr95": 1.0}


def test_the_outside_is_positive_and_scored_by_one_minus_msp():
  inside = [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]
  outside = [[0.5, 0.5], [0.4, 0.6]]
  got = detection.out_of_distribution(inside, outside)
  assert got == {"auroc": 1.0, "auprc": 1.0, "fpr95": 0.0}
  swapped = detection.out_of_distribution(outside, inside)
  assert swapped["auroc"] == 0.0


def test_msp_ignores_which_class_it_is():
  np.testing.assert_array_equal(
    detection.maximum_softmax_probability([[0.2, 0.8], [0.8, 0.2]]), [0.8, 0.8]
  )


@pytest.mark.parametrize(
  ("labels", "scores", "message"),
  [
    (
      [1, 1, 1],
      [0.1, 0.2, 0.3],
      "both classes for AUROC: all rows, 0 to 2, have label 1",
    ),
    ([0, 2, 1], [0.1, 0.2, 0.3], "must be 0 or 1 for AUROC: not so in row 1"),
    ([0, 1], [0.1], "equally many rows, got labels 2, scores 1"),
    ([], [], r"\[N\] with rows for AUROC, got shape \(0,\)"),
  ],
)
def test_bad_input_is_named(labels, scores, message):
  with pytest.raises(ValueError, match=message):
    detection.detection_scores(labels, scores)
  with pytest.raises(ValueError, match=message):
    detection.auroc(labels, scores)
