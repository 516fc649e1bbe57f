"""The demo's ViT for dense tasks: it has learned what stands where."""

from collections.abc import Iterator

import jax
import numpy as np

from examples.data.scenes import CLASSES, draw_scene
from examples.eval import demo
from models.vit_config import ViTConfig, get_config

SIZE = 64  # pixels
_THINGS = range(2, len(CLASSES))
_LEAST = 0.01  # share of a quarter that a thing must cover to be there


def scene_config(depth: int = 4) -> ViTConfig:
  """Returns its shape: 64 tokens of 64 features."""
  return get_config(
    "vit_tiny",
    depth=depth,
    image=SIZE,
    channels=3,
    classes=4 * len(_THINGS),
    head_bias_init=-1.0,
  )


def scene_backbone(
  mesh: jax.sharding.Mesh, *, steps: int = 300, **options
) -> tuple[ViTConfig, dict]:
  """Returns the config and the parameters, trained once.

  Its labels are which kinds of things stand in which quarter of the image:
  twelve questions, none of them about a pixel.
  """
  cfg = scene_config()
  params = demo.kept("scenes", cfg, mesh, _batches(), steps=steps, **options)
  return cfg, params


def presence(mask: np.ndarray) -> np.ndarray:
  """Returns `[12]` float32: for each quarter, which kinds of things are in it.

  Args:
    mask: `[H, W]`, of `examples.data.scenes`.
  """
  half = len(mask) // 2
  quarters = [
    mask[rows, columns]
    for rows in (slice(half), slice(half, None))
    for columns in (slice(half), slice(half, None))
  ]
  return np.array(
    [(q == thing).mean() >= _LEAST for q in quarters for thing in _THINGS],
    np.float32,
  )


def _batches(batch: int = 64, first: int = 2_000_000) -> Iterator[dict]:
  """Endless batches of scenes that no task trains or is tested on."""
  while True:
    scenes = [draw_scene(first + i, SIZE) for i in range(batch)]
    first += batch
    yield {
      "image": np.stack([scene.image for scene in scenes]),
      "label": np.stack([presence(scene.mask) for scene in scenes]),
      "mask": np.ones(batch, np.float32),
    }
