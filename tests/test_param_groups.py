import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.optimizer import OptimizerConfig, learning_rate, make_optimizer
from models.param_groups import ParamGroup, check_groups, claimed, is_frozen

PARAMS = {
  "blocks": {"q": {"kernel": jnp.ones((2, 3))}},
  "head": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
}
HEAD = ParamGroup(pattern="head/.*", lr=10.0, weight_decay=0.5)
FROZEN = ParamGroup(pattern="blocks/.*", freeze=True)
# A constant rate, so that a step can be worked out by hand.
CONFIG = OptimizerConfig(
  kind="sgd",
  schedule="constant",
  peak_lr=0.1,
  total_steps=100,
  warmup_steps=0,
  cooldown_steps=0,
  b1=0.0,
  clip_norm=1e9,
  weight_decay_head=3.0,
  weight_decay_body=0.25,
)


def configured(*groups, **changes):
  return OptimizerConfig(**vars(CONFIG) | {"groups": groups} | changes)


def step(config, grad=1.0):
  """The parameters after one step of the gradient `grad` everywhere."""
  optimizer = make_optimizer(config)
  grads = jax.tree.map(lambda p: jnp.full_like(p, grad), PARAMS)
  state = optimizer.init(PARAMS)
  updates, state = jax.jit(optimizer.update)(grads, state, PARAMS)
  after = optax.apply_updates(PARAMS, updates)
  return jax.tree.map(lambda x: float(x.ravel()[0]), after), state


def test_a_group_has_its_own_rate_and_decay():
  after, _ = step(configured(HEAD))
  # p - lr * (g + decay * p), all of p and g one.
  assert after["blocks"]["q"]["kernel"] == pytest.approx(1 - 0.1 * 1.25)
  # The group decays the bias as well, and the head's own decay is out.
  for name in ("kernel", "bias"):
    assert after["head"][name] == pytest.approx(1 - 1.0 * 1.5)


def test_without_groups_the_head_has_its_own_decay():
  after, _ = step(configured())
  assert after["blocks"]["q"]["kernel"] == pytest.approx(1 - 0.1 * 1.25)
  assert after["head"]["kernel"] == pytest.approx(1 - 0.1 * 4)
  assert after["head"]["bias"] == pytest.approx(1 - 0.1)


def test_the_frozen_stay_have_no_state_and_no_part_in_the_norm():
  after, state = step(configured(FROZEN, clip_norm=4.0))
  assert after["blocks"]["q"]["kernel"] == 1
  # 16 trained numbers, whose gradient has norm 4: not clipped.
  assert after["head"]["bias"] == pytest.approx(0.9)
  momenta = [x.shape for x in jax.tree.leaves(state) if x.ndim]
  assert sorted(momenta) == [(3, 4), (4,)]


def test_the_first_group_that_matches_claims():
  groups = (FROZEN, ParamGroup(pattern=".*/kernel"))
  assert claimed("blocks/q/kernel", groups) == 0
  assert claimed("head/kernel", groups) == 1
  assert claimed("head/bias", groups) is None
  assert claimed("the head/kernel/too", groups) is None
  assert is_frozen("blocks/q/kernel", groups)
  assert not is_frozen("head/kernel", groups)
  assert not is_frozen("head/bias", groups)


def test_a_group_has_its_own_schedule():
  group = ParamGroup(
    pattern="head/.*", lr=2.0, schedule="cosine", warmup_steps=20
  )
  config = configured(group, warmup_steps=10)
  rate = learning_rate(config, group)
  # Half of the way up; at the peak; half of the way down; at the end.
  for at, expected in ((10, 0.1), (20, 0.2), (60, 0.1), (100, 0.0)):
    assert float(rate(at)) == pytest.approx(expected, abs=1e-7)
  assert float(learning_rate(config)(5)) == pytest.approx(0.05)
  assert float(learning_rate(config)(99)) == pytest.approx(0.1)


def test_cooldown_ends_a_constant_rate():
  rate = learning_rate(configured(cooldown_steps=10))
  np.testing.assert_allclose(
    [rate(90), rate(95), rate(100)], [0.1, 0.05, 0], atol=1e-7
  )


@pytest.mark.parametrize(
  ("groups", "message"),
  [
    (
      (ParamGroup(pattern="heads/kernel"),),
      "pattern 'heads/kernel' must be the whole path of a parameter; the "
      "nearest is 'head/kernel'",
    ),
    (
      (ParamGroup(pattern=".*"), HEAD),
      "pattern 'head/.*' must claim a parameter: groups before it claim all",
    ),
    (
      (ParamGroup(pattern=".*", freeze=True),),
      "groups must leave a parameter to train, all are frozen",
    ),
  ],
)
def test_groups_that_cannot_be(groups, message):
  with pytest.raises(ValueError, match=message.replace(".*", r"\.\*")):
    check_groups(groups, PARAMS)


def test_groups_that_can_be():
  check_groups((), PARAMS)
  check_groups((FROZEN, HEAD), PARAMS)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"pattern": "("}, "pattern must be a regular expression, got '\\('"),
    ({"pattern": "x", "lr": -1.0}, "lr must be at least 0, got -1"),
    ({"pattern": "x", "schedule": "line"}, "schedule must be one of rsqrt, "),
  ],
)
def test_a_group_that_cannot_be(fields, message):
  with pytest.raises(ValueError, match=message):
    ParamGroup(**fields)
