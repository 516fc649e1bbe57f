"""Do probabilities mean what they say: ECE and its kin, NLL, Brier, scaling.

Two calibration errors are in use. The Plex and fairness tables have the ECE of
15 equal bins; the figures that follow Minderer et al. 2021 have the one of
100 equally filled bins, l1. Definitions are those of google-research/
robustness_metrics `metrics/uncertainty.py`, whose test vectors the tests hold.
"""

import dataclasses

import numpy as np
from scipy import optimize, special

from examples.eval.metrics.rows import (
  class_labels,
  class_probabilities,
  named,
  same_length,
)

_SMALLEST = 1e-7  # Keras clips probabilities there before their logarithm


@dataclasses.dataclass(frozen=True)
class Reliability:
  """What lies in each bin of confidence; an empty bin has zeros.

  Attributes:
    counts: `[bins]` rows.
    accuracy: `[bins]` share of them that is right.
    confidence: `[bins]` their mean confidence.
  """

  counts: np.ndarray
  accuracy: np.ndarray
  confidence: np.ndarray

  def error(self, norm: str = "l1") -> float:
    """Returns `sum_b n_b / N |accuracy_b - confidence_b|`, or its l2 form."""
    gaps = np.abs(self.accuracy - self.confidence)
    share = self.counts / self.counts.sum()
    if norm == "l1":
      return float(share @ gaps)
    if norm == "l2":
      return float(np.sqrt(share @ gaps**2))
    raise ValueError(f"norm must be l1 or l2, got {norm!r}")


def top_class(probs, labels) -> tuple[np.ndarray, np.ndarray]:
  """Returns the confidence `[N]` in each row's top class, and if it is right.

  Args:
    probs: `[N, K]`, or `[N]` for P(class 1).
    labels: `[N]` classes.
  """
  probs = class_probabilities(probs)
  labels = class_labels(labels, probs)
  top = probs.argmax(axis=1)
  return probs[np.arange(len(top)), top], top == labels


def reliability(probs, labels, *, bins: int = 15) -> Reliability:
  """Returns the reliability diagram over equal bins of [0, 1].

  Bins are closed on the left; a confidence of 1 falls into the last.

  Args:
    probs: `[N, K]` probabilities, or `[N]` for P(class 1).
    labels: `[N]` classes.
    bins: their number.

  Raises:
    ValueError: naming rows whose probability or label is none.
  """
  if bins < 1:
    raise ValueError(f"bins must be at least 1, got {bins}")
  confidence, right = top_class(probs, labels)
  index = np.minimum((confidence * bins).astype(int), bins - 1)
  return _binned(index, confidence, right, bins)


def expected_calibration_error(probs, labels, *, bins: int = 15) -> float:
  """Returns `sum_b n_b / N |accuracy_b - confidence_b|` (Naeini et al. 2015).

  Args:
    probs, labels, bins: as in `reliability`.

  Example:
    >>> round(expected_calibration_error([[0.2, 0.8], [0.3, 0.7]], [1, 0]), 4)
    0.45
  """
  return reliability(probs, labels, bins=bins).error()


def general_calibration_error(
  probs,
  labels,
  *,
  bins: int = 100,
  scheme: str = "adaptive",
  norm: str = "l1",
) -> float:
  """Returns the calibration error of the top class over even or filled bins.

  The defaults are those of Minderer et al. 2021. Adaptive bins hold equally
  many rows, up to one; equal confidences share a bin. Unlike in `reliability`,
  a confidence of exactly 1 lies above the last bin, in one of its own, as it
  does in robustness_metrics (`numpy.digitize`).

  Args:
    probs: `[N, K]` probabilities, or `[N]` for P(class 1).
    labels: `[N]` classes.
    bins: their number.
    scheme: "adaptive" or "even".
    norm: "l1" or "l2".

  Raises:
    ValueError: if an option is none of these, or naming rows whose probability
      or label is none.
  """
  if bins < 1:
    raise ValueError(f"bins must be at least 1, got {bins}")
  confidence, right = top_class(probs, labels)
  if scheme == "even":
    upper = np.linspace(0, 1, bins + 1)[1:]
  elif scheme == "adaptive":
    starts = np.round(np.linspace(0, len(right), bins, endpoint=False))
    starts = np.minimum(starts.astype(int), len(right) - 1)
    upper = np.append(np.sort(confidence)[starts][1:], 1.0)
  else:
    raise ValueError(f"scheme must be adaptive or even, got {scheme!r}")
  index = np.digitize(confidence, upper)
  return _binned(index, confidence, right, bins + 1).error(norm)


def negative_log_likelihood(probs, labels) -> float:
  """Returns the mean of `-log p(label)`, in nats; p is at least 1e-7.

  Args:
    probs: `[N, K]` probabilities, or `[N]` for P(class 1).
    labels: `[N]` classes.
  """
  probs = class_probabilities(probs)
  labels = class_labels(labels, probs)
  chosen = probs[np.arange(len(labels)), labels]
  return float(-np.log(np.maximum(chosen, _SMALLEST)).mean())


