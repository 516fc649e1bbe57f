"""A text tower for the sharded ViT: the same blocks over pieces of text.

A table of embeddings looked up is a one-hot vector times a kernel, so that the
tower is a ViT whose image is a square of `T` pixels with one channel for each
piece of the vocabulary. Parameters, sharding, layouts and schedules are the
ViT's; the table is looked up instead of multiplied with.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.nn import initializers

from models.params import init_params
from models.vit import ShardedViT
from models.vit_config import ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
  """The shape of one text tower.

  Attributes:
    width: `D`, features of a token.
    depth: `L`, blocks.
    mlp: features between the two MLP layers.
    heads: each has `D / heads` features.
    vocabulary: pieces of the tokenizer.
    tokens: `T`, of one text; a square number.
    embedding: `E`, features of the whole text: the width of the image tower.

  Raises:
    ValueError: if a size is not positive or `tokens` is no square.
  """

  width: int
  depth: int
  mlp: int
  heads: int
  vocabulary: int
  embedding: int
  tokens: int = 16

  def __post_init__(self):
    if self.embedding < 1:
      raise ValueError(f"embedding must be at least 1, got {self.embedding}")
    if self.tokens < 1 or math.isqrt(self.tokens) ** 2 != self.tokens:
      raise ValueError(f"tokens must be a square number, got {self.tokens}")
    self.vit  # noqa: B018 (checks the other sizes)

  @property
  def vit(self) -> ViTConfig:
    """The ViT that this tower is, in the blocks of ViT-g."""
    return ViTConfig(
      width=self.width,
      depth=self.depth,
      mlp=self.mlp,
      heads=self.heads,
      classes=self.embedding,
      image=math.isqrt(self.tokens),
      patch=1,
      channels=self.vocabulary,
      parallel=False,
      qk_norm=False,
      attention_bias=True,
      norm_bias=True,
      pool=False,
      head_bias_init=0.0,
    )


def vit_g_text(vocabulary: int, embedding: int) -> TextConfig:
  """Returns the paper's tower: the size of ViT-g, 16 tokens (Zhai et al. 2022).

  Example:
    >>> vit_g_text(32_000, 6144).vit.tokens
    16
  """
  return TextConfig(
    width=1408,
    depth=40,
    mlp=6144,
    heads=16,
    vocabulary=vocabulary,
    embedding=embedding,
  )


def init_text(key: jax.Array, cfg: TextConfig) -> dict:
  """Draws the parameters: the tree of `init_params(key, cfg.vit)`.

  The projection is drawn too: from zero no direction would be learnt. The table
  is `N(0, 1/D)`, as the positions are.
  """
  key_tower, key_table, key_head = jax.random.split(key, 3)
  params = init_params(key_tower, cfg.vit)
  table = initializers.normal(cfg.width**-0.5)
  params["embed"]["kernel"] = table(
    key_table, params["embed"]["kernel"].shape, jnp.float32
  )
  params["head"]["kernel"] = initializers.lecun_normal()(
    key_head, params["head"]["kernel"].shape, jnp.float32
  )
  return params


class ShardedText(ShardedViT):
  """The forward pass of one text tower on one mesh; holds no arrays.

  Args:
    cfg: the tower's shape.
    mesh: with the axes "data" and "model".
    **options: as for `ShardedViT`.
  """

  def __init__(self, cfg: TextConfig, mesh: jax.sharding.Mesh, **options):
    super().__init__(cfg.vit, mesh, **options)

  def __call__(self, params: dict, ids: jax.Array):
    """Embeds this device's texts: `ids[B_dm, T] -> [B_dm, E]`.

    Args:
      params: this device's shards of the tree of `init_text`.
      ids: int32 pieces, padded to `T` tokens.

    Returns:
      As `ShardedViT`: float32 embeddings, not normalised, and intermediates.
    """
    return super().__call__(params, ids)

  def _patches(self, embed, ids):
    table = self._local(embed["kernel"]).astype(self.dtype)
    return table[ids].astype(jnp.float32)
