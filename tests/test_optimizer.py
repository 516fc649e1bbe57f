import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.optimizer import (
  OptimizerConfig,
  body_mask,
  head_mask,
  learning_rate,
  make_optimizer,
)
from models.params import init_params
from models.vit_config import get_config

# A constant learning rate, so that a step can be worked out by hand.
CONSTANT = OptimizerConfig(
  peak_lr=0.1,
  total_steps=100,
  warmup_steps=0,
  cooldown_steps=0,
  timescale=10**9,
  b1=0.9,
  b2=0.99,
  weight_decay_head=0.0,
  weight_decay_body=0.0,
)


def replace(config, **changes):
  return OptimizerConfig(**vars(config) | changes)


def one_step(config, params, grads):
  optimizer = make_optimizer(config)
  updates, state = optimizer.update(grads, optimizer.init(params), params)
  return optax.apply_updates(params, updates), state


@pytest.mark.parametrize(
  ("step", "expected"),
  [  # worked out from the formula, for the recipe of ViT-22B
    (0, 0.0),
    (5_000, 5.000e-4),
    (10_000, 1.000e-3),
    (20_000, 7.071e-4),
    (50_000, 4.472e-4),
    (100_000, 3.162e-4),
    (147_000, 2.608e-4),
    (162_000, 1.242e-4),
    (177_000, 0.0),
    (200_000, 0.0),
  ],
)
def test_schedule_of_vit_22b(step, expected):
  schedule = learning_rate(OptimizerConfig())
  # Four digits are given.
  assert float(schedule(step)) == pytest.approx(expected, rel=5e-4)
  assert float(jax.jit(schedule)(step)) == pytest.approx(expected, rel=5e-4)


def test_schedule_without_warmup_starts_at_the_peak():
  assert float(learning_rate(CONSTANT)(0)) == pytest.approx(0.1)


def test_timescale_longer_than_the_warmup_keeps_the_peak():
  config = OptimizerConfig(warmup_steps=1_000, timescale=10_000)
  schedule = learning_rate(config)
  assert float(schedule(1_000)) == pytest.approx(1e-3)
  # Decay counts from the warm-up's end: sqrt(10k / (10k + 10k)).
  assert float(schedule(11_000)) == pytest.approx(1e-3 / 2**0.5)


def test_stretched_keeps_the_shape_of_the_schedule():
  whole, short = OptimizerConfig(), OptimizerConfig().stretched(1_770)
  assert (short.warmup_steps, short.cooldown_steps) == (100, 300)
  for step in (50, 100, 900, 1_600):
    assert float(learning_rate(short)(step)) == pytest.approx(
      float(learning_rate(whole)(100 * step)), rel=1e-5
    )


def test_stretched_to_a_single_step_is_valid():
  assert OptimizerConfig().stretched(1).total_steps == 1


@pytest.mark.parametrize("variant", ["vit_tiny", "vit_b", "vit_22b"])
def test_masks_on_a_real_tree(variant):
  cfg = get_config(variant)
  params = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  head, body = head_mask(params), body_mask(params)

  assert head["head"] == {"kernel": True, "bias": False}
  assert not any(jax.tree.leaves({**head, "head": {}}))

  assert body["head"] == {"kernel": False, "bias": False}
  assert body["embed"] == {"kernel": True, "bias": False, "position": False}
  assert body["pool"]["probe"] is False
  decayed = jax.tree_util.tree_leaves_with_path({**body, "head": {}})
  for path, is_decayed in decayed:
    assert is_decayed == (path[-1].key == "kernel"), path
  # q, k, v, attention_out, mlp_in, mlp_out of the stacked blocks; as many of
  # the pooling head; the patch embedding.
  assert sum(is_decayed for _, is_decayed in decayed) == 13


def test_decay_alone_shrinks_the_kernels_by_their_own_rates():
  cfg = get_config("vit_tiny", depth=1)
  shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  params = jax.tree.map(lambda leaf: np.ones(leaf.shape, "float32"), shapes)
  config = replace(CONSTANT, weight_decay_head=3.0, weight_decay_body=0.03)
  zero = jax.tree.map(np.zeros_like, params)
  step = jax.jit(lambda params, grads: one_step(config, params, grads)[0])
  after = step(params, zero)

  for path, leaf in jax.tree_util.tree_leaves_with_path(after):
    names = [key.key for key in path]
    kept = 1.0
    if names[-1] == "kernel":
      kept = 1 - 0.1 * (3.0 if names[0] == "head" else 0.03)
    np.testing.assert_allclose(leaf, kept, rtol=1e-6, err_msg=str(names))


def test_decay_falls_with_the_learning_rate():
  config = replace(CONSTANT, weight_decay_body=1.0, cooldown_steps=100)
  optimizer = make_optimizer(config)
  params = {"embed": {"kernel": jnp.ones(1)}}
  state = optimizer.init(params)
  zero = jax.tree.map(jnp.zeros_like, params)
  for step in range(3):
    updates, state = optimizer.update(zero, state, params)
    expected = -0.1 * (100 - step) / 100
    np.testing.assert_allclose(updates["embed"]["kernel"], expected, rtol=1e-6)


