import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.eval.metrics import perceptual


def draw(seed, layers=3, images=4, tokens=6, width=5):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=(images, tokens, width)) for _ in range(layers)]


def test_the_distance_is_the_sum_over_layers_of_the_mean_over_tokens():
  one, other = draw(0), draw(1)
  want = np.zeros(4)
  for a, b in zip(one, other, strict=True):
    for i in range(4):
      cosines = [
        x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        for x, y in zip(a[i], b[i], strict=True)
      ]
      want[i] += np.mean(2 - 2 * np.array(cosines))  # |u - v|^2
  np.testing.assert_allclose(perceptual.feature_distance(one, other), want)


@given(st.integers(0, 20))
def test_mean_pool_forgets_where(seed):
  one = draw(seed)
  moved = [np.roll(layer, 2, axis=1) for layer in one]
  near = perceptual.feature_distance(one, moved, mean_pool=True)
  np.testing.assert_allclose(near, 0, atol=1e-12)
  assert perceptual.feature_distance(one, moved).min() > 0.1
  # Neither sees the length of features.
  for mean_pool in (False, True):
    longer = [3 * layer for layer in one]
    same = perceptual.feature_distance(one, longer, mean_pool=mean_pool)
    np.testing.assert_allclose(same, 0, atol=1e-12)


def test_two_afc():
  d0, d1 = [0.1, 0.3, 0.2], [0.2, 0.1, 0.2]
  # Right as 80 % of the people, as 60 %, and undecided.
  got = perceptual.two_afc_score(d0, d1, [0.2, 0.6, 1.0])
  assert got == pytest.approx((0.8 + 0.6 + 0.5) / 3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_majority_scores_best(preferences):
  g = np.array(preferences)
  best = perceptual.two_afc_score(g > 0.5, g <= 0.5, g)
  assert best == pytest.approx(perceptual.best_two_afc_score(g))
  worst = perceptual.two_afc_score(g <= 0.5, g > 0.5, g)
  assert best + worst == pytest.approx(1)


def test_jnd():
  assert perceptual.jnd_score([0.1, 0.2, 0.9], [1, 1, 0]) == 1.0
  got = perceptual.jnd_score([0.3, 0.2, 0.9], [1, 0, 0])
  assert got == pytest.approx(0.5)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: perceptual.two_afc_score([1, 2], [1, 2], [0.5, 1.5]),
      r"preferences must lie in \[0, 1\]: not so in row 1, .* 1.5",
    ),
    (
      lambda: perceptual.two_afc_score([1, np.nan], [1, 2], [0.5, 0.5]),
      "distances must be finite: not so in row 1",
    ),
    (
      lambda: perceptual.two_afc_score([1], [1, 2], [0.5, 0.5]),
      "got distance0 1, distance1 2, preference 2",
    ),
    (
      lambda: perceptual.feature_distance(draw(0), draw(0, layers=2)),
      "same layers, at least one, got 3 and 2",
    ),
    (
      lambda: perceptual.feature_distance(draw(0), draw(0, tokens=7)),
      r"layer 0 has \(4, 6, 5\) and \(4, 7, 5\)",
    ),
    (
      lambda: perceptual.jnd_score([1, 2], [0, 0]),
      "both classes for the JND score: all rows, 0 to 1, have label 0",
    ),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
