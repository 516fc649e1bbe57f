"""Multinomial logistic regression by L-BFGS, on features all over a mesh.

    f(W, b) = mean_n xent(x_n W + b, y_n) + l2 / 2 ||W||^2

The bias is not shrunk. scikit-learn's `LogisticRegression(C)` minimises
`C N f` at `l2 = 1 / (C N)`. The descent is scipy's; value and gradient are
one jitted function, whose rows lie on all devices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

_HISTORY = 10  # pairs of steps that L-BFGS remembers
STRENGTHS = tuple(10.0**power for power in np.linspace(-6, 1, 8))


class Fit(NamedTuple):
  """A classifier and how well it was found.

  Attributes:
    kernel: `W[D, V]` float64.
    bias: `b[V]`.
    loss: the minimum reached.
    gradient_norm: largest entry of the gradient there.
    steps: iterations of L-BFGS.
  """

  kernel: np.ndarray
  bias: np.ndarray
  loss: float
  gradient_norm: float
  steps: int

  def logits(self, features: np.ndarray) -> np.ndarray:
    """Returns `[N, V]` of features `[N, D]`."""
    return features @ self.kernel + self.bias


class Problem:
  """The objective on one training set; strengths are tried one by one.

  Raises:
    ValueError: if features and labels differ in number, or there are none.
  """

  def __init__(
    self, features: np.ndarray, labels: np.ndarray, mesh: jax.sharding.Mesh
  ):
    """Puts the data on the mesh.

    Args:
      features: `[N, D]`.
      labels: `[N, V]`, one 1 a row; several share the image alike.
      mesh: whose devices take the rows.
    """
    if len(features) != len(labels) or not len(features):
      raise ValueError(
        f"every image must have features and a label, got {len(features)} and "
        f"{len(labels)}"
      )
    labels = labels / np.maximum(labels.sum(axis=1, keepdims=True), 1)
    self._shape = features.shape[1], labels.shape[1]
    padding = -len(features) % mesh.size
    rows = jax.NamedSharding(mesh, jax.P(mesh.axis_names))

    def place(x):
      # A row of zeros for a label adds nothing to the loss.
      x = np.pad(x, ((0, padding), (0, 0))).astype(np.float32)
      return jax.device_put(x, rows)

    self._data = place(features), place(labels)
    self._scale = 1 / len(features)

    @jax.jit
    @jax.value_and_grad
    def loss(weights, x, y):
      kernel, bias = weights
      with jax.default_matmul_precision("highest"):
        logits = x @ kernel + bias
      return -(jax.nn.log_softmax(logits) * y).sum() * self._scale

    self._loss = loss

  def solve(
    self, l2: float, *, start: Fit | None = None, max_steps: int = 1000
  ) -> Fit:
    """Minimises from `start`, or from zero.

    Args:
      l2: strength, at least 0.
      start: a solution for a strength nearby.
      max_steps: iterations at most.

    Raises:
      ValueError: if the strength is negative.
    """
    if not l2 >= 0:
      raise ValueError(f"l2 must be at least 0, got {l2}")
    width, classes = self._shape
    split = width * classes

    def value(flat):
      kernel, bias = flat[:split].reshape(self._shape), flat[split:]
      weights = jnp.float32(kernel), jnp.float32(bias)
      loss, grads = jax.device_get(self._loss(weights, *self._data))
      gradient = np.concatenate([g.ravel() for g in grads]).astype(np.float64)
      gradient[:split] += l2 * flat[:split]
      return float(loss) + l2 / 2 * float(flat[:split] @ flat[:split]), gradient

    first = np.zeros(split + classes)
    if start is not None:
      first = np.concatenate([start.kernel.ravel(), start.bias])
    found = scipy.optimize.minimize(
      value,
      first,
      jac=True,
      method="L-BFGS-B",
      options={
        "maxcor": _HISTORY,
        "maxiter": max_steps,
        "maxfun": 2 * max_steps,
        "gtol": 1e-6,
        "ftol": 1e-10,
      },
    )
    return Fit(
      kernel=found.x[:split].reshape(self._shape),
      bias=found.x[split:],
      loss=float(found.fun),
      gradient_norm=float(np.abs(found.jac).max()),
      steps=int(found.nit),
    )


def hold_out(
  count: int, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Splits indices at random: those to fit on, those to choose the L2 on.

  The paper holds out 20,000 images of ImageNet, about 2 %.

  Raises:
    ValueError: if one of the two would be empty.

  Example:
    >>> [len(part) for part in hold_out(100, 0.2, seed=0)]
    [80, 20]
  """
  held = round(count * share)
  if not 0 < held < count:
    raise ValueError(
      f"a hold-out of {share} must leave images on both sides, got {held} of "
      f"{count}"
    )
  order = np.random.default_rng(seed).permutation(count)
  return np.sort(order[held:]), np.sort(order[:held])


def path(
  problem: Problem, strengths: Sequence[float], max_steps: int = 1000
) -> dict[float, Fit]:
  """Solves for every strength, each from the solution of the next stronger.

  Args:
    problem: the training set.
    strengths: in any order.
    max_steps: as for `solve`.
  """
  found, start = {}, None
  for l2 in sorted(strengths, reverse=True):
    found[l2] = start = problem.solve(l2, start=start, max_steps=max_steps)
  return found
