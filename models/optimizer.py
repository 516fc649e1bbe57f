"""The optimiser of ViT-22B: its learning-rate schedule and its weight decay."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from models.param_groups import (
  REST,
  SCHEDULES,
  ParamGroup,
  claimed,
  labels,
  path_name,
)

# Leaves that are decayed. The others (scales, biases, the position embedding
# and the pooling probe) are not: big_vision configs/proj/scaling_laws/
# train_vit_g.py, `wd_mults`.
DECAYED = "kernel"

KINDS = ("adam", "adafactor", "sgd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """Learning rate, moments, clipping and weight decay of one run.

  The defaults are ViT-22B's: peak 1e-3, reciprocal square root with 10k steps
  of warm-up and 30k of cooldown over 177k, weight decay 3.0 on the head and
  0.03 on the body (paper, section "Training Details"). The timescale and the
  clipping are those of ViT-g (big_vision train_vit_g.py).

  Attributes:
    peak_lr: learning rate at the end of the warm-up.
    total_steps: steps of the whole run.
    warmup_steps: steps from zero to the peak, linear.
    cooldown_steps: last steps, linear to zero.
    timescale: steps over which the decay first counts; see `learning_rate`.
    schedule: "rsqrt", "cosine" or "constant"; see `learning_rate`.
    kind: "adam", "adafactor", the variant of Zhai et al. 2022, section 3.4:
      factored second moments, momentum in bfloat16, no scaling by parameters,
      or "sgd", with momentum in bfloat16.
    b1: decay of the first moment, or of the momentum, per step.
    b2: decay of the second moment; "adafactor" only approaches it, as
      `min(b2, 1 - t**-0.8)` at step `t`.
    clip_norm: largest global norm of a gradient.
    weight_decay_head: decay of the classifier's kernel, times the learning
      rate.
    weight_decay_body: decay of every other kernel, times the learning rate.
    groups: parameters that are trained otherwise.

  Raises:
    ValueError: if a number is out of range, or warm-up and cooldown together
      are longer than the run.
  """

  peak_lr: float = 1e-3
  total_steps: int = 177_000
  warmup_steps: int = 10_000
  cooldown_steps: int = 30_000
  timescale: int = 10_000
  schedule: Literal["rsqrt", "cosine", "constant"] = "rsqrt"
  kind: Literal["adam", "adafactor", "sgd"] = "adam"
  b1: float = 0.9
  b2: float = 0.999
  clip_norm: float = 1.0
  weight_decay_head: float = 3.0
  weight_decay_body: float = 0.03
  groups: tuple[ParamGroup, ...] = ()

  def __post_init__(self):
    for name in ("peak_lr", "total_steps", "timescale", "clip_norm"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
    for name in (
      "warmup_steps",
      "cooldown_steps",
      "weight_decay_head",
      "weight_decay_body",
    ):
      if not getattr(self, name) >= 0:
        raise ValueError(
          f"{name} must be at least 0, got {getattr(self, name)}"
        )
    for name in ("b1", "b2"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
    if self.warmup_steps + self.cooldown_steps > self.total_steps:
      raise ValueError(
        f"warmup_steps + cooldown_steps must be at most total_steps="
        f"{self.total_steps}, got {self.warmup_steps} + {self.cooldown_steps}"
      )
    if self.kind not in KINDS:
      raise ValueError(
        f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}"
      )
    if self.schedule not in SCHEDULES:
      raise ValueError(
        f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}"
      )

  def stretched(self, total_steps: int) -> "OptimizerConfig":
    """Returns the same schedule drawn over `total_steps` steps.

    Example:
      >>> OptimizerConfig().stretched(17_700).warmup_steps
      1000
    """
    ratio = total_steps / self.total_steps
    return dataclasses.replace(
      self,
      total_steps=total_steps,
      warmup_steps=int(self.warmup_steps * ratio),
      cooldown_steps=int(self.cooldown_steps * ratio),
      timescale=max(1, round(self.timescale * ratio)),
    )


VIT_22B = OptimizerConfig(kind="adafactor")
"""The recipe of the paper, which does not name the optimiser; ViT-g's is
Adafactor."""


def learning_rate(
  config: OptimizerConfig, group: ParamGroup | None = None
) -> optax.Schedule:
  """Returns the learning rate as a function of the step.

      lr(s) = peak * min(1, s / W) * min(1, (N - s) / C) * shape(s)

      rsqrt     shape(s) = sqrt(T / max(T, s + T - W))
      cosine    shape(s) = (1 + cos(pi * max(0, s - W) / (N - W))) / 2
      constant  shape(s) = 1

  with `W` steps of warm-up, `C` of cooldown, `N` in all and timescale `T`
  (Zhai et al. 2022, section 3.5; Loshchilov & Hutter 2017; big_vision
  utils.py).

  Args:
    config: peak and step counts.
    group: parameters whose own rate to return.

  Returns:
    A function of the step, counted from 0; it is 0 from step `N` on, but for a
    constant without cooldown.

  Example:
    >>> lr = learning_rate(OptimizerConfig())
    >>> [f"{lr(step):.3e}" for step in (5_000, 10_000, 50_000)]
    ['5.000e-04', '1.000e-03', '4.472e-04']
  """
  peak, warmup, kind = config.peak_lr, config.warmup_steps, config.schedule
  if group:
    peak *= group.lr
    kind = group.schedule or kind
    warmup = warmup if group.warmup_steps is None else group.warmup_steps
  total, timescale = config.total_steps, config.timescale

  def schedule(step):
    left = jnp.maximum(total - step, 0)
    lr = peak * jnp.minimum(1.0, step / max(warmup, 1))
    if not warmup:
      lr = peak
    if kind == "rsqrt" or config.cooldown_steps:
      lr *= jnp.minimum(1.0, left / max(config.cooldown_steps, 1))
    if kind == "rsqrt":
      since = jnp.maximum(step + timescale - warmup, timescale)
      return lr * jnp.sqrt(timescale / since)
    if kind == "cosine":
      done = jnp.clip((step - warmup) / max(total - warmup, 1), 0, 1)
      return lr * (1 + jnp.cos(jnp.pi * done)) / 2
    return lr * jnp.ones(())

  return schedule


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """Returns clip by global norm, adapt, decay the weights, times `-lr`.

      p <- p - lr(s) * (adapt(clip(g)) + decay(p) * p)

  The decay does not pass through the moments, and falls with the learning
  rate (AdamW, Loshchilov & Hutter 2019). Parameters that a group freezes have
  no state and do not count in the norm.

  Args:
    config: all of its numbers.
  """
  adapt = {"adam": _adam, "adafactor": _adafactor, "sgd": _sgd}[config.kind](
    config
  )
  chain = optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    adapt,
    *_decays(config),
    _rates(config),
  )
  if not any(group.freeze for group in config.groups):
    return chain

  def label(tree):
    frozen = {str(i) for i, group in enumerate(config.groups) if group.freeze}
    return jax.tree.map(
      lambda name: "frozen" if name in frozen else "trained",
      labels(config.groups)(tree),
    )

  return optax.partition(
    {"trained": chain, "frozen": optax.set_to_zero()}, label
  )


def head_mask(params):
  """Returns a tree of bool: true for the classifier's kernel alone."""
  return _mask(params, lambda name: _decayed(name) and _in_head(name))


