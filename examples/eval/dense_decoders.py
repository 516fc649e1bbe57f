"""The decoders of segmentation and depth, as they are trained and read."""

import jax
import jax.numpy as jnp
import optax

from examples.eval.dense_training import Decoder, block_names
from models import dpt, linear_decoder, upernet
from models.vit_config import ViTConfig

# Of the auxiliary head's loss (mmsegmentation upernet_vit-b16_ln_mln.py).
_AUXILIARY = 0.4


def segmenter(
  kind: str,
  key: jax.Array,
  cfg: ViTConfig,
  *,
  classes: int,
  ignore: int,
  features: int = 512,
  neck: int | None = None,
) -> Decoder:
  """Returns a decoder of `[B, H, W, V]` class logits.

  Its loss is the softmax cross-entropy of the pixels whose target, "mask"
  `[B, H, W]`, is not `ignore`.

  Args:
    kind: "linear", over the last layer, or "upernet", over four.
    key: of its first parameters.
    cfg: the ViT's shape.
    classes: `V`.
    ignore: the label of pixels that do not count.
    features: of UperNet.
    neck: of UperNet; see `models.upernet`.

  Raises:
    ValueError: if there is no such decoder, or the ViT is too shallow for it.
  """
  place = {"grid": cfg.grid, "size": (cfg.image, cfg.image)}
  if kind == "linear":
    params = linear_decoder.init_segmenter(key, cfg.width, classes)
    layers = ("norm",)

    def outputs(params, tokens, key):
      del key  # nothing is dropped
      tokens = _patches(tokens, cfg)
      return linear_decoder.segment(params, *tokens, **place), None

  elif kind == "upernet":
    config = upernet.UperNetConfig(
      width=cfg.width, classes=classes, features=features, neck=neck
    )
    params = upernet.init(key, config)
    layers = block_names(upernet.layers_of(cfg.depth))

    def outputs(params, tokens, key):
      tokens = _patches(tokens, cfg)
      return upernet.segment(params, tokens, config, **place, dropout_key=key)

  else:
    raise ValueError(f"decoder must be linear or upernet, got {kind!r}")

  def loss(params, tokens, targets, key):
    logits, auxiliary = outputs(params, tokens, key)
    total, count = _pixel_xent(logits, targets["mask"], ignore)
    if auxiliary is not None:
      total += _AUXILIARY * _pixel_xent(auxiliary, targets["mask"], ignore)[0]
    return total, count

  return Decoder(
    layers=layers,
    params=params,
    predict=lambda params, tokens: outputs(params, tokens, None)[0],
    loss=loss,
  )


def depth_decoder(
  kind: str,
  key: jax.Array,
  cfg: ViTConfig,
  *,
  maps: int = 1,
  features: int = 64,
) -> Decoder:
  """Returns a decoder of `log(1 + depth)`, `[B, H, W]`.

  Its loss is the mean squared error over the pixels where the target "valid"
  `[B, H, W]` is true, to the logarithm of the target "depth" (paper, section on
  monocular depth).

  Args:
    kind: "linear" or "dpt".
    key: of its first parameters.
    cfg: the ViT's shape.
    maps: layers that DPT reads, the last alone or the ends of four quarters.
    features: of every stage of DPT, and between the two linear layers.

  Raises:
    ValueError: if there is no such decoder, or `maps` is neither 1 nor 4.
  """
  if kind not in ("linear", "dpt"):
    raise ValueError(f"decoder must be linear or dpt, got {kind!r}")
  if maps not in (1, 4):
    raise ValueError(f"maps must be 1 or 4, got {maps}")
  place = {"grid": cfg.grid, "size": (cfg.image, cfg.image)}
  layers = ("norm",)
  if kind == "linear":
    params = linear_decoder.init_depth(key, cfg.width, features)

    def predict(params, tokens):
      return linear_decoder.depth(params, *_patches(tokens, cfg), **place)

  else:
    config = dpt.DPTConfig(width=cfg.width, features=features)
    params = dpt.init(key, config)
    if maps == 4:
      layers = block_names(upernet.layers_of(cfg.depth))

    def predict(params, tokens):
      return dpt.depth(params, _patches(tokens, cfg), **place)

  def loss(params, tokens, targets, key):
    del key  # nothing is dropped
    error = predict(params, tokens) - jnp.log1p(targets["depth"])
    squares = jnp.where(targets["valid"], error, 0) ** 2
    return squares.sum(), targets["valid"].sum()

  return Decoder(layers=layers, params=params, predict=predict, loss=loss)


def _patches(tokens, cfg):
  """The tokens of patches: a class token would stand before them."""
  return [x[:, int(cfg.cls) :] for x in tokens]


def _pixel_xent(logits, mask, ignore):
  kept = mask != ignore
  nats = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(kept, mask, 0)
  )
  return jnp.where(kept, nats, 0).sum(), kept.sum()
