"""Mixup (Zhang et al. 2018): pairs of images and labels, blended."""

from collections.abc import Sequence

import numpy as np


def check_pairs(rows: Sequence[int]) -> None:
  """Checks that the rows of a batch that a host reads are whole pairs.

  Raises:
    ValueError: if a row `2 k` is not followed by row `2 k + 1`.
  """
  pairs = [(row, row + 1) for row in rows[::2]]
  flat = [row for pair in pairs for row in pair]
  if list(rows) != flat or any(first % 2 for first, _ in pairs):
    raise ValueError(
      "mixup blends rows 2 k and 2 k + 1 of a batch, so that a host must read "
      f"both, got {len(rows)} rows from {rows[0]} to {rows[-1]}"
    )


def weights(
  rng: np.random.Generator, alpha: float, batch: int, *, per: str
) -> np.ndarray:
  """Draws how much of each image is its own, from Beta(alpha, alpha).

  The larger of a draw and its rest, so that an image is never mostly another's.

  Args:
    rng: to draw from.
    alpha: positive; the larger, the nearer to even.
    batch: `B`, images of the whole batch.
    per: "batch" draws one weight for all, "example" one for each.

  Returns:
    `[B]` float32 in [0.5, 1].
  """
  drawn = rng.beta(alpha, alpha, batch if per == "example" else 1)
  return np.broadcast_to(
    np.maximum(drawn, 1 - drawn).astype(np.float32), (batch,)
  )


def mix(batch: dict, weight: np.ndarray) -> dict:
  """Blends each example of a batch with the other of its pair.

      x[r] <- w[r] x[r] + (1 - w[r]) x[r ^ 1]      labels likewise

  A pair with a masked example is left as it is.

  Args:
    batch: `{"image": [B, ...], "label": [B, V], "mask": [B]}`.
    weight: `w[B]`.
  """
  mask = batch["mask"]
  other = np.arange(len(mask)) ^ 1
  weight = np.where(mask * mask[other] > 0, weight, 1).astype(np.float32)

  def blend(x):
    w = weight.reshape(-1, *[1] * (x.ndim - 1))
    return w * x + (1 - w) * x[other]

  return batch | {
    "image": blend(batch["image"]),
    "label": blend(batch["label"]),
  }
