"""Linear decoders: what a frozen backbone's tokens give away by themselves."""

import jax
import jax.numpy as jnp

from models.maps import conv_transpose, init_conv, resize, to_map

# Sizes of the two transposed convolutions of the depth decoder: 2 * 7 = 14,
# the patch. The paper (appendix E.2.2) has two as well; the sizes are ours.
_UPSAMPLE = (2, 7)


def init_segmenter(key: jax.Array, width: int, classes: int) -> dict:
  """Draws `{"kernel": [D, V], "bias": [V]}`: one Dense for every token.

  Truncated normal of deviation 0.02, as in Segmenter (Strudel et al. 2021).

  Example:
    >>> shapes = jax.eval_shape(
    ...   lambda key: init_segmenter(key, 6144, 150), jax.random.key(0)
    ... )
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))  # paper: 0.9M
    921750
  """
  normal = jax.nn.initializers.truncated_normal(0.02)
  return {
    "kernel": normal(key, (width, classes)),
    "bias": jnp.zeros(classes),
  }


def segment(
  params: dict,
  tokens: jax.Array,
  *,
  grid: tuple[int, int],
  size: tuple[int, int],
) -> jax.Array:
  """Returns class logits for every pixel.

      tokens[B, S, D] -> [B, *grid, V] -> bilinear -> [B, *size, V]

  Args:
    params: as drawn by `init_segmenter`.
    tokens: `[B, S, D]` of the last layer.
    grid: rows and columns of the tokens.
    size: height and width of the image.

  Raises:
    ValueError: if `S` is not the size of the grid.
  """
  x = to_map(tokens, grid)
  return resize(x @ params["kernel"] + params["bias"], size)


def init_depth(key: jax.Array, width: int, hidden: int = 64) -> dict:
  """Draws the two transposed convolutions `D -> hidden -> 1`."""
  keys = jax.random.split(key)
  first, second = _UPSAMPLE
  return {
    "enlarge": init_conv(keys[0], first, width, hidden),
    "out": init_conv(keys[1], second, hidden, 1),
  }


def depth(
  params: dict,
  tokens: jax.Array,
  *,
  grid: tuple[int, int],
  size: tuple[int, int],
) -> jax.Array:
  """Returns `log(1 + depth)` for every pixel, linear in the tokens.

      tokens[B, S, D] -> [B, *grid, D] -> x2, `hidden` -> x7, 1 -> [B, *size]

  No activation stands between the two transposed convolutions.

  Args:
    params: as drawn by `init_depth`.
    tokens: `[B, S, D]` of the last layer.
    grid: rows and columns of the tokens.
    size: height and width of the image; resampled to where it is not 14 times
      the grid.

  Raises:
    ValueError: if `S` is not the size of the grid.
  """
  x = conv_transpose(to_map(tokens, grid), params["enlarge"])
  return resize(conv_transpose(x, params["out"]), size)[..., 0]
