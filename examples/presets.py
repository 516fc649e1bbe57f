"""What to train and how, by name: every number of a run in one dataclass."""

import dataclasses
import math
from typing import Literal

from collective_mm.op_arguments import SCHEDULES
from examples.config_fields import build, merged
from examples.data.pipeline import Augment
from models.optimizer import VIT_22B, OptimizerConfig
from models.vit_config import ViTConfig, get_config

Schedule = Literal[tuple(SCHEDULES)]
_PAPERS = Augment()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """One training run.

  Attributes:
    name: the preset that it comes from.
    data: what `examples.data.sources.open_source` opens.
    model: the shape of the ViT; the data say how many classes it has.
    optimizer: learning rate, weight decay and the number of steps.
    batch: `B`, images a step, over all devices.
    microbatches: parts of a device's images, computed one after the other.
    ema_decay: of a moving average of the parameters, which is evaluated too;
      None keeps none.
    loss: "sigmoid", where each class is a question of its own, or "softmax",
      where one is right; an image's labels share its weight then.
    skip_nonfinite: updates in a row that may be left out because the loss or
      the gradient is not finite; the run stops at the next. 0 stops at once.
    init_from: weights to start from, as `examples.weights.load` reads them;
      None draws them.
    augment: what is done at random to an image.
    max_bad_images: images that may be left out because they cannot be read.
    mesh: devices on the axes (data, model); None puts 8 CPU devices on (2, 4)
      and any others on data alone.
    whole_dims: whether the model axis takes whole dims of a TPU slice, as
      `collective_mm.make_mesh` says.
    layout: which dim of the activations the model axis shards.
    schedule: of the collective matmuls, or a pair (forward, backward).
    compute_dtype: of matmul operands; parameters stay in float32.
    remat: recompute each block in backward instead of saving its inside.
    seed: of the first parameters, the order of the data and its augmentation.
    log_every: steps between two log records.
    eval_every: steps between two evaluations; the last step has one too.
    checkpoint_every: steps between two checkpoints; the last step has one too.
    checkpoint_minutes: most minutes between two checkpoints; None for any.
    keep: checkpoints to keep, the newest ones.
    trace_steps: early steps that are traced for a profiler; 0 for none.

  Raises:
    ValueError: if a number is out of range.
  """

  name: str
  data: str
  model: ViTConfig
  optimizer: OptimizerConfig
  batch: int
  microbatches: int = 1
  ema_decay: float | None = None
  loss: Literal["sigmoid", "softmax"] = "sigmoid"
  skip_nonfinite: int = 0
  init_from: str | None = None
  augment: Augment = _PAPERS
  max_bad_images: int = 10
  mesh: tuple[int, int] | None = None
  whole_dims: bool = False
  layout: Literal["tokens", "features"] = "tokens"
  schedule: Schedule | tuple[Schedule, Schedule] = "auto"
  compute_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: bool = False
  seed: int = 0
  log_every: int = 50
  eval_every: int = 1000
  checkpoint_every: int = 1000
  checkpoint_minutes: float | None = None
  keep: int = 3
  trace_steps: int = 0

  def __post_init__(self):
    for name, least in _LEAST.items():
      if getattr(self, name) < least:
        raise ValueError(
          f"{name} must be at least {least}, got {getattr(self, name)}"
        )
    if self.ema_decay is not None and not 0 < self.ema_decay < 1:
      raise ValueError(f"ema_decay must be in (0, 1), got {self.ema_decay}")
    if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
      raise ValueError(
        f"checkpoint_minutes must be above 0, got {self.checkpoint_minutes}"
      )

  @property
  def steps(self) -> int:
    """Steps of the whole run."""
    return self.optimizer.total_steps


_LEAST = {
  "batch": 1,
  "microbatches": 1,
  "skip_nonfinite": 0,
  "max_bad_images": 0,
  "seed": 0,
  "log_every": 1,
  "eval_every": 1,
  "checkpoint_every": 1,
  "keep": 1,
  "trace_steps": 0,
}


def from_json(fields: dict) -> TrainConfig:
  """Rebuilds the config whose `dataclasses.asdict` went through JSON.

  Raises:
    ValueError: if a key is unknown or a value is wrong.

  Example:
    >>> from_json(dataclasses.asdict(PRESETS["digits"])) == PRESETS["digits"]
    True
  """
  return build(TrainConfig, fields)


def changed(config: TrainConfig, changes: dict) -> TrainConfig:
  """Returns `config` with some of its fields, and of those inside it, changed.

  Args:
    config: to start from.
    changes: as in a config file: `{"optimizer": {"peak_lr": 0.1}}`.

  Raises:
    ValueError: if a key is unknown or a value is wrong.

  Example:
    >>> changed(PRESETS["digits"], {"model": {"depth": 2}}).model.depth
    2
  """
  return from_json(merged(dataclasses.asdict(config), changes))


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
    # A first model of one's own images, in minutes on a few cores; the recipe
    # of the digits, with the paper's crops and flips.
    TrainConfig(
      name="images",
      data="folder:images",
      model=get_config("vit_tiny", channels=3, image=64),
      optimizer=OptimizerConfig(
        peak_lr=1e-3,
        total_steps=2_000,
        warmup_steps=200,
        cooldown_steps=600,
        timescale=400,
        b2=0.99,
        weight_decay_head=0.3,
      ),
      batch=64,
      augment=Augment(area=(0.3, 1.0)),
      ema_decay=0.999,
      log_every=20,
      eval_every=200,
      checkpoint_every=200,
      checkpoint_minutes=10,
    ),
    # The transfer of Dosovitskiy et al. 2021, appendix B.1.1, as big_vision
    # configs/transfer.py has it: softmax, SGD with momentum, cosine, clipping
    # at 1, no weight decay, a head of zeros.
    TrainConfig(
      name="finetune",
      data="folder:images",
      model=get_config("vit_b", image=384),
      optimizer=OptimizerConfig(
        kind="sgd",
        schedule="cosine",
        peak_lr=0.03,
        total_steps=20_000,
        warmup_steps=500,
        cooldown_steps=0,
        weight_decay_head=0.0,
        weight_decay_body=0.0,
      ),
      batch=512,
      loss="softmax",
      eval_every=1000,
      checkpoint_every=1000,
      checkpoint_minutes=15,
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
