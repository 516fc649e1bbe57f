import dataclasses

import jax
import numpy as np
import pytest

from examples.leaves import named
from examples.weights import names
from models.params import init_params
from models.vit_config import get_config


def leaves_of(cfg):
  """Leaves of the right shapes, which take no memory."""
  shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  return {
    name: np.broadcast_to(np.float32(0), x.shape)
    for name, x in named(shapes).items()
  }


@pytest.mark.parametrize("name", ["vit_s", "vit_b", "vit_l", "vit_g"])
@pytest.mark.parametrize(
  "changes",
  [
    {"classes": 1000, "pool": False, "cls": True},
    {"classes": 21_843, "pool": False, "cls": True, "pre_logits": True},
    {"classes": 0},
  ],
)
def test_shapes_tell_the_public_sizes(name, changes):
  cfg = get_config(name, **changes)
  got = names.inferred(
    leaves_of(cfg), heads=cfg.heads, patch=cfg.patch, channels=3, gelu="tanh"
  )
  assert got == cfg


def test_a_config_survives_json():
  cfg = get_config("vit_22b")
  assert names.config_from(names.config_fields(cfg)) == cfg
  with pytest.raises(ValueError, match="not the config of a ViT"):
    names.config_from(dataclasses.asdict(cfg) | {"weird": 1})