def test_adam_step_by_hand():
  config = replace(CONSTANT, clip_norm=10.0)
  params = {"norm": {"scale": jnp.zeros(2)}}
  first, second = np.array([3.0, 4.0]), np.array([-1.0, 2.0])
  optimizer = make_optimizer(config)
  state = optimizer.init(params)
  for gradient in (first, second):
    grads = {"norm": {"scale": jnp.asarray(gradient)}}
    updates, state = optimizer.update(grads, state, params)
  m = 0.9 * 0.1 * first + 0.1 * second
  v = 0.99 * 0.01 * first**2 + 0.01 * second**2
  expected = -0.1 * (m / (1 - 0.9**2)) / np.sqrt(v / (1 - 0.99**2))
  np.testing.assert_allclose(updates["norm"]["scale"], expected, rtol=1e-5)


def test_gradients_are_clipped_before_the_moments():
  params = {"a": {"scale": jnp.zeros(1)}, "b": {"bias": jnp.zeros(1)}}
  grads = {"a": {"scale": jnp.array([30.0])}, "b": {"bias": jnp.array([40.0])}}
  _, state = one_step(CONSTANT, params, grads)
  moments = optax.tree.get(state, "mu")
  # The norm is 50, so that each is divided by 50; then (1 - b1) of it.
  np.testing.assert_allclose(moments["a"]["scale"], 0.1 * 0.6, rtol=1e-6)
  np.testing.assert_allclose(moments["b"]["bias"], 0.1 * 0.8, rtol=1e-6)


def test_adafactor_steps_by_hand():
  config = replace(CONSTANT, kind="adafactor", clip_norm=10.0, b2=0.25)
  params = {"norm": {"scale": jnp.zeros(2)}}
  optimizer = make_optimizer(config)
  state = optimizer.init(params)
  first, second = np.array([3.0, -4.0]), np.array([1.0, 2.0])
  for gradient in (first, second):
    grads = {"norm": {"scale": jnp.asarray(gradient)}}
    updates, state = optimizer.update(grads, state, params)
  # b2 is 1 - 1 = 0 on the first step; on the second 1 - 2**-0.8 = 0.43 > 0.25.
  v = 0.25 * first**2 + 0.75 * second**2
  m = 0.9 * 0.1 * np.sign(first) + 0.1 * second / np.sqrt(v)
  # Terms of about 0.1 in the momentum, which bfloat16 rounds to 8 bits, twice.
  np.testing.assert_allclose(
    updates["norm"]["scale"], -0.1 * m, atol=0.1 * 0.1 * 2**-7
  )


def test_adafactor_state_is_factored_and_its_momentum_bfloat16():
  params = {"embed": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}}
  config = replace(CONSTANT, kind="adafactor")
  state = make_optimizer(config).init(params)
  rows = optax.tree.get(state, "v_row")["embed"]
  columns = optax.tree.get(state, "v_col")["embed"]
  assert {rows["kernel"].shape, columns["kernel"].shape} == {(64,), (32,)}
  assert optax.tree.get(state, "v")["embed"]["bias"].shape == (32,)
  momentum = optax.tree.get(state, "ema")["embed"]
  assert {leaf.dtype for leaf in momentum.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("kind", ["adam", "adafactor"])
def test_it_minimises_a_quadratic(kind):
  config = replace(CONSTANT, kind=kind, cooldown_steps=50)
  optimizer = make_optimizer(config)
  target = jax.random.normal(jax.random.key(0), (40, 40))
  params = {"embed": {"kernel": jnp.zeros((40, 40))}}

  def loss(params):
    return jnp.mean((params["embed"]["kernel"] - target) ** 2)

  @jax.jit
  def step(params, state):
    grads = jax.grad(loss)(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  before = loss(params)
  for _ in range(100):
    params, state = step(params, state)
  assert loss(params) < 1e-2 * before


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"peak_lr": 0.0}, "peak_lr must be above 0, got 0.0"),
    ({"peak_lr": float("nan")}, "peak_lr must be above 0, got nan"),
    ({"total_steps": 0}, "total_steps must be above 0, got 0"),
    ({"timescale": -1}, "timescale must be above 0, got -1"),
    ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
    ({"weight_decay_head": -3.0}, "weight_decay_head must be at least 0"),
    ({"b1": 1.0}, r"b1 must be in \[0, 1\), got 1.0"),
    ({"b2": 1.5}, r"b2 must be in \[0, 1\), got 1.5"),
    (
      {"total_steps": 39_999},
      "at most total_steps=39999, got 10000 [+] 30000",
    ),
    ({"kind": "lion"}, "kind must be one of adam, adafactor, sgd, got 'lion'"),
    ({"schedule": "line"}, "schedule must be one of rsqrt, cosine, "),
  ],
)
def test_bad_configs_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    OptimizerConfig(**changes)
