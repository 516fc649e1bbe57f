"""What a training step does besides: parts, an average, a guard, freezing."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from test_train_step import (
  CFG,
  OLD_MEAN,
  RECORD,
  RUN,
  assert_close,
  first_params,
  placed,
  recorded_step,
  some_batch,
)
from test_vit_reference import some_params

from collective_mm import make_mesh
from models.optimizer import make_optimizer
from models.param_groups import ParamGroup
from models.sharding import param_specs
from models.train_step import batch_sharding, make_train_step, state_from


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(data=2, model=4)


def accumulating(remat, microbatches):
  """Metrics and gradients of a step in parts."""
  mesh = make_mesh(data=2, model=4)
  step = make_train_step(
    OLD_MEAN, RECORD, mesh, remat=remat, microbatches=microbatches
  )
  start = placed(some_params(OLD_MEAN), OLD_MEAN, RECORD, mesh)
  state, metrics = step(start, some_batch(0, padding=3))
  return metrics, jax.device_get(state.opt_state[0].trace)


@pytest.mark.parametrize(
  "remat",
  [
    pytest.param(False, id="anew", marks=pytest.mark.long),
    pytest.param(True, id="held"),
  ],
)
def test_a_step_in_parts_equals_a_whole_one(remat):
  # The parts differ in how many examples the mask keeps.
  want, want_grads = recorded_step(OLD_MEAN, "tokens", True)(
    some_batch(0, padding=3)
  )
  got, got_grads = accumulating(remat, 2)
  for name, value in got.items():
    np.testing.assert_allclose(value, want[name], rtol=5e-6, err_msg=name)
  assert_close(got_grads, want_grads, atol=2e-6 * float(want["grad_norm"]))


class Guarded:
  """A step with everything on: an average, a guard, frozen blocks."""

  def __init__(self, mesh):
    config = dataclasses.replace(
      RUN, groups=(ParamGroup(pattern="blocks/.*", freeze=True),)
    )
    self.optimizer = make_optimizer(config)
    self.start = lambda: state_from(
      first_params(), CFG, self.optimizer, mesh, ema=True
    )
    self.step = make_train_step(
      CFG,
      self.optimizer,
      mesh,
      ema_decay=0.5,
      guard=True,
      frozen=lambda name: name.startswith("blocks/"),
    )
    self.placed = lambda batch: jax.device_put(batch, batch_sharding(mesh))


@pytest.fixture(scope="module")
def guarded(mesh):
  return Guarded(mesh)


def test_the_average_follows_and_the_frozen_stay(guarded):
  state = guarded.start()
  before = jax.device_get(state.ema)
  assert_close(before, first_params(), atol=0)
  for i in range(3):
    state, metrics = guarded.step(state, guarded.placed(some_batch(i)))
    # min(0.5, (1 + t) / (10 + t)) is 0.1, 2 / 11, 0.25.
    decay = (1 + i) / (10 + i)
    params = jax.device_get(state.params)
    before = jax.tree.map(
      lambda old, new, d=decay: d * old + (1 - d) * new, before, params
    )
    assert_close(jax.device_get(state.ema), before, atol=1e-6)
  assert_close(params["blocks"], first_params()["blocks"], atol=0)
  assert np.any(params["pool"]["probe"] != first_params()["pool"]["probe"])
  assert metrics["grad_norm"] > 0
  mu = optax.tree.get(state.opt_state, "mu")
  assert not jax.tree.leaves(mu["blocks"])
  assert (
    mu["head"]["kernel"].sharding.spec
    == param_specs(CFG, make_mesh(data=2, model=4))["head"]["kernel"]
  )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_left_out(guarded, bad):
  state = guarded.start()
  state, _ = guarded.step(state, guarded.placed(some_batch(0)))
  kept = jax.device_get(state)
  batch = some_batch(1)
  batch["image"][3, 2, 1] = bad
  state, metrics = guarded.step(state, guarded.placed(batch))
  assert not np.isfinite(metrics["grad_norm"])
  got = jax.device_get(state)
  assert got.step == kept.step + 1
  assert_close(got._replace(step=0), kept._replace(step=0), atol=0)
