"""A run that continues on other devices continues as the same run."""

import jax
import numpy as np
import pytest
from weight_cases import some_params

from collective_mm import make_mesh
from examples.checkpoints import Checkpoints, restore
from examples.weights.adapt import place
from models import train_step
from models.optimizer import OptimizerConfig, make_optimizer
from models.vit_config import ViTConfig

CFG = ViTConfig(
  width=16, depth=1, mlp=32, heads=4, classes=3, image=8, channels=1, patch=4
)
OPTIMIZER = make_optimizer(OptimizerConfig())


def mesh_of(data, model):
  devices = jax.devices()[: data * model]
  return make_mesh(data=data, model=model, devices=devices)


def loss_of(params, mesh, step=train_step.make_eval_step):
  """The loss of the next step: of these parameters on a batch."""
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32),
    "label": rng.integers(0, 2, (8, 3)).astype(np.float32),
    "mask": np.ones(8, np.float32),
  }
  batch = jax.device_put(batch, train_step.batch_sharding(mesh))
  sums = step(CFG, mesh)(params, batch)
  return float(sums["loss"] / sums["count"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A checkpoint of a state on a mesh of 2 x 4, the state and its loss."""
  folder = tmp_path_factory.mktemp("run")
  mesh = mesh_of(2, 4)
  params = place(some_params(CFG, 0), CFG, mesh)
  whole = jax.NamedSharding(mesh, jax.P())
  state = train_step.TrainState(
    jax.device_put(np.int32(7), whole), params, OPTIMIZER.init(params)
  )
  state = jax.device_put(
    state, train_step.state_shardings(CFG, OPTIMIZER, mesh)
  )
  with Checkpoints(folder, keep=1) as checkpoints:
    checkpoints.save(7, state)
  return folder, state, loss_of(params, mesh)


@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (8, 1)])
def test_the_next_loss_is_the_same_on_any_mesh(saved, shape):
  folder, state, loss = saved
  mesh = mesh_of(*shape)
  like = train_step.abstract_state(CFG, OPTIMIZER, mesh)
  got = restore(folder, like)
  jax.tree.map(np.testing.assert_array_equal, got, state)
  # A sum over the batch and over features, in another order: about a hundred
  # float32 roundings of 6e-8 of numbers of order ten.
  assert loss_of(got.params, mesh) == pytest.approx(loss, rel=2e-6)
