import copy
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxpr_walk import equations, kept_by_forward
from test_vit_reference import some_params

from collective_mm import make_mesh
from models.loss import loss_fn, sigmoid_xent
from models.optimizer import OptimizerConfig, make_optimizer
from models.params import init_params
from models.sharding import param_specs
from models.train_step import (
  TrainState,
  batch_sharding,
  init_state,
  make_eval_step,
  make_train_step,
  state_shardings,
)
from models.vit_config import ViTConfig
from models.vit_reference import forward

P = jax.P
BATCH, STEPS = 16, 50
LOOKED_AT = (0, 10, 30, 49)  # steps whose gradients are compared
CFG = ViTConfig(
  width=32, depth=2, mlp=64, heads=4, classes=5, image=8, channels=1, patch=4
)
OLD = dataclasses.replace(
  CFG, parallel=False, qk_norm=False, attention_bias=True, norm_bias=True
)
OLD_MEAN = dataclasses.replace(OLD, pool=False)
RUN = OptimizerConfig(
  peak_lr=1e-2,
  total_steps=STEPS,
  warmup_steps=5,
  cooldown_steps=5,
  timescale=5,
)
# An optimiser whose state is the gradient.
RECORD = optax.chain(optax.trace(decay=0.0), optax.scale(0.0))
layouts = pytest.mark.parametrize("layout", ["tokens", "features"])


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(data=2, model=4)


def some_batch(seed, padding=0):
  rng = np.random.default_rng(seed)
  shape = (BATCH, CFG.image, CFG.image, CFG.channels)
  images = rng.uniform(-1, 1, shape).astype(np.float32)
  # A rule to learn: the class is the number of bright quarters.
  quarters = images.reshape(BATCH, 2, 4, 2, 4).mean(axis=(2, 4)) > 0
  labels = np.eye(CFG.classes, dtype=np.float32)[quarters.sum(axis=(1, 2))]
  mask = (np.arange(BATCH) < BATCH - padding).astype(np.float32)
  return {"image": images, "label": labels, "mask": mask}


@functools.cache
def first_params():
  return jax.jit(lambda: init_params(jax.random.key(0), CFG))()


def placed(params, cfg, optimizer, mesh):
  """The first state of a run from `params`, each device its shards."""

  def make(params):
    return TrainState(jnp.int32(0), params, optimizer.init(params))

  shardings = state_shardings(cfg, optimizer, mesh)
  return jax.jit(make, out_shardings=shardings)(params)


def recording(config):
  """The optimiser of a run, with the last gradients in its state."""
  return optax.chain(optax.trace(decay=0.0), make_optimizer(config))


def batches():
  return [some_batch(i, padding=3 if i == 7 else 0) for i in range(STEPS)]


