"""The optimiser of ViT-22B: its learning-rate schedule and its weight decay."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

# Leaves that are decayed. The others (scales, biases, the position embedding
# and the pooling probe) are not: big_vision configs/proj/scaling_laws/
# train_vit_g.py, `wd_mults`.
DECAYED = "kernel"


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
    timescale: steps over which the decay first counts; see `rsqrt_schedule`.
    kind: "adam", or "adafactor", the variant of Zhai et al. 2022, section 3.4:
      factored second moments, momentum in bfloat16, no scaling by parameters.
    b1: decay of the first moment, per step.
    b2: decay of the second moment; "adafactor" only approaches it, as
      `min(b2, 1 - t**-0.8)` at step `t`.
    clip_norm: largest global norm of a gradient.
    weight_decay_head: decay of the classifier's kernel, times the learning
      rate.
    weight_decay_body: decay of every other kernel, times the learning rate.

  Raises:
    ValueError: if a number is out of range, or warm-up and cooldown together
      are longer than the run.
  """

  peak_lr: float = 1e-3
  total_steps: int = 177_000
  warmup_steps: int = 10_000
  cooldown_steps: int = 30_000
  timescale: int = 10_000
  kind: Literal["adam", "adafactor"] = "adam"
  b1: float = 0.9
  b2: float = 0.999
  clip_norm: float = 1.0
  weight_decay_head: float = 3.0
  weight_decay_body: float = 0.03

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
    if self.kind not in ("adam", "adafactor"):
      raise ValueError(f"kind must be 'adam' or 'adafactor', got {self.kind!r}")

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


def rsqrt_schedule(config: OptimizerConfig) -> optax.Schedule:
  """Returns the learning rate as a function of the step.

      lr(s) = peak * min(1, s / W) * min(1, (N - s) / C)
              * sqrt(T / max(T, s + T - W))

  with `W` steps of warm-up, `C` of cooldown, `N` in all and timescale `T`
  (Zhai et al. 2022, section 3.5; big_vision utils.py).

  Args:
    config: peak and step counts.

  Returns:
    A function of the step, counted from 0; it is 0 from step `N` on.

  Example:
    >>> lr = rsqrt_schedule(OptimizerConfig())
    >>> [f"{lr(step):.3e}" for step in (5_000, 10_000, 50_000)]
    ['5.000e-04', '1.000e-03', '4.472e-04']
  """

  def schedule(step):
    left = jnp.maximum(config.total_steps - step, 0)
    lr = config.peak_lr * jnp.minimum(1.0, step / max(config.warmup_steps, 1))
    if not config.warmup_steps:
      lr = config.peak_lr
    lr *= jnp.minimum(1.0, left / max(config.cooldown_steps, 1))
    since = step + config.timescale - config.warmup_steps
    return lr * jnp.sqrt(
      config.timescale / jnp.maximum(since, config.timescale)
    )

  return schedule


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """Returns clip by global norm, adapt, decay the weights, times `-lr`.

      p <- p - lr(s) * (adapt(clip(g)) + decay(p) * p)

  The decay does not pass through the moments, and falls with the learning
  rate (AdamW, Loshchilov & Hutter 2019).

  Args:
    config: all of its numbers.
  """
  adapt = {"adam": _adam, "adafactor": _adafactor}[config.kind](config)
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    adapt,
    optax.add_decayed_weights(config.weight_decay_head, head_mask),
    optax.add_decayed_weights(config.weight_decay_body, body_mask),
    optax.scale_by_learning_rate(rsqrt_schedule(config)),
  )


def head_mask(params):
  """Returns a tree of bool: true for the classifier's kernel alone."""
  return _mask(params, lambda path: _decayed(path) and path[0] == "head")


def body_mask(params):
  """Returns a tree of bool: true for every kernel but the classifier's."""
  return _mask(params, lambda path: _decayed(path) and path[0] != "head")


def _decayed(path: list[str]) -> bool:
  return path[-1] == DECAYED


def _mask(params, claim):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: claim([key.key for key in path]), params
  )


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
