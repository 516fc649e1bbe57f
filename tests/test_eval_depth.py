"""Depth errors at values that are known by hand."""

import numpy as np
import pytest

from examples.eval.metrics.depth import depth_errors, mean_errors

DEPTH = np.random.default_rng(0).uniform(1, 80, (8, 8))
ALL = np.ones((8, 8), bool)


def test_a_perfect_prediction():
  errors = depth_errors(DEPTH, DEPTH, ALL)
  assert errors == {
    "mse": 0,
    "abs_rel": 0,
    "d<1.1": 1,
    "d<1.25": 1,
    "d<1.562": 1,
  }


@pytest.mark.parametrize("factor", [1.2, 1 / 1.2])
def test_a_fifth_off(factor):
  errors = depth_errors(DEPTH, factor * DEPTH, ALL)
  assert errors["abs_rel"] == pytest.approx(abs(factor - 1))
  assert (errors["d<1.1"], errors["d<1.25"]) == (0, 1)


def test_mse_is_of_the_logarithm():
  errors = depth_errors(np.array([np.e - 1]), np.array([0.0]), np.array([True]))
  assert errors["mse"] == pytest.approx(1)


def test_what_is_not_valid_does_not_count():
  valid = np.arange(64).reshape(8, 8) % 3 == 0
  wrong = np.where(valid, DEPTH, 1e6)
  unknown = np.where(valid, DEPTH, np.nan)
  assert depth_errors(unknown, wrong, valid)["abs_rel"] == 0


def test_no_depth_predicted_is_outside_every_threshold():
  errors = depth_errors(np.ones(2), np.array([0.0, -1.0]), np.ones(2, bool))
  assert errors["d<1.562"] == 0
  assert np.isfinite(list(errors.values())).all()


def test_the_mean_is_over_images():
  one, two = ({"abs_rel": 0.1}, {"abs_rel": 0.3})
  assert mean_errors([one, two]) == {"abs_rel": pytest.approx(0.2)}


def test_bad_input():
  with pytest.raises(ValueError, match="keep a pixel of 64, got none"):
    depth_errors(DEPTH, DEPTH, ~ALL)
  with pytest.raises(ValueError, match=r"one shape, got \(8, 8\)"):
    depth_errors(DEPTH, DEPTH, ALL[0])
  with pytest.raises(ValueError, match="depths must be above 0, got"):
    depth_errors(0 * DEPTH, DEPTH, ALL)
  with pytest.raises(ValueError, match="at least one image"):
    mean_errors([])
