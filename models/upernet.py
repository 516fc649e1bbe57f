"""UperNet: a pyramid of four layers of the backbone, pooled and fused.

Xiao et al. 2018, at the sizes that mmsegmentation has for ViTs (configs/_base_/
models/upernet_vit-b16_ln_mln.py), with group norm where it has batch norm.
"""

import dataclasses

import jax
import jax.numpy as jnp

from models.maps import (
  conv,
  group_norm,
  init_conv,
  init_group_norm,
  mean_pool,
  resize,
  to_map,
)

_SCALES = (4.0, 2.0, 1.0, 0.5)  # of the neck's maps, to the grid of the tokens
_POOLS = (1, 2, 3, 6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UperNetConfig:
  """The sizes of one UperNet.

  Attributes:
    width: `D` of the backbone.
    classes: `V`.
    neck: features of the neck's maps; None for `D`.
    features: of every map of the decoder.
    auxiliary: features of the auxiliary head, which sees the third layer alone;
      0 leaves it out.
    dropout: share of the features that are dropped before the classifiers.

  Raises:
    ValueError: if a size is not positive, or `dropout` not in [0, 1).
  """

  width: int
  classes: int
  neck: int | None = None
  features: int = 512
  auxiliary: int = 256
  dropout: float = 0.1

  def __post_init__(self):
    for name in ("width", "classes", "features"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} must be at least 1, got {getattr(self, name)}"
        )
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


def layers_of(depth: int) -> tuple[int, int, int, int]:
  """Returns the four blocks whose outputs the decoder reads, from 0.

  The ends of the four quarters of the depth (5, 11, 17 and 23 of 24).

  Example:
    >>> layers_of(24)
    (5, 11, 17, 23)

  Raises:
    ValueError: if there are fewer than four blocks.
  """
  if depth < 4:
    raise ValueError(f"depth must be at least 4, got {depth}")
  first, second, third, fourth = (depth * i // 4 - 1 for i in (1, 2, 3, 4))
  return first, second, third, fourth


def init(key: jax.Array, cfg: UperNetConfig) -> dict:
  """Draws the decoder; `K` is `cfg.features` and `N` the neck's.

      neck       four of a 1x1 `D -> N` and a 3x3 `N -> N`
      pools      four 1x1 `N -> K`, at 1, 2, 3 and 6 cells a side
      bottleneck 3x3 `N + 4 K -> K`
      lateral    three 1x1 `N -> K`
      smooth     three 3x3 `K -> K`
      fuse       3x3 `4 K -> K`
      out        1x1 `K -> V`
      auxiliary  3x3 `N -> A` and 1x1 `A -> V`         if `cfg.auxiliary`

  Each but the neck's and the classifiers has a group norm.
  """
  width, features, neck = cfg.width, cfg.features, cfg.neck or cfg.width
  keys = iter(jax.random.split(key, 32))

  def plain(size, features_in, features_out):
    return init_conv(next(keys), size, features_in, features_out)

  def normed(size, features_in, features_out):
    layer = plain(size, features_in, features_out)
    return layer | {"norm": init_group_norm(features_out)}

  params = {
    "neck": [
      {"lateral": plain(1, width, neck), "out": plain(3, neck, neck)}
      for _ in _SCALES
    ],
    "pools": [normed(1, neck, features) for _ in _POOLS],
    "bottleneck": normed(3, neck + len(_POOLS) * features, features),
    "lateral": [normed(1, neck, features) for _ in _SCALES[1:]],
    "smooth": [normed(3, features, features) for _ in _SCALES[1:]],
    "fuse": normed(3, len(_SCALES) * features, features),
    "out": plain(1, features, cfg.classes),
  }
  if cfg.auxiliary:
    params["auxiliary"] = {
      "hidden": normed(3, neck, cfg.auxiliary),
      "out": plain(1, cfg.auxiliary, cfg.classes),
    }
  return params


def segment(
  params: dict,
  layers: list[jax.Array],
  cfg: UperNetConfig,
  *,
  grid: tuple[int, int],
  size: tuple[int, int],
  dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Returns class logits for every pixel, and the auxiliary head's.

      4 x tokens[B, S, D] -> neck: [B, s * grid, N], s = 4, 2, 1, 1/2
        -> the last pooled; added downward, upsampled; all four fused
        -> [B, 4 * grid, K] -> [B, *size, V]

  Args:
    params: as drawn by `init`.
    layers: `[B, S, D]` of the four blocks of `layers_of`, shallow to deep.
    cfg: as `init` had it.
    grid: rows and columns of the tokens.
    size: height and width of the image.
    dropout_key: for training; None drops nothing.

  Returns:
    `[B, *size, V]` and, in training, that of the auxiliary head, whose loss the
    published recipe weighs 0.4; None where there is none.

  Raises:
    ValueError: if there are not four layers, or not the grid's tokens.
  """
  if len(layers) != len(_SCALES):
    raise ValueError(f"layers must be {len(_SCALES)}, got {len(layers)}")
  maps = [
    _neck(to_map(tokens, grid), layer, scale)
    for tokens, layer, scale in zip(
      layers, params["neck"], _SCALES, strict=True
    )
  ]
  path = _pyramid_pool(maps[-1], params)
  stages = [path]
  for x, lateral in zip(
    reversed(maps[:-1]), reversed(params["lateral"]), strict=True
  ):
    path = _normed(x, lateral) + resize(path, x.shape[1:3])
    stages.insert(0, path)
  smooth = [
    _normed(x, layer)
    for x, layer in zip(stages[:-1], params["smooth"], strict=True)
  ]
  largest = smooth[0].shape[1:3]
  whole = [resize(x, largest) for x in (*smooth, stages[-1])]
  x = _normed(jnp.concatenate(whole, axis=-1), params["fuse"])
  keys = [None, None]
  if dropout_key is not None:
    keys = jax.random.split(dropout_key)
  logits = resize(conv(_drop(x, keys[0], cfg), params["out"]), size)
  if dropout_key is None or "auxiliary" not in params:
    return logits, None
  x = _normed(maps[2], params["auxiliary"]["hidden"])
  x = conv(_drop(x, keys[1], cfg), params["auxiliary"]["out"])
  return logits, resize(x, size)


def _neck(x, layer, scale):
  size = tuple(max(1, int(side * scale)) for side in x.shape[1:3])
  return conv(resize(conv(x, layer["lateral"]), size), layer["out"])


def _pyramid_pool(x, params):
  """The last map beside its means over ever smaller cells."""
  pooled = [
    resize(_normed(mean_pool(x, cells), layer), x.shape[1:3])
    for cells, layer in zip(_POOLS, params["pools"], strict=True)
  ]
  return _normed(jnp.concatenate((x, *pooled), -1), params["bottleneck"])


def _normed(x, layer):
  return jax.nn.relu(group_norm(conv(x, layer), layer["norm"]))


def _drop(x, key, cfg):
  """Whole features of an example are dropped, as the published heads do."""
  if key is None:
    return x
  shape = (x.shape[0], 1, 1, x.shape[-1])
  kept = jax.random.bernoulli(key, 1 - cfg.dropout, shape)
  return jnp.where(kept, x / (1 - cfg.dropout), 0)
