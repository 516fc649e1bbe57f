"""Small models whose weights and logits timm has seen; see their generator."""

from pathlib import Path

import jax
import numpy as np

from models.params import init_params
from models.vit_config import ViTConfig

DATA = Path(__file__).parent / "data" / "timm"
_SMALL = ViTConfig(
  width=16,
  depth=2,
  mlp=32,
  heads=2,
  classes=3,
  image=24,
  patch=8,
  parallel=False,
  qk_norm=False,
  attention_bias=True,
  norm_bias=True,
  head_bias_init=0.0,
)


def _small(**changes):
  return ViTConfig(**vars(_SMALL) | changes)


# By the name of their file: the model, and whether its blocks are stacked. The
# image of "map" has two pixels that fill no patch.
CASES = {
  "cls": (_small(pool=False, cls=True, gelu="exact"), False),
  "map": (_small(image=26), False),
  "mean": (_small(pool=False, gelu="exact"), True),
}


def some_params(cfg: ViTConfig, seed: int) -> dict:
  """Values that leave no bias zero and no scale one."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))

  def draw(path, leaf):
    x = rng.normal(size=leaf.shape).astype(np.float32)
    name = path[-1].key
    if name == "kernel":
      return x / np.float32(leaf.shape[-2] ** 0.5)
    return np.float32(name == "scale") + np.float32(0.3) * x

  return jax.tree_util.tree_map_with_path(draw, shapes)


def some_images(cfg: ViTConfig) -> np.ndarray:
  """Four images in [-1, 1]."""
  shape = (4, cfg.image, cfg.image, cfg.channels)
  return np.random.default_rng(7).uniform(-1, 1, shape).astype(np.float32)
