import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train_step import CFG, OLD, RECORD, first_params, placed, some_batch
from test_vit_reference import some_params

from collective_mm import make_mesh
from models.compiler_step import make_compiler_step
from models.train_step import batch_sharding, make_train_step


def gradients(make, cfg, params, mesh, **options):
  """Loss and gradients of one step."""
  step = make(cfg, RECORD, mesh, **options)
  state = placed(params, cfg, RECORD, mesh)
  batch = jax.device_put(some_batch(0, padding=3), batch_sharding(mesh))
  state, metrics = step(state, batch)
  (trace, _) = state.opt_state
  return metrics, trace.trace


@pytest.mark.parametrize("data, model", [(2, 4), (8, 1)])
@pytest.mark.parametrize("remat", [False, True])
def test_the_same_step_as_ours(data, model, remat):
  mesh = make_mesh(data=data, model=model)
  params = first_params()
  ours, got = (
    gradients(make, CFG, params, mesh, remat=remat)
    for make in (make_train_step, make_compiler_step)
  )
  # float32 on both sides: sums in another order.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    got,
    ours,
  )


def test_the_block_of_the_earlier_vits():
  mesh = make_mesh(data=2, model=4)
  params = some_params(OLD)
  ours, got = (
    gradients(make, OLD, params, mesh)
    for make in (make_train_step, make_compiler_step)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    got,
    ours,
  )


def test_weights_travel_rounded():
  mesh = make_mesh(data=2, model=4)
  step = make_compiler_step(
    CFG, RECORD, mesh, compute_dtype=jnp.bfloat16, remat=True
  )
  state = placed(first_params(), CFG, RECORD, mesh)
  batch = jax.device_put(some_batch(0), batch_sharding(mesh))
  state, metrics = step(state, batch)
  assert np.isfinite(metrics["loss"])
  assert optax.tree.norm(state.opt_state[0].trace) > 0
