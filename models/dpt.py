"""DPT: depth from tokens, reassembled at four sizes and fused coarse to fine.

Ranftl et al. 2021 (isl-org/DPT, dpt/models.py), at the sizes of the paper's
appendix E.2.2.
"""

import dataclasses

import jax
import jax.numpy as jnp

from models.maps import conv, conv_transpose, init_conv, resize, to_map
from models.norm import layer_norm

# Sides of the four maps, in sides of the grid of tokens: 32, 16, 8 and 4 at
# the paper's 16.
_SCALES = (2.0, 1.0, 0.5, 0.25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPTConfig:
  """The sizes of one DPT.

  Attributes:
    width: `D` of the backbone.
    features: of every stage.
    head: features between the last two convolutions.

  Raises:
    ValueError: if a size is not positive.
  """

  width: int
  features: int = 64
  head: int = 32

  def __post_init__(self):
    for name in ("width", "features", "head"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} must be at least 1, got {getattr(self, name)}"
        )


def init(key: jax.Array, cfg: DPTConfig) -> dict:
  """Draws the decoder; `K` is `cfg.features`.

  reassemble  four of a norm `[D]`, a 1x1 `D -> K` and what resamples it
  fuse        four of two residual units, of two 3x3 `K -> K` each
  head        3x3 `K -> K/2`, 3x3 `K/2 -> head`, 1x1 `head -> 1`
  """
  features, head = cfg.features, cfg.head
  keys = iter(jax.random.split(key, 32))

  def layer(size, features_in, features_out):
    return init_conv(next(keys), size, features_in, features_out)

  def reassemble(scale):
    stage = {
      "norm": {"scale": jnp.ones(cfg.width)},
      "project": layer(1, cfg.width, features),
    }
    if scale > 1:
      stage["enlarge"] = layer(int(scale), features, features)
    if scale < 1:
      stage["shrink"] = layer(int(1 / scale) + 1, features, features)
    return stage

  def unit():
    return [layer(3, features, features) for _ in range(2)]

  return {
    "reassemble": [reassemble(scale) for scale in _SCALES],
    "fuse": [{"skip": unit(), "out": unit()} for _ in _SCALES],
    "head": [
      layer(3, features, max(1, features // 2)),
      layer(3, max(1, features // 2), head),
      layer(1, head, 1),
    ],
  }


def depth(
  params: dict,
  layers: list[jax.Array],
  *,
  grid: tuple[int, int],
  size: tuple[int, int],
) -> jax.Array:
  """Returns `log(1 + depth)` for every pixel.

      tokens[B, S, D] -> [B, s * grid, K], s = 2, 1, 1/2, 1/4
        -> from the coarsest, each added to the next and enlarged by two
        -> [B, 4 * grid, K] -> [B, *size]

  Tokens are normalised first: unnormalised ones made training unstable (paper,
  appendix E.2.2).

  Args:
    params: as drawn by `init`.
    layers: `[B, S, D]`, one that every stage reads or four, shallow to deep.
    grid: rows and columns of the tokens.
    size: height and width of the image.

  Raises:
    ValueError: if there are neither one nor four layers, or their tokens are
      not the grid's.
  """
  if len(layers) not in (1, len(_SCALES)):
    raise ValueError(f"layers must be 1 or {len(_SCALES)}, got {len(layers)}")
  if len(layers) == 1:
    layers = layers * len(_SCALES)
  maps = [
    _reassemble(to_map(tokens, grid), stage, scale)
    for tokens, stage, scale in zip(
      layers, params["reassemble"], _SCALES, strict=True
    )
  ]
  path = None
  for x, stage in reversed(list(zip(maps, params["fuse"], strict=True))):
    if path is None:
      path = x
    else:
      # An odd side halves to one that does not double back to it.
      path = resize(path, x.shape[1:3]) + _unit(x, stage["skip"])
    path = _unit(path, stage["out"])
    path = resize(path, tuple(2 * side for side in path.shape[1:3]))
  first, second, third = params["head"]
  x = resize(conv(path, first), size)
  return conv(jax.nn.relu(conv(x, second)), third)[..., 0]


def _reassemble(x, stage, scale):
  x = conv(layer_norm(x, stage["norm"]), stage["project"])
  if scale > 1:
    return conv_transpose(x, stage["enlarge"])
  if scale < 1:
    return conv(x, stage["shrink"], stride=int(1 / scale))
  return x


def _unit(x, unit):
  """A residual unit: each of its convolutions sees the activation first."""
  y = x
  for layer in unit:
    y = conv(jax.nn.relu(y), layer)
  return x + y
