import numpy as np
import pytest

from examples.data.mixup import check_pairs, mix, weights


def test_pairs_are_blended_both_ways():
  batch = {
    "image": np.array([[0.0], [1.0], [2.0], [4.0]], np.float32),
    "label": np.eye(4, dtype=np.float32),
    "mask": np.ones(4, np.float32),
  }
  mixed = mix(batch, np.array([1, 0.75, 0.5, 0.75], np.float32))
  assert mixed["image"].ravel().tolist() == [0, 0.75, 3, 3.5]
  assert mixed["label"].tolist() == [
    [1, 0, 0, 0],
    [0.25, 0.75, 0, 0],
    [0, 0, 0.5, 0.5],
    [0, 0, 0.25, 0.75],
  ]
  assert {x.dtype for x in mixed.values()} == {np.dtype("float32")}


def test_nothing_is_blended_with_an_empty_row():
  batch = {
    "image": np.array([[3.0], [0.0]], np.float32),
    "label": np.eye(2, dtype=np.float32),
    "mask": np.array([1, 0], np.float32),
  }
  mixed = mix(batch, np.full(2, 0.5, np.float32))
  np.testing.assert_array_equal(mixed["image"], batch["image"])
  np.testing.assert_array_equal(mixed["label"], batch["label"])


def test_weights_are_the_larger_part_of_a_beta_draw():
  rng = np.random.default_rng(0)
  drawn = weights(rng, 1.0, 4000, per="example")
  # Beta(1, 1) is uniform, and so is the larger part, on [0.5, 1].
  assert drawn.min() >= 0.5
  np.testing.assert_allclose(
    np.quantile(drawn, [0.25, 0.75]), [0.625, 0.875], atol=0.02
  )
  one = weights(rng, 1.0, 8, per="batch")
  assert one.shape == (8,) and len(set(one.tolist())) == 1


@pytest.mark.parametrize("rows", [(0, 1), (4, 5, 6, 7), (2, 3, 8, 9)])
def test_hosts_may_have_whole_pairs(rows):
  check_pairs(rows)


@pytest.mark.parametrize("rows", [(0,), (1, 2), (0, 2), (0, 1, 2)])
def test_hosts_may_not_have_half_pairs(rows):
  with pytest.raises(ValueError, match="must read both"):
    check_pairs(rows)
