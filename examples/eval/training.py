"""Trains any parameters by any loss over the mesh, and goes on where it was."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from examples.checkpoints import Checkpoints, restore

_EXAMPLES = jax.P(("data", "model"))


class State(NamedTuple):
  """What a training carries from step to step.

  Attributes:
    step: int32 scalar, steps done.
    params: the tree that is trained.
    opt_state: the optimiser's.
    losses: `[steps]` float32, of the steps done.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  losses: jax.Array


def train(
  loss: Callable[[Any, Any, dict], jax.Array],
  params: Any,
  specs: Any,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  batch_of: Callable[[int], dict],
  *,
  steps: int,
  frozen: Any = (),
  frozen_specs: Any = (),
  folder: Path | None = None,
  save_every: int = 500,
  title: str = "train",
) -> tuple[Any, np.ndarray]:
  """Takes `steps` steps down the loss.

  Args:
    loss: `loss(params, frozen, batch)`, called inside `jax.shard_map` with this
      device's shards and rows; a scalar that is the same on every device.
    params: what to start from, whole.
    specs: the `PartitionSpec` of each.
    optimizer: any of optax's.
    mesh: with the axes "data" and "model".
    batch_of: the batch of a step, which depends on its number alone; leading
      dims are divided over all devices.
    steps: of the whole training.
    frozen: a tree without gradients: a teacher, a locked tower.
    frozen_specs: of it.
    folder: for checkpoints; the same call goes on from the newest one.
    save_every: steps between two; the last step has one too.
    title: of the progress bar.

  Returns:
    The trained parameters on the mesh, and the loss of every step.

  Raises:
    FloatingPointError: if the last loss is not finite.
  """
  shardings = _shardings(optimizer, params, specs, mesh)
  place = jax.NamedSharding(mesh, _EXAMPLES)
  frozen = jax.device_put(
    frozen, jax.tree.map(lambda s: jax.NamedSharding(mesh, s), frozen_specs)
  )

  @jax.shard_map(
    mesh=mesh,
    in_specs=(specs, frozen_specs, _EXAMPLES),
    out_specs=(jax.P(), specs),
  )
  def gradients(params, frozen, batch):
    return jax.value_and_grad(lambda p: loss(p, frozen, batch))(params)

  def step(state, frozen, batch):
    value, grads = gradients(state.params, frozen, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return State(
      state.step + 1,
      optax.apply_updates(state.params, updates),
      opt_state,
      state.losses.at[state.step].set(value),
    )

  step = jax.jit(step, donate_argnums=0, out_shardings=shardings)

  def first(params):
    return State(jnp.int32(0), params, optimizer.init(params), jnp.zeros(steps))

  state = None
  if folder is not None and _has_steps(folder):
    like = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      jax.eval_shape(first, params),
      shardings,
    )
    state = restore(folder, like)
  if state is None:
    placed = jax.device_put(params, shardings.params)
    # A copy, since the steps give their state away.
    state = jax.jit(first, out_shardings=shardings)(placed)
  start = int(state.step)
  bar = tqdm.tqdm(
    range(start, steps), initial=start, total=steps, unit="step", desc=title,
    disable=None, leave=False,
  )  # fmt: skip
  with contextlib.ExitStack() as stack:
    keeper = None
    if folder is not None:
      keeper = stack.enter_context(Checkpoints(folder, 1))
    for i in bar:
      batch = jax.device_put(batch_of(i), place)
      jax.block_until_ready(state.step)  # one step in flight
      state = step(state, frozen, batch)
      if (i + 1) % save_every and i + 1 != steps:
        continue
      bar.set_postfix(loss=f"{float(state.losses[i]):.3f}", refresh=False)
      if keeper is not None:
        keeper.save(i + 1, state)
  losses = np.asarray(state.losses)
  if not np.isfinite(losses[-1]):
    raise FloatingPointError(f"{title}: the loss is {losses[-1]} at the end")
  return state.params, losses


def _shardings(optimizer, params, specs, mesh) -> State:
  """Where the state lies: moments as their parameters do, the rest whole."""
  opt_specs = optax.tree_utils.tree_map_params(
    optimizer,
    lambda leaf, spec, param: spec if leaf.shape == param.shape else jax.P(),
    jax.eval_shape(optimizer.init, params),
    specs,
    params,
    transform_non_params=lambda _: jax.P(),
  )
  return jax.tree.map(
    lambda spec: jax.NamedSharding(mesh, spec),
    State(jax.P(), specs, opt_specs, jax.P()),
  )


def _has_steps(folder: Path) -> bool:
  """Whether a checkpoint was finished there."""
  return folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())
