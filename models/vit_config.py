"""The ViT family as one table: widths, depths and which block each one uses."""

import dataclasses
import math
from typing import Literal

CLASSES_JFT = 29_593  # labels of JFT-4B; big_vision configs/proj/scaling_laws


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
  """The shape of one Vision Transformer.

  The defaults are the ViT-22B block: attention and MLP in parallel from one
  LayerNorm, LayerNorm on queries and keys, no biases on q, k, v and none in
  the LayerNorms, which do not centre either, biases on both MLP layers (paper,
  section "Model Architecture"). `parallel=False, qk_norm=False,
  attention_bias=True, norm_bias=True` is the block of the earlier ViTs.

  Attributes:
    width: `D`, features of a token.
    depth: `L`, encoder blocks.
    mlp: `F`, features between the two MLP layers.
    heads: `H`; each has `D / H` features.
    classes: `V`, outputs of the classifier; 0 leaves the classifier out.
    image: height and width of the input, in pixels.
    channels: colour channels of the input.
    patch: height and width of a patch, in pixels; pixels beyond the last whole
      patch are left out, as by a convolution without padding.
    parallel: attention and MLP read the same LayerNorm and add up once.
    qk_norm: LayerNorm over the head features of queries and keys.
    attention_bias: biases on q, k, v and on the attention output; a parallel
      block's one output bias is that of its MLP, so it gets none of the latter.
    norm_bias: LayerNorms subtract the mean and add a bias.
    pool: multi-head attention pooling before the classifier; without it and
      without `cls`, the classifier sees the mean token.
    cls: a class token before the patches, which the classifier sees.
    pre_logits: a dense layer of width `D` and a tanh before the classifier, as
      in the first ImageNet-21k models (big_vision models/vit.py, `rep_size`).
    gelu: "tanh", flax's approximation and big_vision's choice, or "exact",
      timm's.
    head_bias_init: initial classifier bias; -10 starts sigmoid outputs near
      zero (big_vision configs/train_vit_g.py).

  Raises:
    ValueError: if a size is not positive, the heads do not divide the width,
      the image is smaller than a patch, or two things are to pool the tokens.
  """

  width: int
  depth: int
  mlp: int
  heads: int
  classes: int = CLASSES_JFT
  image: int = 224
  channels: int = 3
  patch: int = 14
  parallel: bool = True
  qk_norm: bool = True
  attention_bias: bool = False
  norm_bias: bool = False
  pool: bool = True
  cls: bool = False
  pre_logits: bool = False
  gelu: Literal["tanh", "exact"] = "tanh"
  head_bias_init: float = -10.0

  def __post_init__(self):
    sizes = ("width", "depth", "mlp", "heads", "image", "channels", "patch")
    for name in sizes:
      size = getattr(self, name)
      if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")
    if self.classes < 0:
      raise ValueError(f"classes must be at least 0, got {self.classes}")
    if self.width % self.heads:
      raise ValueError(
        f"heads must divide width: width={self.width} is not a multiple of "
        f"heads={self.heads}"
      )
    if self.image < self.patch:
      raise ValueError(
        f"image must be at least one patch: image={self.image}, "
        f"patch={self.patch}"
      )
    if self.pool and self.cls:
      raise ValueError("pool and cls must not both be true")
    if self.gelu not in ("tanh", "exact"):
      raise ValueError(f"gelu must be 'tanh' or 'exact', got {self.gelu!r}")

  @property
  def head_dim(self) -> int:
    """Features of one attention head."""
    return self.width // self.heads

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of whole patches of one image."""
    return (self.image // self.patch, self.image // self.patch)

  @property
  def tokens(self) -> int:
    """`S`, tokens of one image: its patches, and the class token if any."""
    return math.prod(self.grid) + self.cls

  @property
  def patch_dim(self) -> int:
    """Numbers in one patch."""
    return self.patch**2 * self.channels


_EARLIER = {
  "parallel": False,
  "qk_norm": False,
  "attention_bias": True,
  "norm_bias": True,
}

# Widths, depths, MLPs and heads: S to L of Dosovitskiy et al. 2021 and Touvron
# et al. 2021; g and G of Zhai et al. 2022 (Table 2); e of Chen et al. 2022;
# 22B of the ViT-22B paper, Table 1.
VARIANTS: dict[str, ViTConfig] = {
  "vit_tiny": ViTConfig(
    width=64,
    depth=4,
    mlp=256,
    heads=4,
    classes=10,
    image=32,
    channels=1,
    patch=8,
  ),
  "vit_s": ViTConfig(
    width=384, depth=12, mlp=1536, heads=6, patch=16, **_EARLIER
  ),
  "vit_b": ViTConfig(
    width=768, depth=12, mlp=3072, heads=12, patch=16, **_EARLIER
  ),
  "vit_l": ViTConfig(
    width=1024, depth=24, mlp=4096, heads=16, patch=16, **_EARLIER
  ),
  "vit_g": ViTConfig(width=1408, depth=40, mlp=6144, heads=16, **_EARLIER),
  "vit_G": ViTConfig(width=1664, depth=48, mlp=8192, heads=16, **_EARLIER),
  "vit_e": ViTConfig(width=1792, depth=56, mlp=15360, heads=16, **_EARLIER),
  "vit_22b": ViTConfig(width=6144, depth=48, mlp=24576, heads=48),
}


def get_config(name: str, **changes) -> ViTConfig:
  """Returns the variant `name` with the fields in `changes` replaced.

  Args:
    name: a key of `VARIANTS`.
    **changes: fields of `ViTConfig` to replace.

  Raises:
    ValueError: if `name` is no variant; the message lists them.

  Example:
    >>> get_config("vit_22b").head_dim
    128
    >>> get_config("vit_22b").tokens
    256
  """
  if name not in VARIANTS:
    raise ValueError(
      f"model must be one of {', '.join(VARIANTS)}, got {name!r}"
    )
  return dataclasses.replace(VARIANTS[name], **changes)
