"""mIoU against counts by hand, and against scikit-learn's Jaccard scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from examples.eval.metrics.segmentation import confusion, iou, mean_iou

# Row sums 9, 19, 31; column sums 16, 20, 23 (scenic's test_vivit_metrics).
COUNTS = np.array([[3, 2, 4], [5, 8, 6], [8, 10, 13]])


def test_jaccard_of_the_published_counts():
  np.testing.assert_allclose(iou(COUNTS), [3 / 22, 8 / 31, 13 / 41], rtol=1e-12)


def test_counts_come_back_from_pixels():
  labels, predictions = (
    np.repeat(axis.ravel(), COUNTS.ravel()) for axis in np.indices((3, 3))
  )
  np.testing.assert_array_equal(confusion(labels, predictions, 3), COUNTS)


def test_an_absent_class_is_left_out_of_the_mean():
  counts = confusion([0, 0, 1, 1], [0, 1, 1, 1], 3)
  assert np.isnan(iou(counts)[2])
  assert mean_iou(counts) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_class_that_is_only_predicted_counts():
  assert mean_iou(confusion([0, 0], [0, 2], 3)) == pytest.approx(0.25)


def test_ignored_pixels_do_not_count():
  counts = confusion([[0, 255], [1, 255]], [[0, 0], [1, 1]], 2, ignore=255)
  np.testing.assert_array_equal(counts, [[1, 0], [0, 1]])


@given(
  st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1),
)
def test_equals_scikit_learn(pairs):
  labels, predictions = np.array(pairs).T
  present = np.union1d(labels, predictions)
  expected = jaccard_score(labels, predictions, labels=present, average="macro")
  # The same counts; the means are rounded in another order.
  assert mean_iou(confusion(labels, predictions, 5)) == pytest.approx(
    expected, rel=1e-12
  )


def test_bad_input():
  with pytest.raises(ValueError, match=r"shape of labels, \(2,\), got \(3,\)"):
    confusion([0, 1], [0, 1, 1], 2)
  with pytest.raises(ValueError, match=r"labels must be in \[0, 2\), got 0 to"):
    confusion([0, 255], [0, 1], 2)
  with pytest.raises(ValueError, match=r"predictions must be in \[0, 2\), got"):
    confusion([0, 1], [0, -1], 2)
  with pytest.raises(ValueError, match="at least one pixel, got none"):
    mean_iou(confusion([255], [0], 2, ignore=255))
