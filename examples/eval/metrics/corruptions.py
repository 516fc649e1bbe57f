"""ImageNet-C: mean accuracy, corruption errors next to AlexNet's.

The paper counts 16 corruptions; the benchmark has the 15 below.
"""

from collections.abc import Mapping, Sequence

import numpy as np

SEVERITIES = 5

# AlexNet's mean errors over the five severities, and its error on clean images:
# Hendrycks & Dietterich 2019, Appendix C; robustness_metrics
# reports/imagenet_variants.py.
ALEXNET_ERRORS: dict[str, float] = {
  "gaussian_noise": 0.886,
  "shot_noise": 0.894,
  "impulse_noise": 0.923,
  "defocus_blur": 0.820,
  "glass_blur": 0.826,
  "motion_blur": 0.786,
  "zoom_blur": 0.798,
  "snow": 0.867,
  "frost": 0.827,
  "fog": 0.819,
  "brightness": 0.565,
  "contrast": 0.853,
  "elastic_transform": 0.646,
  "pixelate": 0.718,
  "jpeg_compression": 0.607,
}
ALEXNET_CLEAN_ERROR = 0.4348


def corruption_errors(
  accuracy: Mapping[str, Sequence[float]], clean_accuracy: float
) -> dict[str, float]:
  """Summarises accuracies on all corruptions and severities.

      CE_c  = mean error of c / AlexNet's          mCE  = mean of CE_c
      rCE_c = (mean error of c - clean error) / AlexNet's same

  Args:
    accuracy: by corruption, at severities 1 to 5.
    clean_accuracy: on ImageNet itself.

  Returns:
    "accuracy" over all 15 x 5, "mce" and "relative_mce", where AlexNet has 1.

  Raises:
    ValueError: if a corruption or a severity is missing, or there are others.
  """
  if set(accuracy) != set(ALEXNET_ERRORS):
    missing = sorted(set(ALEXNET_ERRORS) - set(accuracy))
    more = sorted(set(accuracy) - set(ALEXNET_ERRORS))
    raise ValueError(
      f"ImageNet-C must have the {len(ALEXNET_ERRORS)} corruptions: "
      f"missing {', '.join(missing) or 'none'}, unknown "
      f"{', '.join(more) or 'none'}"
    )
  for name, values in accuracy.items():
    if len(values) != SEVERITIES:
      raise ValueError(
        f"{name} must have {SEVERITIES} severities, got {len(values)}"
      )
  error = {name: 1 - np.mean(values) for name, values in accuracy.items()}
  clean = 1 - clean_accuracy
  ce = [error[c] / alexnet for c, alexnet in ALEXNET_ERRORS.items()]
  relative = [
    (error[c] - clean) / (alexnet - ALEXNET_CLEAN_ERROR)
    for c, alexnet in ALEXNET_ERRORS.items()
  ]
  return {
    "accuracy": float(1 - np.mean(list(error.values()))),
    "mce": float(np.mean(ce)),
    "relative_mce": float(np.mean(relative)),
  }
