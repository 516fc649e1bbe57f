"""The tokenizer, resumable training and a text tower's files."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from collective_mm import make_mesh
from examples.eval import lit_tower, tokenizer, training
from examples.eval.adapt import adapted
from examples.usage import UsageError
from models.params import init_params
from models.text_tower import TextConfig, init_text
from models.vit_config import ViTConfig

TEXTS = [f"a {c} {s}" for c in ("red", "blue") for s in ("ring", "star")] * 3


@pytest.fixture(scope="module")
def words():
  return tokenizer.train(TEXTS, 40)


def test_a_tokenizer_pads_cuts_and_ends(words):
  ids = words(["a red ring", "A RED RING", "", "star " * 30], 9)
  assert ids.shape == (4, 9) and ids.dtype == np.int32
  np.testing.assert_array_equal(ids[0], ids[1])  # lower case
  assert ids[2].tolist() == [tokenizer.END] + [tokenizer.PAD] * 8
  assert ids[3, -1] == tokenizer.END
  assert words.text(words(["a red ring"], 16)[0]) == "a red ring"
  assert ids.max() < words.vocabulary <= 40


def test_a_tokenizer_needs_texts():
  with pytest.raises(ValueError, match="at least one text, got none"):
    tokenizer.train([], 40)


def test_training_goes_on_bit_for_bit(tmp_path):
  mesh = make_mesh(data=2, model=4)
  x = np.random.default_rng(0).standard_normal((6, 8, 3)).astype(np.float32)

  def loss(params, frozen, batch):
    y = batch["x"] @ params["w"] - frozen
    return jax.lax.pmean(jnp.square(y).mean(), ("data", "model"))

  def run(until, **options):
    def batch_of(step):
      if step == until:
        raise KeyboardInterrupt
      return {"x": x[step]}

    return training.train(
      loss, {"w": np.zeros((3, 2), np.float32)}, {"w": jax.P()},
      optax.adam(0.1), mesh, batch_of, steps=6, frozen=np.float32(1),
      frozen_specs=jax.P(), save_every=2, **options,
    )  # fmt: skip

  whole, losses = run(None)
  with pytest.raises(KeyboardInterrupt):
    run(5, folder=tmp_path)
  resumed, again = run(None, folder=tmp_path)
  np.testing.assert_array_equal(again, losses)
  np.testing.assert_array_equal(resumed["w"], whole["w"])
  assert losses[-1] < losses[0]


def test_a_tower_must_fit_the_images(tmp_path, words):
  cfg = TextConfig(
    width=8, depth=1, mlp=8, heads=1, vocabulary=words.vocabulary, embedding=4,
    tokens=4,
  )  # fmt: skip
  mesh = make_mesh(data=1, model=1, devices=jax.devices()[:1])
  params = init_text(jax.random.key(0), cfg)
  lit_tower.Tower(cfg, params, words, mesh).save(tmp_path)
  tower = lit_tower.load_tower(tmp_path, mesh, 4)
  jax.tree.map(np.testing.assert_array_equal, tower.params, params)
  with pytest.raises(UsageError, match="have 4 features, the image model's wi"):
    lit_tower.load_tower(tmp_path, mesh, 6)
  with pytest.raises(UsageError, match=r"must hold tower\.json"):
    lit_tower.load_tower(tmp_path / "none", mesh, 4)
  config = lit_tower.LitConfig(text=cfg, steps=1, batch=8)
  with pytest.raises(ValueError, match="width of the image features, 5, got 4"):
    lit_tower.train_tower(
      config, np.zeros((8, 5)), lambda row: TEXTS, words, mesh
    )


def test_adapting_resamples_positions_and_empties_the_head():
  cfg = ViTConfig(width=8, depth=1, mlp=8, heads=1, classes=3, image=28)
  params = jax.device_get(init_params(jax.random.key(0), cfg))
  new, found = adapted(cfg, params, 5, 28)  # the grids match: the identity
  np.testing.assert_array_equal(
    found["embed"]["position"], params["embed"]["position"]
  )
  assert not found["head"]["kernel"].any()
  assert found["head"]["kernel"].shape == (8, 5)
  # A constant stays one; patches of 14 leave 6 of 384 pixels over.
  params["embed"]["position"] = np.full_like(params["embed"]["position"], 2)
  new, found = adapted(cfg, params, 5, 384)
  assert new.grid == (27, 27)
  np.testing.assert_allclose(found["embed"]["position"], np.full((729, 8), 2))
  with pytest.raises(ValueError, match="at least one patch: image=13"):
    adapted(cfg, params, 5, 13)
