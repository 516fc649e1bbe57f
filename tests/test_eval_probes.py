"""The linear probes against scikit-learn and against each other."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from collective_mm import make_mesh
from examples.eval import logistic, sgd
from examples.eval.metrics.classification import multi_hot

CLASSES = 3


def toy(n=90, d=5):
  rng = np.random.default_rng(0)
  labels = np.arange(n) % CLASSES
  features = rng.standard_normal((n, d)) + 0.8 * np.eye(d)[labels]
  return features.astype(np.float32), labels


@pytest.fixture(scope="module")
def problem():
  features, labels = toy(n=91)  # which eight devices do not divide
  mesh = make_mesh(data=2, model=4)
  return logistic.Problem(features, multi_hot(labels, CLASSES), mesh)


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_lbfgs_equals_scikit_learn(problem, l2):
  features, labels = toy(n=91)
  found = problem.solve(l2)
  theirs = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-8, max_iter=1000)
  theirs.fit(features, labels)
  p = theirs.predict_proba(features)[np.arange(len(labels)), labels]
  want = -np.log(p).mean() + l2 / 2 * np.square(theirs.coef_).sum()
  assert found.loss == pytest.approx(want, abs=1e-4)
  # The loss is known to 6e-8, which a gradient g moves by g^2 / (2 l2).
  assert found.gradient_norm**2 / (2 * l2) < 6e-8
  np.testing.assert_allclose(found.kernel, theirs.coef_.T, atol=2e-3)
  assert abs(found.bias).max() > 1e-3  # and not shrunk


def test_the_path_starts_from_the_stronger(problem):
  found = logistic.path(problem, (1e-1, 1e-2))
  assert list(found) == [1e-1, 1e-2]
  again = problem.solve(1e-2)
  assert found[1e-2].loss == pytest.approx(again.loss, abs=1e-6)


def test_sgd_tends_to_the_same_minimum(problem):
  features, labels = toy(n=91)
  l2 = 1e-1
  config = sgd.SgdConfig(lr=0.3, epochs=200, batch=91, weight_decay=l2)
  found, losses = sgd.train(features, multi_hot(labels, CLASSES), config)
  best = problem.solve(l2)
  np.testing.assert_allclose(found.kernel, best.kernel, atol=1e-3)
  assert losses[0] == pytest.approx(np.log(CLASSES))  # from a zero kernel


def test_sgd_resumes(tmp_path, monkeypatch):
  features, labels = toy()
  labels = multi_hot(labels, CLASSES)
  views = np.stack([features, features + 0.1])
  config = sgd.SgdConfig(epochs=4, warmup_epochs=1, batch=30)
  whole, losses = sgd.train(views, labels, config)

  class Killed(Exception):
    pass

  write = sgd._Kept.write

  def once(self, state, losses):
    write(self, state, losses)
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(sgd._Kept, "write", once)
    with pytest.raises(Killed):
      sgd.train(views, labels, config, folder=tmp_path)
  resumed, again = sgd.train(views, labels, config, folder=tmp_path)
  assert again == losses
  np.testing.assert_array_equal(resumed.kernel, whole.kernel)


def test_group_lasso_drops_what_says_nothing():
  features, labels = toy(n=300, d=8)  # the last five say nothing
  config = sgd.SgdConfig(lr=0.1, epochs=100, batch=300, group_lasso=0.08)
  found, _ = sgd.train(features, multi_hot(labels, CLASSES), config)
  scores = np.linalg.norm(found.kernel, axis=1)
  assert scores[:3].min() > 5 * scores[3:].max()


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: sgd.SgdConfig(lr=0), "lr must be above 0"),
    (lambda: sgd.SgdConfig(momentum=-1), "momentum must be at least 0"),
    (
      lambda: sgd.train(np.ones((2, 3)), np.ones((3, 2)), sgd.SgdConfig()),
      "features and a label, got 2 and 3",
    ),
    (
      lambda: logistic.Problem(
        np.ones((2, 3)), np.ones((3, 2)), jax.make_mesh((1,), ("data",))
      ),
      "features and a label, got 2 and 3",
    ),
    (lambda: logistic.hold_out(3, 0.01, 0), "on both sides, got 0 of 3"),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_l2_is_not_negative(problem):
  with pytest.raises(ValueError, match="l2 must be at least 0"):
    problem.solve(-1)
