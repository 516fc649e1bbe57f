import dataclasses

import jax
import numpy as np
import pytest

from collective_mm import make_mesh
from models.params import count_params
from models.text_tower import ShardedText, TextConfig, init_text, vit_g_text
from models.vit_reference import forward

P = jax.P
CFG = TextConfig(
  width=16, depth=2, mlp=32, heads=4, vocabulary=11, embedding=8, tokens=4
)


@pytest.mark.parametrize("layout", ["tokens", "features"])
def test_equals_the_twin_on_one_hot_pixels(layout):
  params = init_text(jax.random.key(0), CFG)
  ids = np.random.default_rng(0).integers(0, 11, (8, 4)).astype(np.int32)
  mesh = make_mesh(data=2, model=4)
  tower = ShardedText(CFG, mesh, layout=layout)
  rows = P(("data", "model"))
  got = jax.jit(
    jax.shard_map(
      lambda params, ids: tower(params, ids)[0],
      mesh=mesh,
      in_specs=(tower.specs, rows),
      out_specs=rows,
    )
  )(params, ids)
  pixels = np.eye(11, dtype=np.float32)[ids].reshape(8, 2, 2, 11)
  want, _ = forward(params, pixels, CFG.vit)
  # As in test_vit: values of order one, some tens of roundings of 6e-8.
  np.testing.assert_allclose(got, want, rtol=5e-6, atol=5e-6)
  assert np.asarray(want).std() > 0.1  # the projection is drawn


def test_the_papers_tower_has_the_size_of_vit_g():
  cfg = vit_g_text(32_000, 6144)
  assert (cfg.vit.width, cfg.vit.depth) == (1408, 40)
  assert (cfg.vit.mlp, cfg.vit.heads, cfg.vit.tokens) == (6144, 16, 16)
  # 40 blocks of 4 D^2 + 2 D F in the matmuls, as ViT-g itself.
  assert count_params(cfg.vit, "matmul") == 40 * (4 * 1408**2 + 2 * 1408 * 6144)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tokens": 15}, "tokens must be a square number, got 15"),
    ({"embedding": 0}, "embedding must be at least 1, got 0"),
    ({"heads": 3}, "heads must divide width"),
  ],
)
def test_bad_configs(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CFG, **change)
