"""Pictures of dense predictions: masks over images, depths and their errors."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure


def draw_masks(
  path: Path,
  images: np.ndarray,
  masks: np.ndarray,
  predictions: Sequence[np.ndarray],
  ignore: int,
) -> None:
  """Draws a row for each prediction: the image, and both masks over it.

  Args:
    path: of the PNG.
    images: `[N, H, W, 3]` in [-1, 1].
    masks: `[N, H, W]` labels.
    predictions: of the first images, `[H, W]` each.
    ignore: a label that is left clear.
  """
  figure, rows = _rows(len(predictions), ("image", "label", "prediction"))
  colours = matplotlib.colormaps["tab20"]
  for i, (row, found) in enumerate(zip(rows, predictions, strict=True)):
    for axis, mask in zip(row, (None, masks[i], found), strict=True):
      axis.imshow((images[i] + 1) / 2, interpolation="nearest")
      if mask is not None:
        over = colours(mask % colours.N)
        over[..., 3] = np.where(masks[i] == ignore, 0, 0.6)
        axis.imshow(over, interpolation="nearest")
  figure.savefig(path, dpi=100)


def draw_depths(
  path: Path,
  images: np.ndarray,
  depths: np.ndarray,
  valid: np.ndarray,
  predictions: Sequence[np.ndarray],
) -> None:
  """Draws image, prediction, known depth and error where it is known.

  Args:
    path: of the PNG.
    images: `[N, H, W, 3]` in [-1, 1].
    depths: `[N, H, W]`, metres.
    valid: `[N, H, W]` bool.
    predictions: of the first images, `[H, W]` each, metres.
  """
  titles = ("image", "prediction, m", "depth, m", "error, m")
  figure, rows = _rows(len(predictions), titles)
  for i, (row, found) in enumerate(zip(rows, predictions, strict=True)):
    known = np.where(valid[i], depths[i], np.nan)
    limits = {"vmin": 0, "vmax": depths[i][valid[i]].max()}
    row[0].imshow((images[i] + 1) / 2)
    shown = [
      row[1].imshow(found, cmap="viridis", **limits),
      row[2].imshow(known, cmap="viridis", interpolation="nearest", **limits),
      row[3].imshow(
        np.abs(found - known), cmap="magma", interpolation="nearest"
      ),
    ]
    for axis, mappable in zip(row[1:], shown, strict=True):
      figure.colorbar(mappable, ax=axis)
  figure.savefig(path, dpi=100)


def _rows(count, titles):
  figure = Figure(figsize=(2.4 * len(titles), 2 * count), layout="constrained")
  rows = figure.subplots(count, len(titles), squeeze=False)
  for axis in rows.flat:
    axis.set_axis_off()
  for axis, title in zip(rows[0], titles, strict=True):
    axis.set_title(title)
  return figure, rows
