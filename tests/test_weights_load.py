import dataclasses

import jax
import numpy as np
import pytest
from weight_cases import CASES, DATA, some_params

from collective_mm import make_mesh
from examples.checkpoints import Checkpoints
from examples.usage import UsageError
from examples.weights import adapt
from examples.weights.load import load
from models.vit_config import ViTConfig

CFG = ViTConfig(
  width=16, depth=2, mlp=32, heads=4, classes=3, image=24, patch=8
)


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
  """A run of two checkpoints, with more in its state than parameters."""
  folder = tmp_path_factory.mktemp("run")
  about = {"config": {"model": dataclasses.asdict(CFG), "seed": 0}}
  with Checkpoints(folder / "checkpoints", keep=2, about=about) as writer:
    for step in (1, 2):
      params = adapt.place(some_params(CFG, step), CFG, mesh_of(2, 4))
      writer.save(step, {"params": params, "opt_state": (params, params)})
  return folder


def mesh_of(data, model):
  devices = jax.devices()[: data * model]
  return make_mesh(data=data, model=model, devices=devices)


@pytest.mark.parametrize(
  ("inside", "step"), [("", 2), ("checkpoints", 2), ("checkpoints/1", 1)]
)
def test_a_run_and_its_checkpoints(run_folder, inside, step):
  cfg, params = load(run_folder / inside)
  assert cfg == CFG
  assert_same(params, some_params(CFG, step))
  assert {type(x) for x in jax.tree.leaves(params)} == {np.ndarray}


@pytest.mark.parametrize("shape", [(4, 2), (1, 1)])
def test_onto_a_mesh(run_folder, shape):
  mesh = mesh_of(*shape)
  _, params = load(run_folder, mesh=mesh)
  assert_same(params, some_params(CFG, 2))
  kernel = params["blocks"]["q"]["kernel"]
  assert kernel.sharding.spec == jax.P(None, "data", "model")
  _, params = load(DATA / "map.npz", mesh=mesh)
  kernel = params["blocks"]["q"]["kernel"]
  assert kernel.sharding == jax.NamedSharding(
    mesh, jax.P(None, "data", "model")
  )


def test_what_holds_no_model_is_one_line(tmp_path):
  with pytest.raises(UsageError, match=f"^{tmp_path} has no finished"):
    load(tmp_path)
  (tmp_path / "weights.pkl").touch()
  with pytest.raises(UsageError, match="must be a folder, a "):
    load(tmp_path / "weights.pkl")
  with Checkpoints(tmp_path / "checkpoints", keep=1) as writer:
    writer.save(1, {"params": jax.numpy.zeros(1)})
  with pytest.raises(UsageError, match="checkpoints: no config of a model"):
    load(tmp_path)


def test_positions_are_resampled_for_another_resolution():
  cfg, params = load(DATA / "cls.npz")
  larger, adapted = adapt.at_resolution(cfg, params, 44)
  assert (larger.grid, larger.tokens) == ((5, 5), 26)
  position = adapted["embed"]["position"].reshape(5, 5, -1)
  before = params["embed"]["position"].reshape(3, 3, -1)
  np.testing.assert_array_equal(position[::2, ::2], before)
  halfway = (before[0, 0] + before[0, 1]) / 2
  np.testing.assert_allclose(position[0, 1], halfway, atol=1e-6)
  np.testing.assert_array_equal(adapted["embed"]["cls"], params["embed"]["cls"])
  with pytest.raises(ValueError, match="image=7, patch=8"):
    adapt.at_resolution(cfg, params, 7)


def test_heads_are_dropped_or_replaced_by_zeros():
  cfg = dataclasses.replace(CASES["cls"][0], pre_logits=True)
  params = some_params(cfg, 0)
  bare, without = adapt.without_head(cfg, params)
  assert (bare.classes, bare.pre_logits) == (0, False)
  assert without.keys() == params.keys() - {"head", "pre_logits"}
  cfg, new = adapt.with_new_head(cfg, params, 5, bias=-2.0)
  assert (cfg.classes, cfg.pre_logits) == (5, False)
  np.testing.assert_array_equal(new["head"]["kernel"], np.zeros((16, 5)))
  np.testing.assert_array_equal(new["head"]["bias"], np.full(5, -2.0))
