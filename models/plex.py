"""Plex on ViT-22B: the ViT with BatchEnsemble layers and a head of one's own.

As in the paper's Appendix I every Dense layer becomes a BatchEnsemble but the
MLP of the pooling; the patch embedding, a convolution there, stays as it is.
The layers are those of `collective_mm`, in the paper's layout: features travel
the rings, images lie over the data axis.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from collective_mm.dense import ColumnDense, RowDense
from models.attention import attend
from models.batch_ensemble import (
  BatchEnsemble,
  draw_vectors,
  member_mean,
  perturbed_product,
  tile_members,
)
from models.heteroscedastic import HeteroscedasticHead
from models.norm import layer_norm
from models.patches import patchify
from models.vit_config import ViTConfig

Head = Literal["dense", "batch_ensemble", "heteroscedastic"]

_COLUMNS = ("q", "k", "v", "mlp_in")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlexConfig:
  """What Plex adds to a ViT; the defaults are the paper's (Appendix I).

  Attributes:
    members: of every BatchEnsemble; 1 leaves the Dense layers as they are.
    sign: of `models.batch_ensemble.BatchEnsemble`.
    head: the classifier.
    samples, factors, temperature: of `HeteroscedasticHead`.

  Raises:
    ValueError: if the head is unknown.
  """

  members: int = 2
  sign: float = -0.5
  head: Head = "batch_ensemble"
  samples: int = 1000
  factors: int = 15
  temperature: float = 5.0

  def __post_init__(self):
    if self.head not in get_args(Head):
      raise ValueError(
        f"head must be one of {', '.join(get_args(Head))}, got {self.head!r}"
      )


class PlexViT:
  """The forward pass of one configuration on one mesh; holds no arrays.

  Args:
    cfg: the ViT's shape, with a classifier.
    plex: what is added.
    mesh: with the axes "data" and "model".
    schedule: of every ring.

  Raises:
    ValueError: if `cfg` has no classes, or the model axis does not divide its
      heads and MLP.
    NotImplementedError: if `cfg` is of another family.
  """

  def __init__(
    self,
    cfg: ViTConfig,
    plex: PlexConfig,
    mesh: jax.sharding.Mesh,
    *,
    schedule: str = "auto",
  ):
    if not cfg.classes:
      raise ValueError("cfg must have classes, got 0")
    if cfg.cls or cfg.pre_logits or cfg.gelu != "tanh":
      raise NotImplementedError(
        "Plex knows neither a class token, a pre-logits layer nor the exact "
        f"GELU, got cls={cfg.cls}, pre_logits={cfg.pre_logits}, "
        f"gelu={cfg.gelu!r}"
      )
    size = mesh.shape["model"]
    if cfg.heads % size or cfg.mlp % size:
      raise ValueError(
        f"the model axis must divide heads and mlp: {size} does not divide "
        f"{cfg.heads} and {cfg.mlp}"
      )
    self.cfg, self.plex = cfg, plex
    column = {"gather_dim": -1, "mesh": mesh, "schedule": schedule}
    row = {"scatter_dim": -1, "mesh": mesh, "schedule": schedule}

    def layer(name, features, use_bias):
      kind, options = (
        (ColumnDense, column) if name in _COLUMNS else (RowDense, row)
      )
      dense = kind(features, use_bias=use_bias, **options)
      return BatchEnsemble(dense, members=plex.members, sign=plex.sign)

    bias = cfg.attention_bias
    self._layers = {
      **{name: layer(name, cfg.width, bias) for name in ("q", "k", "v")},
      "attention_out": layer(
        "attention_out", cfg.width, bias and not cfg.parallel
      ),
      "mlp_in": layer("mlp_in", cfg.mlp, True),
      "mlp_out": layer("mlp_out", cfg.width, True),
    }
    self._pool_layers = {
      name: layer(name, cfg.width, True) for name in ("q", "k", "v", "out")
    }
    self._head = HeteroscedasticHead(
      cfg.classes,
      factors=plex.factors,
      samples=plex.samples,
      temperature=plex.temperature,
    )

  def init(self, key: jax.Array, params: dict) -> dict:
    """Adds the vectors of the members, and a new head, to a trained ViT.

    Kernels and norms are kept; each member begins with the same biases. The
    heteroscedastic head begins anew, the others with the ViT's classifier.

    Args:
      key: PRNG key.
      params: the tree of `models.params.init_params` for `cfg`.
    """
    keys = iter(jax.random.split(key, 64))

    def member(layer):
      kernel = jnp.asarray(layer["kernel"])
      *stack, rows, columns = kernel.shape
      size = self.plex.members
      extra = {
        name: draw_vectors(next(keys), (*stack, size, n), self.plex.sign)
        for name, n in (("alpha", rows), ("gamma", columns))
      }
      if size == 1:  # an ensemble of one is the model itself
        extra = jax.tree.map(jnp.ones_like, extra)
      if "bias" in layer:
        bias = jnp.asarray(layer["bias"])[..., None, :]
        extra["bias"] = jnp.repeat(bias, size, axis=-2)
      return {"kernel": kernel, **extra}

    def members(layers, names):
      return {
        name: member(layer) if name in names else layer
        for name, layer in layers.items()
      }

    made = params | {"blocks": members(params["blocks"], self._layers)}
    if self.cfg.pool:
      made["pool"] = members(params["pool"], self._pool_layers)
    if self.plex.head == "batch_ensemble":
      made["head"] = member(params["head"])
    elif self.plex.head == "heteroscedastic":
      made["head"] = self._head.init(next(keys), self.cfg.width)
    return jax.tree.map(jnp.asarray, made)

  def specs(self, params: dict) -> dict:
    """The `PartitionSpec` of each of the parameters that `init` makes."""
    whole = jax.tree.map(lambda _: jax.P(), params)
    for name, layer in self._layers.items():
      whole["blocks"][name] = {
        leaf: jax.P(None, *layer.specs[leaf]) for leaf in params["blocks"][name]
      }
    if self.cfg.pool:
      for name, layer in self._pool_layers.items():
        whole["pool"][name] = {
          leaf: layer.specs[leaf] for leaf in params["pool"][name]
        }
    return whole

  def __call__(
    self, params: dict, images: jax.Array, key: jax.Array
  ) -> jax.Array:
    """Returns every member's log-probabilities, `[E * B, V]` float32.

    Args:
      params: as `init` makes them.
      images: `[B, H, W, C]` in [-1, 1].
      key: of the heteroscedastic samples; not used by the other heads.
    """
    embed = params["embed"]
    x = patchify(images, self.cfg.patch) @ embed["kernel"]
    x = x + embed["bias"] + embed["position"]
    x = tile_members(x, self.plex.members)  # [E * B, S, D]
    x, _ = jax.lax.scan(self._block, x, params["blocks"])
    x = layer_norm(x, params["norm"])
    z = self._pool(x, params["pool"]) if self.cfg.pool else x.mean(axis=1)
    head = params["head"]
    if self.plex.head == "heteroscedastic":
      return self._head(head, z, key)
    if self.plex.head == "batch_ensemble":
      logits = perturbed_product(head, z)
    else:
      logits = z @ head["kernel"] + head["bias"]
    return jax.nn.log_softmax(logits)

  def probabilities(
    self, params: dict, images: jax.Array, key: jax.Array
  ) -> jax.Array:
    """Returns the mean of the members' probabilities, `[B, V]`."""
    each = jnp.exp(self(params, images, key))
    return member_mean(each, self.plex.members)

  def _block(self, x, params):
    """One encoder block: `x[E * B, S, D_m]` to the next."""

    def layer(name, x):
      return self._layers[name](params[name], x)

    def mlp(y):
      hidden = jax.nn.gelu(layer("mlp_in", y), approximate=True)
      return layer("mlp_out", hidden)

    y = layer_norm(x, params["norm"])
    q, k, v = (self._split(layer(name, y)) for name in ("q", "k", "v"))
    if self.cfg.qk_norm:
      q = layer_norm(q, params["q_norm"])
      k = layer_norm(k, params["k_norm"])
    attended = layer("attention_out", attend(q, k, v)[0])
    if self.cfg.parallel:
      return x + attended + mlp(y), None
    x = x + attended
    return x + mlp(layer_norm(x, params["mlp_norm"])), None

  def _pool(self, x, pool):
    """Pools tokens by one query of each member: `[E * B, D]`."""

    def layer(name, x):
      return self._pool_layers[name](pool[name], x)

    probe = jnp.tile(pool["probe"], (self.plex.members, 1))
    q = jnp.repeat(layer("q", probe), len(x) // self.plex.members, axis=0)
    k, v = (self._split(layer(name, x)) for name in ("k", "v"))
    z, _ = attend(self._split(q[:, None]), k, v)
    z = layer("out", z[:, 0])
    y = layer_norm(z, pool["norm"])
    hidden = y @ pool["mlp_in"]["kernel"] + pool["mlp_in"]["bias"]
    hidden = jax.nn.gelu(hidden, approximate=True)
    return z + hidden @ pool["mlp_out"]["kernel"] + pool["mlp_out"]["bias"]

  def _split(self, x):
    """`x[B, S, H * K] -> [B, S, H, K]`."""
    return x.reshape(*x.shape[:-1], self.cfg.heads, self.cfg.head_dim)
