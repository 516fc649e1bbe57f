"""What to train and how, by name: every number of a run in one dataclass."""

import dataclasses
import math
from typing import Literal

from models.optimizer import VIT_22B, OptimizerConfig
from models.vit_config import ViTConfig, get_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """One training run.

  Attributes:
    name: the preset that it comes from.
    data: a data set of `examples.data`.
    model: the shape of the ViT.
    optimizer: learning rate, weight decay and the number of steps.
    batch: `B`, images a step, over all devices.
    mesh: devices on the axes (data, model); None puts 8 CPU devices on (2, 4)
      and any others on data alone.
    layout: which dim of the activations the model axis shards.
    schedule: of the collective matmuls, or a pair (forward, backward).
    compute_dtype: of matmul operands; parameters stay in float32.
    remat: recompute each block in backward instead of saving its inside.
    seed: of the first parameters, the order of the data and its augmentation.
    log_every: steps between two log records.
    eval_every: steps between two evaluations; the last step has one too.
    checkpoint_every: steps between two checkpoints; the last step has one too.
    keep: checkpoints to keep, the newest ones.

  Raises:
    ValueError: if a count is less than 1.
  """

  name: str
  data: str
  model: ViTConfig
  optimizer: OptimizerConfig
  batch: int
  mesh: tuple[int, int] | None = None
  layout: Literal["tokens", "features"] = "tokens"
  schedule: str | tuple[str, str] = "auto"
  compute_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: bool = False
  seed: int = 0
  log_every: int = 50
  eval_every: int = 1000
  checkpoint_every: int = 1000
  keep: int = 3

  def __post_init__(self):
    for name in (
      "batch",
      "log_every",
      "eval_every",
      "checkpoint_every",
      "keep",
    ):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} must be at least 1, got {getattr(self, name)}"
        )

  @property
  def steps(self) -> int:
    """Steps of the whole run."""
    return self.optimizer.total_steps


def from_json(fields: dict) -> TrainConfig:
  """Rebuilds the config whose `dataclasses.asdict` went through JSON.

  Example:
    >>> from_json(dataclasses.asdict(PRESETS["digits"])) == PRESETS["digits"]
    True
  """
  return TrainConfig(
    **fields
    | {
      "model": ViTConfig(**fields["model"]),
      "optimizer": OptimizerConfig(**fields["optimizer"]),
      "mesh": fields["mesh"] and tuple(fields["mesh"]),
      "schedule": _pair(fields["schedule"]),
    }
  )


def _pair(schedule: str | list[str]) -> str | tuple[str, str]:
  """JSON has lists for tuples."""
  return schedule if isinstance(schedule, str) else tuple(schedule)


# ViT-g's recipe, for its smaller sisters too (big_vision configs/proj/
# scaling_laws/train_vit_g.py).
_VIT_G = {
  "data": "jft_3b",
  "batch": 4 * 4096,
  "optimizer": OptimizerConfig(
    kind="adafactor",
    peak_lr=8e-4,
    total_steps=1_000_000,
    cooldown_steps=50_000,
  ),
  "compute_dtype": "bfloat16",
}

PRESETS: dict[str, TrainConfig] = {
  config.name: config
  for config in (
    # Found by trial on the digits, at the recipe's proportions: with a zero
    # head kernel, the bias alone should say "one class in ten".
    TrainConfig(
      name="digits",
      data="digits",
      model=get_config("vit_tiny", head_bias_init=math.log(1 / 9)),
      optimizer=OptimizerConfig(
        peak_lr=3e-3,
        total_steps=500,
        warmup_steps=50,
        cooldown_steps=170,
        timescale=100,
        b2=0.99,
        weight_decay_head=0.3,
      ),
      batch=128,
      log_every=10,
      eval_every=100,
      checkpoint_every=250,
    ),
    TrainConfig(name="vit_b", model=get_config("vit_b"), **_VIT_G),
    TrainConfig(name="vit_l", model=get_config("vit_l"), **_VIT_G),
    TrainConfig(
      name="vit_22b",
      data="jft_4b",
      model=get_config("vit_22b"),
      optimizer=VIT_22B,
      batch=65_536,
      # The fastest that we know: docs/performance.md.
      schedule=("two_way", "async"),
      compute_dtype="bfloat16",
      remat=True,
    ),
  )
}
