"""An MLP-mixer in Equinox: of one example, `jax.vmap` it over a batch."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.random import split


class MLP(eqx.Module):
  """Two layers with a GELU between them, on every row of `x`."""

  up: eqx.nn.Linear
  down: eqx.nn.Linear

  def __init__(self, width: int, hidden: int, *, key):
    up, down = split(key)
    self.up = eqx.nn.Linear(width, hidden, key=up)
    self.down = eqx.nn.Linear(hidden, width, key=down)

  def __call__(self, x):
    h = jax.nn.gelu(jax.vmap(self.up)(x))
    return jax.vmap(self.down)(h)


class Block(eqx.Module):
  """Mixes tokens of each channel, then channels of each token."""

  token_norm: eqx.nn.LayerNorm
  tokens: MLP
  channel_norm: eqx.nn.LayerNorm
  channels: MLP

  def __init__(self, tokens, width, token_hidden, hidden, *, key):
    first, second = split(key)
    self.token_norm = eqx.nn.LayerNorm(width)
    self.tokens = MLP(tokens, token_hidden, key=first)
    self.channel_norm = eqx.nn.LayerNorm(width)
    self.channels = MLP(width, hidden, key=second)

  def __call__(self, x):
    x = x + self.tokens(jax.vmap(self.token_norm)(x).T).T
    return x + self.channels(jax.vmap(self.channel_norm)(x))


class Mixer(eqx.Module):
  """The model: patches `[S, P]` of one image to logits `[classes]`."""

  embed: eqx.nn.Linear
  blocks: list[Block]
  norm: eqx.nn.LayerNorm
  head: eqx.nn.Linear

  def __init__(
    self,
    *,
    tokens: int,
    patch: int,
    width: int,
    token_hidden: int,
    hidden: int,
    depth: int,
    classes: int,
    key,
  ):
    keys = split(key, depth + 2)
    self.embed = eqx.nn.Linear(patch, width, key=keys[0])
    self.blocks = [
      Block(tokens, width, token_hidden, hidden, key=key) for key in keys[2:]
    ]
    self.norm = eqx.nn.LayerNorm(width)
    self.head = eqx.nn.Linear(width, classes, key=keys[1])

  def __call__(self, patches):
    x = jax.vmap(self.embed)(patches)
    for block in self.blocks:
      x = block(x)
    return self.head(jnp.mean(jax.vmap(self.norm)(x), axis=0))
