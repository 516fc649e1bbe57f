"""The demo's ViT for dense tasks: it has learned where things stand."""

from pathlib import Path

import jax
import numpy as np

from examples.data.scenes import draw_clip, draw_scene
from examples.eval import demo
from examples.eval.dense_decoders import segmenter
from examples.eval.dense_training import Recipe, fit_whole
from examples.weights import tensors
from models.params import init_params
from models.vit_config import ViTConfig, get_config

SIZE = 64  # pixels
_FIRST_SEED = 2_000_000  # of images that no task trains or is tested on
_CELLS = 4  # a side of the image, for the question where
_CLASSES = 2 + _CELLS**2  # wall, floor, or a thing in one of the cells


def scene_backbone(
  mesh: jax.sharding.Mesh,
  *,
  steps: int = 200,
  images: int = 1024,
  folder: Path = demo.FOLDER,
) -> tuple[ViTConfig, dict]:
  """Returns a small ViT and its parameters, trained once and kept.

  It has been asked of each pixel whether it is wall, floor or a thing, and of a
  thing in which sixteenth of the image; not what kind of thing or how far. Half
  of its images are scenes, half single frames of clips.
  """
  cfg = get_config(
    "vit_tiny", image=SIZE, channels=3, classes=0, pool=False, depth=4
  )
  path = folder / f"scenes-{steps}-{images}.safetensors"
  if path.exists():
    return tensors.read(path)
  print(f"training the demo's model once, {steps} steps: {path}")
  pictures, masks = _lessons(images)
  decoder = segmenter(
    "linear", jax.random.key(0), cfg, classes=_CLASSES, ignore=255
  )
  recipe = Recipe(steps=steps, batch=32, lr=3e-3, warmup=steps // 10, clip=1.0)
  params, _ = fit_whole(
    decoder,
    cfg,
    init_params(jax.random.key(0), cfg),
    pictures,
    {"mask": masks},
    mesh,
    recipe,
  )
  params = jax.device_get(params)
  folder.mkdir(parents=True, exist_ok=True)
  tensors.write(path, cfg, params)
  return cfg, params


def _lessons(count: int) -> tuple[np.ndarray, np.ndarray]:
  """Images `[N, H, W, 3]` and what each pixel is, `[N, H, W]`."""
  pictures, masks = [], []
  for i in range(count // 2):
    scene = draw_scene(_FIRST_SEED + i, SIZE)
    clip = draw_clip(_FIRST_SEED + i, SIZE, 8)
    frame = i % 8
    pictures += [scene.image, clip.frames[frame]]
    masks += [placed(scene.mask), placed(2 * clip.inside[frame])]
  return np.stack(pictures), np.stack(masks)


def placed(mask: np.ndarray) -> np.ndarray:
  """Returns 0 for wall, 1 for floor, 2 and up for things by their cell.

  Args:
    mask: `[H, W]`, of `examples.data.scenes`.
  """
  cells = np.arange(len(mask)) * _CELLS // len(mask)
  cell = cells[:, None] * _CELLS + cells
  return np.where(mask < 2, mask, 2 + cell).astype(np.uint8)
