"""Model FLOPs, MFU and tokens per second: arithmetic, nothing else.

Attention is counted whole (it is bidirectional, no half of it is masked) and
recomputation in backward is not counted (PaLM, Chowdhery et al. 2022,
Appendix B).
"""

import dataclasses
import math
from collections.abc import Sequence

import jax

from models.vit_config import ViTConfig
from profiling import peaks

# A multiplication and an addition, once forward and twice backward.
_TRAINING_FLOPS_PER_MAC = 6


def palm_flops_per_token(
  *, params: int, depth: int, heads: int, head_dim: int, tokens: int
) -> int:
  """Returns `6 N + 12 L H K S`, a token's training FLOPs.

  The convention of PaLM, Appendix B, and of the ViT-22B paper's MFU.

  Args:
    params: `N`, parameters that every token is multiplied with.
    depth: `L`, blocks.
    heads: `H`, attention heads.
    head_dim: `K`, features of a head.
    tokens: `S`, tokens of a sequence.

  Example (PaLM 540B):
    >>> palm_flops_per_token(
    ...   params=540_350_000_000, depth=118, heads=48, head_dim=256, tokens=2048
    ... )
    3277734806784
  """
  return 6 * params + 12 * depth * heads * head_dim * tokens


def vit_flops_per_token(cfg: ViTConfig) -> int:
  """Returns a token's training FLOPs in a ViT, by the paper's convention.

  `N` is the blocks' matmul weights: patch embedding, pooling head and
  classifier do not count, so MFU from it is a little low (by .37 % for 22B).

  Example:
    >>> from models.vit_config import get_config
    >>> vit_flops_per_token(get_config("vit_22b"))
    131365601280
  """
  return palm_flops_per_token(
    params=cfg.depth * _block_weights(cfg),
    depth=cfg.depth,
    heads=cfg.heads,
    head_dim=cfg.head_dim,
    tokens=cfg.tokens,
  )


def vit_flops_per_image(cfg: ViTConfig) -> int:
  """Returns an image's training FLOPs: every matmul of the model, three times.

  Patch embedding, q, k, v, attention scores and values, attention output, MLP,
  pooling head (one probe token attends to all `S` tokens and goes through an
  MLP) and classifier.
  """
  tokens, width = cfg.tokens, cfg.width
  embed = math.prod(cfg.grid) * cfg.patch_dim * width
  scores_and_values = 2 * tokens * tokens * width
  blocks = cfg.depth * (tokens * _block_weights(cfg) + scores_and_values)
  pool = 0
  if cfg.pool:
    query_and_out = 2 * width**2
    key_and_value = 2 * tokens * width**2
    mlp = 2 * width * cfg.mlp
    pool = query_and_out + key_and_value + 2 * tokens * width + mlp
  classifier = width * cfg.classes + cfg.pre_logits * width**2
  return _TRAINING_FLOPS_PER_MAC * (embed + blocks + pool + classifier)


def _block_weights(cfg: ViTConfig) -> int:
  attention = 4 * cfg.width**2
  mlp = 2 * cfg.width * cfg.mlp
  return attention + mlp


def mfu(
  tokens_per_s: float, flops_per_token: float, peak_flops: float
) -> float:
  """Returns model FLOPs per second over peak FLOPs per second.

  Args:
    tokens_per_s: tokens/s of some devices.
    flops_per_token: training FLOPs of a token.
    peak_flops: FLOP/s of the same devices, together.

  Example (the paper's ViT-22B, on a TPU v4 chip):
    >>> print(f"{mfu(1150, 131.3656e9, 275e12):.2%}")
    54.93%
  """
  return tokens_per_s * flops_per_token / peak_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Throughput:
  """Training throughput, for each meaning of "core", and its MFU.

  Attributes:
    tokens_per_s_per_device: tokens/s of one jax device.
    tokens_per_s_per_chip: of one chip; None where the chip is unknown. The
      ViT-22B paper's "core" is a TPU v4 chip.
    tokens_per_s_per_tensor_core: of one TPU TensorCore; None elsewhere.
    mfu: model FLOP/s over bf16 peak; None where no peak is published.
    mfu_note: the peak that `mfu` is of, or why there is no `mfu`.
  """

  tokens_per_s_per_device: float
  tokens_per_s_per_chip: float | None
  tokens_per_s_per_tensor_core: float | None
  mfu: float | None
  mfu_note: str

  def __str__(self) -> str:
    rates = ", ".join(
      f"{_rate(rate)} per {what}"
      for rate, what in (
        (self.tokens_per_s_per_device, "device"),
        (self.tokens_per_s_per_chip, "chip"),
        (self.tokens_per_s_per_tensor_core, "TensorCore"),
      )
    )
    used = "n/a" if self.mfu is None else f"{self.mfu:.1%}"
    return f"tokens/s: {rates}; MFU {used} ({self.mfu_note})"


def _rate(rate: float | None) -> str:
  if rate is None:
    return "n/a"
  return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def throughput(
  tokens_per_s: float, flops_per_token: float, devices: Sequence[jax.Device]
) -> Throughput:
  """Returns the throughput of a run per device, per chip and per TensorCore.

  Args:
    tokens_per_s: tokens/s of all `devices` together.
    flops_per_token: training FLOPs of a token.
    devices: the jax devices of the run.

  Raises:
    ValueError: if there are no devices.
  """
  if not devices:
    raise ValueError("devices must hold at least 1 device, got none")
  per_device = tokens_per_s / len(devices)
  kinds = sorted({device.device_kind for device in devices})
  chip = peaks.chip_of(devices[0]) if len(kinds) == 1 else None
  if chip is None:
    names = " and ".join(map(repr, kinds))
    problem = "no published peak for" if len(kinds) == 1 else "no one peak for"
    return Throughput(
      tokens_per_s_per_device=per_device,
      tokens_per_s_per_chip=None,
      tokens_per_s_per_tensor_core=None,
      mfu=None,
      mfu_note=f"{problem} {names}",
    )
  per_chip = per_device * chip.devices_per_chip
  cores = chip.tensor_cores_per_chip
  return Throughput(
    tokens_per_s_per_device=per_device,
    tokens_per_s_per_chip=per_chip,
    tokens_per_s_per_tensor_core=per_chip / cores if cores else None,
    mfu=mfu(per_chip, flops_per_token, chip.bf16_flops_per_chip),
    mfu_note=f"of {chip.bf16_flops_per_chip / 1e12:,.4g} bf16 TFLOP/s per chip",
  )