def soft_negative_log_likelihood(probs, soft_labels) -> float:
  """Returns the mean of `-sum_k q_k log p_k`: label uncertainty.

  Plex asks it of ReaL-H, where `q` is the distribution of the raters' answers
  (Tran et al. 2022). It is least, the entropy of `q`, at `p = q`.

  Args:
    probs: `[N, K]` probabilities.
    soft_labels: `[N, K]`; rows that no rater labelled may be all zero.

  Raises:
    ValueError: if the shapes differ, or naming rows outside [0, 1].
  """
  probs = class_probabilities(probs)
  soft = class_probabilities(soft_labels)
  if soft.shape != probs.shape:
    raise ValueError(
      f"soft labels must have the shape of the probabilities, {probs.shape}, "
      f"got {soft.shape}"
    )
  logs = np.log(np.maximum(probs, _SMALLEST))
  return float(-(soft * logs).sum(axis=1).mean())


def brier_score(probs, labels) -> float:
  """Returns the mean of `sum_k (p_k - [k = label])^2`, from 0 to 2."""
  probs = class_probabilities(probs)
  labels = class_labels(labels, probs)
  wanted = np.eye(probs.shape[1])[labels]
  return float(((probs - wanted) ** 2).sum(axis=1).mean())


def average_by_id(ids, probs, labels):
  """Averages several predictions of one image, as those of crops or members.

  Args:
    ids: `[M]`, equal for predictions of the same image.
    probs: `[M, K]`.
    labels: `[M]`, the same for the same id.

  Returns:
    `(ids[N], probs[N, K], labels[N])`, in order of their first appearance.

  Raises:
    ValueError: naming the ids with different labels.
  """
  same_length(ids=ids, probabilities=probs, labels=labels)
  probs, labels = class_probabilities(probs), np.asarray(labels)
  _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
  differ = np.unique(inverse[labels != labels[first][inverse]])
  if len(differ):
    raise ValueError(
      f"labels of one id must agree: not so in "
      f"{named(first[differ], names=ids)}"
    )
  sums = np.zeros((len(first), probs.shape[1]))
  np.add.at(sums, inverse, probs)
  means = sums / np.bincount(inverse)[:, None]
  order = np.argsort(first)
  first = first[order]
  return np.asarray(ids)[first], means[order], labels[first]


def fit_temperature(probs, labels) -> float:
  """Returns `beta = 1 / T`, which scales logits to the least cross-entropy.

      min_beta sum_i xent(beta * log(p_i + eps), label_i)

  by L-BFGS from 1 (Guo et al. 2017). Where a model is worse than chance beta
  is negative, and where it is right in every row the minimum lies at infinity:
  what returns then is where the gradient has vanished.

  Args:
    probs: `[N, K]` probabilities, or `[N]` for P(class 1).
    labels: `[N]` classes.

  Example:
    >>> round(fit_temperature([[0.2, 0.8], [0.3, 0.7]], [1, 0]), 6)
    0.41777
  """
  probs = class_probabilities(probs)
  labels = class_labels(labels, probs)
  logits = np.log(probs + np.finfo(np.float64).eps)
  chosen = logits[np.arange(len(labels)), labels]

  def cross_entropy(beta):
    scaled = beta * logits
    value = (special.logsumexp(scaled, axis=1) - beta * chosen).sum()
    expected = (special.softmax(scaled, axis=1) * logits).sum(axis=1)
    return value, (expected - chosen).sum(keepdims=True)

  found = optimize.minimize(
    cross_entropy,
    np.ones(1),
    jac=True,
    method="L-BFGS-B",
    options={"ftol": 1e-15, "gtol": 1e-10},
  )
  return float(found.x[0])


def scale_temperature(probs, beta: float) -> np.ndarray:
  """Returns `softmax(beta * log(p + eps))`, `[N, K]`."""
  logits = np.log(class_probabilities(probs) + np.finfo(np.float64).eps)
  return special.softmax(beta * logits, axis=1)


def fit_split(
  rows: int, *, percent: float = 20.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Splits rows into those that fit the temperature and those that report.

  Args:
    rows: `N`.
    percent: share that fits; 20 in the paper (Appendix H).
    seed: of `numpy.random.RandomState`, as in robustness_metrics.

  Returns:
    The indices of the two parts.

  Raises:
    ValueError: if a part would be empty.
  """
  count = round(percent * 0.01 * rows)
  if not 0 < count < rows:
    raise ValueError(
      f"both parts must have rows: {percent:g} % of {rows} rows are {count}"
    )
  order = np.random.RandomState(seed).permutation(rows)
  return order[:count], order[count:]


def _binned(index, confidence, right, bins) -> Reliability:
  counts = np.bincount(index, minlength=bins)
  filled = np.maximum(counts, 1)
  return Reliability(
    counts=counts,
    accuracy=np.bincount(index, right, bins) / filled,
    confidence=np.bincount(index, confidence, bins) / filled,
  )
