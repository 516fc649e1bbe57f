"""Layers over feature maps `[B, h, w, C]`, which the dense decoders share."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers

_DIMS = ("NHWC", "HWIO", "NHWC")
_EPSILON = 1e-5  # of PyTorch's GroupNorm, on which the decoders were tuned


def init_conv(
  key: jax.Array, size: int, features_in: int, features_out: int
) -> dict:
  """Draws a He-normal kernel `[size, size, in, out]` and a zero bias."""
  shape = (size, size, features_in, features_out)
  return {
    "kernel": initializers.he_normal()(key, shape),
    "bias": jnp.zeros(features_out),
  }


def conv(x: jax.Array, layer: dict, *, stride: int = 1) -> jax.Array:
  """Returns the convolution of `x[B, h, w, C]`, padded to `[h, w] / stride`.

  Args:
    x: the map.
    layer: as drawn by `init_conv`.
    stride: of the output, in pixels of `x`.
  """
  y = lax.conv_general_dilated(
    x, layer["kernel"], (stride, stride), "SAME", dimension_numbers=_DIMS
  )
  return y + layer["bias"]


def conv_transpose(x: jax.Array, layer: dict) -> jax.Array:
  """Returns `x[B, h, w, C]` enlarged by the kernel's size, each pixel alone.

      [B, h, w, C] -> [B, h * size, w * size, out]

  The transposed convolution whose stride is its kernel's size.

  Args:
    x: the map.
    layer: as drawn by `init_conv`; its size is the factor.
  """
  size = layer["kernel"].shape[0]
  batch, height, width, _ = x.shape
  y = jnp.einsum("bhwi,pqio->bhpwqo", x, layer["kernel"])
  return y.reshape(batch, height * size, width * size, -1) + layer["bias"]


def init_group_norm(features: int) -> dict:
  """Returns the scale one and the bias zero, `[C]` each."""
  return {"scale": jnp.ones(features), "bias": jnp.zeros(features)}


def group_norm(x: jax.Array, norm: dict, *, groups: int = 32) -> jax.Array:
  """Normalises `x[B, h, w, C]` over space and each of `groups` runs of `C`.

  It stands where the published decoders have a batch norm over all devices:
  it depends on no other example (Wu & He 2018).

  Args:
    x: the map.
    norm: "scale" and "bias" `[C]`.
    groups: how many, at most; the largest that divides `C` is taken.
  """
  batch, height, width, features = x.shape
  while features % groups:
    groups -= 1
  y = x.reshape(batch, height, width, groups, -1)
  y = y - y.mean(axis=(1, 2, 4), keepdims=True)
  variance = jnp.square(y).mean(axis=(1, 2, 4), keepdims=True)
  y = (y * lax.rsqrt(variance + _EPSILON)).reshape(x.shape)
  return y * norm["scale"] + norm["bias"]


def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resamples `x[B, h, w, C]` bilinearly to `size`, corners not aligned."""
  shape = (x.shape[0], *size, x.shape[-1])
  return jax.image.resize(x, shape, "bilinear", antialias=False)


def mean_pool(x: jax.Array, cells: int) -> jax.Array:
  """Returns the means of `x[B, h, w, C]` over `cells x cells` regions.

  Cell `i` of a side of `n` pixels covers pixels `floor(i n / cells)` to
  `ceil((i + 1) n / cells)`, so that any side will do: two products with
  matrices of a row for each cell.
  """
  rows, columns = (_cells(side, cells) for side in x.shape[1:3])
  return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def _cells(side: int, cells: int) -> jax.Array:
  i, pixel = jnp.arange(cells)[:, None], jnp.arange(side)
  inside = (pixel >= i * side // cells) & (pixel < -(-(i + 1) * side // cells))
  return inside / inside.sum(axis=1, keepdims=True)


def to_map(tokens: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Lays tokens `[B, S, D]` out as the map `[B, *grid, D]`.

  Raises:
    ValueError: if there are not as many tokens as the grid has places.
  """
  if tokens.ndim != 3 or tokens.shape[1] != grid[0] * grid[1]:
    raise ValueError(
      f"tokens must be [B, {grid[0]} * {grid[1]}, D] for a grid of {grid}, "
      f"got tokens.shape={tokens.shape}"
    )
  return tokens.reshape(len(tokens), *grid, -1)
