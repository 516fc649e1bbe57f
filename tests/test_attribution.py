import numpy as np
import pytest

from examples.eval.metrics.attribution import integrated_gradients

X, BASELINE = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 1.0])


def f(points):
  """`5 a + b^2 + sin c`, its value and gradient."""
  a, b, c = np.asarray(points, np.float64).T
  value = 5 * a + b**2 + np.sin(c)
  return value, np.stack([5 + 0 * a, 2 * b, np.cos(c)], axis=1)


def test_the_reference_function():
  # PAIR-code/saliency `core/integrated_gradients_test.py`, there to 2 places.
  parts, gap = integrated_gradients(f, X, BASELINE, steps=1000)
  np.testing.assert_allclose(parts, [2.5, 3.0, -0.70035], atol=5e-6)
  assert abs(gap) < 1e-5


@pytest.mark.parametrize(("steps", "batch"), [(1024, 32), (100, 7), (3, 64)])
def test_complete_whatever_the_batch(steps, batch):
  calls = []

  def counted(points):
    calls.append(len(points))
    return f(points)

  parts, gap = integrated_gradients(
    counted, X, BASELINE, steps=steps, batch=batch
  )
  assert set(calls) == {batch}
  # A third-order rule: the error is the third derivative's, h^2 / 24 of it.
  assert abs(gap) < 2 * (2 / steps) ** 2 + 1e-5
  assert parts[:2].tolist() == pytest.approx([2.5, 3.0], abs=1e-5)


def test_the_gap_tells_of_a_wrong_gradient():
  def wrong(points):
    value, gradient = f(points)
    return value, gradient * 1.1

  _, gap = integrated_gradients(wrong, X, BASELINE)
  assert gap == pytest.approx(0.1 * (2.5 + 3 - 0.70035), abs=1e-4)


def test_bad_input_is_named():
  with pytest.raises(ValueError, match=r"shape of x, \(3,\), got \(2,\)"):
    integrated_gradients(f, X, BASELINE[:2])
  with pytest.raises(ValueError, match="got steps=0, batch=32"):
    integrated_gradients(f, X, BASELINE, steps=0)