@functools.cache
def twins_run(dtype="float32"):
  """What each step of the twin makes of its batch, and the last parameters."""
  optimizer = recording(RUN)

  def loss_of(params, batch):
    logits, out = forward(
      params, batch["image"], CFG, compute_dtype=jnp.dtype(dtype)
    )
    loss = loss_fn(logits, batch["label"], batch["mask"])
    return loss, out["max_attention_logit"]

  @jax.jit
  def step(params, opt_state, batch):
    grad = jax.value_and_grad(loss_of, has_aux=True)
    (loss, max_logit), grads = grad(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    metrics = {
      "loss": loss,
      "grad_norm": optax.tree.norm(grads),
      "max_attention_logit": max_logit,
    }
    return optax.apply_updates(params, updates), opt_state, metrics

  params, history, gradients = first_params(), [], {}
  opt_state = jax.jit(optimizer.init)(params)
  for i, batch in enumerate(batches()):
    params, opt_state, metrics = step(params, opt_state, batch)
    history.append(jax.device_get(metrics))
    if i in LOOKED_AT:
      gradients[i] = jax.device_get(opt_state[0].trace)
  return history, gradients, jax.device_get(params)


def sharded_run(mesh, **options):
  """The same of the sharded model, and how many steps its state counts."""
  optimizer = recording(RUN)
  state = placed(first_params(), CFG, optimizer, mesh)
  step = make_train_step(CFG, optimizer, mesh, **options)
  history, gradients = [], {}
  for i, batch in enumerate(batches()):
    state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
    history.append(jax.device_get(metrics))
    if i in LOOKED_AT:
      gradients[i] = jax.device_get(state.opt_state[0].trace)
  return history, gradients, jax.device_get(state.params), int(state.step)


# As ViT-22B is trained, and the paper's layout.
OPTIMISED = {
  "layout": "tokens",
  "schedule": ("two_way", "async"),
  "remat": True,
}


@pytest.mark.parametrize(
  "options",
  [
    pytest.param(OPTIMISED, id="tokens"),
    pytest.param({"layout": "features"}, id="features", marks=pytest.mark.long),
  ],
)
def test_fifty_steps_equal_the_twins(mesh, options):
  want_history, want_gradients, want = twins_run()
  history, gradients, got, steps = sharded_run(mesh, **options)
  for i, (metrics, of_twin) in enumerate(
    zip(history, want_history, strict=True)
  ):
    assert metrics.keys() == of_twin.keys()
    for name, value in metrics.items():
      np.testing.assert_allclose(  # 40 units in the last place
        value, of_twin[name], rtol=5e-6, err_msg=f"{name} of step {i}"
      )
  for i, grads in gradients.items():
    norm = float(want_history[i]["grad_norm"])
    assert_close(grads, want_gradients[i], atol=5e-6 * norm)
  assert steps == STEPS
  assert history[-1]["loss"] < history[0]["loss"] / 2  # it did train

  # Softmax is blind to it, so Adam divides rounding errors by each other.
  got, want = (copy.deepcopy(tree) for tree in (got, want))
  del got["pool"]["k"]["bias"], want["pool"]["k"]["bias"]
  # Parameters are of order one, and moved by up to 50 times 0.01, each time by
  # a quotient of gradients: 80 units in the last place.
  assert_close(got, want, atol=1e-5)


@pytest.mark.long
def test_fifty_steps_in_bfloat16_are_as_near_float32_as_the_twins(mesh):
  exact, exact_gradients, _ = twins_run()
  _, rounded_gradients, _ = twins_run("bfloat16")
  history, gradients, _, _ = sharded_run(
    mesh, compute_dtype=jnp.bfloat16, **OPTIMISED
  )

  want = np.array([float(m["loss"]) for m in exact])
  got = np.array([float(m["loss"]) for m in history])
  error = np.sqrt(np.mean((got / want - 1) ** 2))
  # A loss is a mean over images and classes of numbers that some ten roundings
  # of 2^-9 made: all in all no more than one of 2^-8, and not float32's either.
  assert 1e-4 < error < 2**-8

  off = {i: distance(g, exact_gradients[i]) for i, g in gradients.items()}
  # Of the same parameters: sums that travel a ring of four are rounded three
  # times more, which makes 1.5 times the twin's error (see test_vit.py).
  assert off[0] < 1.5 * distance(rounded_gradients[0], exact_gradients[0])
  # Then Adam moves parameters apart, by a hundredth of 0.01 a step.
  assert max(off.values()) < 2**-5


def distance(got, want):
  """The norm of the difference of two trees, relative to the second's."""
  difference = jax.tree.map(lambda a, b: a - b, got, want)
  return float(optax.tree.norm(difference) / optax.tree.norm(want))


def assert_close(got, want, atol):
  def compare(path, a, b):
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)

  jax.tree_util.tree_map_with_path(compare, got, want)


@functools.cache
def recorded_step(cfg, layout, remat):
  """A step that returns its metrics and its gradients."""
  mesh = make_mesh(data=2, model=4)
  step = make_train_step(cfg, RECORD, mesh, layout=layout, remat=remat)

  def run(batch):
    state, metrics = step(placed(some_params(cfg), cfg, RECORD, mesh), batch)
    return metrics, jax.device_get(state.opt_state[0].trace)

  return run


# Those of the ViT-22B block over tokens are in the fifty steps; test_vit.py has
# the earlier block over features too.
@pytest.mark.parametrize(
  ("cfg", "layout", "remat"),
  [
    pytest.param(CFG, "features", False, id="22b-features"),
    pytest.param(
      OLD, "features", False, id="pool-features", marks=pytest.mark.long
    ),
    pytest.param(OLD_MEAN, "tokens", True, id="mean-tokens-remat"),
  ],
)
def test_gradients_equal_the_twins(cfg, layout, remat):
  batch = some_batch(0, padding=3)

  @jax.jit
  def twin(params):
    def loss_of(params):
      logits, _ = forward(params, batch["image"], cfg)
      return loss_fn(logits, batch["label"], batch["mask"])

    loss, grads = jax.value_and_grad(loss_of)(params)
    return loss, optax.tree.norm(grads), grads

  loss, norm, want = twin(some_params(cfg))
  metrics, got = recorded_step(cfg, layout, remat)(batch)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=5e-6)
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=5e-6)
  assert_close(got, want, atol=2e-6 * float(norm))


