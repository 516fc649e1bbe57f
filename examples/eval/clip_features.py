"""One frozen pre-logit vector for every frame of every view of every clip."""

from pathlib import Path

import jax
import numpy as np

from examples.data.clips import Clips, DrawnClips
from examples.data.skipped import BadImage, Skipped
from examples.eval.features import extract
from models.vit_config import ViTConfig


def clip_features(
  source: Clips | DrawnClips,
  *,
  cfg: ViTConfig,
  params: dict,
  mesh: jax.sharding.Mesh,
  frames: int,
  stride: int,
  views: int,
  batch: int,
  cache: Path,
  max_bad: int = 10,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns features `[N, views, frames, D]` and labels `[N]`.

  A clip with a frame that cannot be read is left out, counted and named.

  Args:
    source: of the clips.
    cfg: the ViT's shape.
    params: its parameters.
    mesh: with the axes "data" and "model".
    frames: `T`, of a view.
    stride: from one to the next, in frames of the clip.
    views: of each clip, evenly over its length.
    batch: frames at a time.
    cache: a folder that keeps features.
    max_bad: how many clips may be left out.

  Raises:
    ValueError: if a clip is too short, or none is left.
    UsageError: if more than `max_bad` clips cannot be read.
  """
  skipped, kept = Skipped(max_bad), []

  def images():
    for i in range(len(source)):
      try:
        found = [
          source.read(
            i, cfg.image, count=frames, stride=stride, view=v, views=views
          )
          for v in range(views)
        ]
      except BadImage as error:
        skipped.add(error)
        continue
      kept.append(i)
      yield from np.concatenate(found)

  features = extract(
    cfg, params, mesh, images(), layers=("pre_logits",), batch=batch,
    cache=cache,
  )["pre_logits"]  # fmt: skip
  labels = np.asarray(source.labels)[kept]
  return features.reshape(len(kept), views, frames, -1), labels
