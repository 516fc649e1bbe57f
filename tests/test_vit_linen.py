import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

from test_vit_reference import CFG, OLD, some_images, some_params

from models.vit_reference import forward
from profiling.vit_linen import ViT, to_linen


@pytest.mark.parametrize("cfg", [CFG, OLD], ids=["22b", "earlier"])
def test_equals_the_reference(cfg):
  params, images = some_params(cfg), some_images(cfg)
  want, _ = jax.jit(forward, static_argnames="cfg")(params, images, cfg)
  model = ViT(cfg, jnp.float32, remat=cfg is OLD)
  got = jax.jit(model.apply)(to_linen(params, cfg), images)
  # Values of order one, float32 rounding of 6e-8, some tens of operations.
  np.testing.assert_allclose(got, want, rtol=5e-6, atol=5e-6)


def test_the_variables_are_those_that_flax_would_draw():
  model = ViT(OLD, jnp.float32)
  images = some_images(OLD)
  drawn = jax.eval_shape(model.init, jax.random.key(0), images)
  taken = to_linen(some_params(OLD), OLD)
  assert jax.tree.map(jnp.shape, taken) == jax.tree.map(jnp.shape, drawn)


def test_what_it_does_not_know_is_refused():
  cfg = dataclasses.replace(CFG, pool=False, cls=True)
  with pytest.raises(ValueError, match=r"no class token .* cfg.cls=True"):
    to_linen({}, cfg)


def test_flax_is_imported_by_this_method_alone():
  code = "import sys, profiling.vit_methods; sys.exit('flax' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)