def test_padding_does_not_count():
  run = recorded_step(OLD_MEAN, "tokens", True)
  batch = some_batch(0, padding=3)
  changed = batch | {
    name: np.concatenate([batch[name][:-3], 1 - batch[name][-3:]])
    for name in ("image", "label")
  }
  (metrics, grads), (metrics2, grads2) = run(batch), run(changed)
  for name in ("loss", "grad_norm"):
    np.testing.assert_array_equal(metrics[name], metrics2[name])
  assert_close(grads, grads2, atol=0)

  all_real, _ = run(batch | {"mask": np.ones_like(batch["mask"])})
  assert abs(all_real["loss"] - metrics["loss"]) > 1e-3


def test_a_batch_of_padding_alone_is_worth_nothing():
  metrics, grads = recorded_step(OLD_MEAN, "tokens", True)(
    some_batch(0, padding=BATCH)
  )
  assert metrics["loss"] == metrics["grad_norm"] == 0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_evaluation_sums_what_the_mask_keeps(mesh):
  batch, params = some_batch(0, padding=3), some_params(CFG)
  got = make_eval_step(CFG, mesh)(params, batch)
  logits, _ = jax.jit(forward, static_argnames="cfg")(
    params, batch["image"], CFG
  )
  kept = BATCH - 3
  right = logits.argmax(axis=1) == batch["label"].argmax(axis=1)
  want = {
    "loss": sigmoid_xent(logits, batch["label"])[:kept].sum(),
    "correct": right[:kept].sum(),
    "count": kept,
  }
  assert 0 < want["correct"] < kept
  assert {leaf.dtype for leaf in got.values()} == {np.dtype("float32")}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-6), got, want
  )


def specs_of(shardings):
  return jax.tree.map(lambda sharding: sharding.spec, shardings)


def test_the_moments_of_adam_lie_as_their_parameters_do(mesh):
  shardings = state_shardings(CFG, make_optimizer(RUN), mesh)
  specs = param_specs(CFG, mesh)
  assert specs_of(shardings.params) == specs
  for moment in ("mu", "nu"):
    assert specs_of(optax.tree.get(shardings.opt_state, moment)) == specs
  assert shardings.step.spec == P()


def test_only_the_factored_moments_of_adafactor_lie_whole(mesh):
  optimizer = make_optimizer(dataclasses.replace(RUN, kind="adafactor"))
  shardings = state_shardings(CFG, optimizer, mesh).opt_state
  specs = param_specs(CFG, mesh)
  assert specs_of(optax.tree.get(shardings, "ema")) == specs
  factored = optax.tree.get(shardings, "FactoredState")
  whole = jax.tree.map(lambda _: P(), specs)
  assert specs_of(factored.v_row) == specs_of(factored.v_col) == whole
  unfactored = specs_of(factored.v)
  for layer in ("q", "mlp_in"):
    assert unfactored["blocks"][layer]["kernel"] == P()
  assert unfactored["blocks"]["mlp_in"]["bias"] == P(None, "model")
  assert unfactored["head"]["kernel"] == specs["head"]["kernel"]  # 5 columns

  shapes = jax.eval_shape(
    lambda: optimizer.init(init_params(jax.random.key(0), CFG))
  )
  # Raises unless the mesh divides every dim.
  jax.tree.map(lambda s, leaf: s.shard_shape(leaf.shape), shardings, shapes)


def test_the_start_is_sharded_and_the_same_on_every_mesh(mesh):
  optimizer = make_optimizer(RUN)
  state = init_state(jax.random.key(0), CFG, optimizer, mesh)
  for leaf, sharding in zip(
    jax.tree.leaves(state),
    jax.tree.leaves(state_shardings(CFG, optimizer, mesh)),
    strict=True,
  ):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
  jax.tree.map(np.testing.assert_array_equal, state.params, first_params())
  assert state.step == 0


@layouts
@pytest.mark.parametrize("cfg", [CFG, OLD], ids=["22b", "earlier"])
def test_backward_keeps_and_gathers_no_whole_activation(mesh, cfg, layout):
  step = make_train_step(cfg, RECORD, mesh, layout=layout, schedule="two_way")
  params = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  opt_state = jax.eval_shape(RECORD.init, params)
  jaxpr = jax.make_jaxpr(step)(TrainState(0, params, opt_state), some_batch(0))
  over_model = [
    (eqn.primitive.name, eqn.invars[0].aval.shape)
    for eqn in equations(jaxpr)
    if eqn.primitive.name in ("all_gather", "reduce_scatter")
    and "model" in eqn.params["axis_name"]
  ]
  # The paper's layout begins with the raw images of the whole ring.
  images = (BATCH // 8, cfg.image, cfg.image, cfg.channels)
  expected = {"tokens": [], "features": [("all_gather", images)]}
  assert over_model == expected[layout]

  kept = [math.prod(shape) for shape in kept_by_forward(jaxpr)]
  whole = BATCH // 2 * cfg.tokens * cfg.width  # of one device's data group
  assert whole // 4 in kept  # the shards, as always
  assert max(kept) < whole