def body_mask(params):
  """Returns a tree of bool: true for every kernel but the classifier's."""
  return _mask(params, lambda name: _decayed(name) and not _in_head(name))


def _decayed(name: str) -> bool:
  return name.split("/")[-1] == DECAYED


def _in_head(name: str) -> bool:
  return name.startswith("head/")


def _mask(params, claim):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: claim(path_name(path)), params
  )


def _decays(config: OptimizerConfig) -> list[optax.GradientTransformation]:
  """The weight decays: of the groups that have one, of the head, the rest."""

  def group_decay(name):
    i = claimed(name, config.groups)
    return None if i is None else config.groups[i].weight_decay

  def decay(rate, claim):
    return optax.add_decayed_weights(rate, lambda tree: _mask(tree, claim))

  def default(claim):
    return lambda name: (
      _decayed(name) and claim(name) and group_decay(name) is None
    )

  # In the order of the groups, each rate once.
  rates = {group.weight_decay: None for group in config.groups}
  return [
    decay(config.weight_decay_head, default(_in_head)),
    decay(config.weight_decay_body, default(lambda name: not _in_head(name))),
    *(
      decay(rate, lambda name, rate=rate: group_decay(name) == rate)
      for rate in rates
      if rate is not None
    ),
  ]


def _rates(config: OptimizerConfig) -> optax.GradientTransformation:
  """The learning rates, times -1."""
  rest = optax.scale_by_learning_rate(learning_rate(config))
  if not config.groups:
    return rest
  by_name = {
    str(i): optax.scale_by_learning_rate(learning_rate(config, group))
    for i, group in enumerate(config.groups)
  }
  return optax.partition({REST: rest} | by_name, labels(config.groups))


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
  return optax.scale_by_adam(b1=config.b1, b2=config.b2)


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
  def b2(step, exponent):
    # Capped: left to approach 1, the second moment would freeze.
    return jnp.minimum(config.b2, 1 - (step + 1.0) ** -exponent)

  return optax.chain(
    optax.scale_by_factored_rms(
      decay_rate=0.8, min_dim_size_to_factor=32, decay_rate_fn=b2
    ),
    optax.ema(config.b1, debias=False, accumulator_dtype=jnp.bfloat16),
  )


def _sgd(config: OptimizerConfig) -> optax.GradientTransformation:
  return optax.trace(config.b1, accumulator_dtype=jnp.bfloat16)
