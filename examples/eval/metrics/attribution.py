"""Integrated gradients: which pixels does a score come from?"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

Gradient = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def integrated_gradients(
  value_and_gradient: Gradient,
  x: np.ndarray,
  baseline: np.ndarray,
  *,
  steps: int = 1024,
  batch: int = 32,
) -> tuple[np.ndarray, float]:
  """Returns `(x - b) * mean of df/dx` on the straight path from b to x.

      IG_i = (x_i - b_i) int_0^1 df/dx_i (b + t (x - b)) dt

  (Sundararajan et al. 2017). The path is sampled in the middle of `steps`
  equal pieces, whose error is `O(steps^-2)`; a mean over both end points, as
  in PAIR-code/saliency, is off by `O(1 / steps)`. By completeness the
  attributions sum to `f(x) - f(b)`.

  Args:
    value_and_gradient: maps points `[batch, ...]` to f of each, `[batch]`, and
      its gradient, `[batch, ...]`. It always gets `batch` points.
    x: the input.
    baseline: of the same shape; grey, 0.5 of the range, in the paper.
    steps: of the path; 1,024 in the paper.
    batch: points at once.

  Returns:
    The attributions, of the shape of `x`, and the completeness gap
    `sum(IG) - (f(x) - f(b))`.

  Raises:
    ValueError: if the shapes differ or there are too few steps or points.

  Example:
    >>> import jax
    >>> def f(p):
    ...   return 5 * p[0] + p[1] ** 2 + jnp.sin(p[2])
    >>> grad = jax.vmap(jax.value_and_grad(f))
    >>> parts, gap = integrated_gradients(
    ...   grad, jnp.array([1.0, 2, 3]), jnp.array([0.5, 1, 1]))
    >>> parts.round(2).tolist(), abs(gap) < 1e-3
    ([2.5, 3.0, -0.7], True)
  """
  x, baseline = np.asarray(x), np.asarray(baseline)
  if x.shape != baseline.shape:
    raise ValueError(
      f"baseline must have the shape of x, {x.shape}, got {baseline.shape}"
    )
  if steps < 1 or batch < 2:
    raise ValueError(
      f"steps must be at least 1 and batch 2, got steps={steps}, batch={batch}"
    )
  times = (np.arange(steps) + 0.5) / steps
  total = np.zeros(x.shape, np.float64)
  for start in range(0, steps, batch):
    some = times[start : start + batch]
    _, gradient = value_and_gradient(_path(x, baseline, some, batch))
    total += np.asarray(gradient, np.float64)[: len(some)].sum(axis=0)
  parts = (x - baseline) * total / steps
  ends, _ = value_and_gradient(_path(x, baseline, np.array([0, 1]), batch))
  first, last = np.asarray(ends, np.float64)[:2]
  return parts, float(parts.sum() - (last - first))


def _path(x, baseline, times, batch):
  """Points of the path, the batch filled up with the last one."""
  times = np.pad(times, (0, max(0, batch - len(times))), mode="edge")
  times = times.reshape(-1, *(1 for _ in x.shape))
  return jnp.asarray(baseline + times * (x - baseline), jnp.float32)
