"""The sharded ViT: one device's part of the forward pass.

Everything here runs inside `jax.shard_map` over the axes "data" and "model".
Subscripts say the sharding: `B_d` is a dim cut over `data`, `B_dm` over both.
Two layouts of the tokens between the products:

    tokens    x[B_dm * S, D]   whole tokens; rows travel the rings
    features  x[B_d * S, D_m]  the paper's: features travel the rings

Rows hold batch and tokens merged, which keeps the dim that travels leading.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from collective_mm import (
  all_gather_matmul,
  matmul_reduce_scatter,
  prefetch_scan,
)
from collective_mm.axis_rings import axis_rings
from collective_mm.mesh import all_gather, axis_size
from models.attention import attend, attention, can_fuse
from models.norm import layer_norm, layer_norm_features, local_features
from models.patches import patchify
from models.sharding import data_dim, param_specs
from models.vit_config import ViTConfig


class ShardedViT:
  """The forward pass of one configuration on one mesh; holds no arrays.

  Args:
    cfg: the model's shape.
    mesh: with the axes "data" and "model".
    layout: "tokens" or "features", as in the module's docstring.
    schedule: of every ring, as in `collective_mm.all_gather_matmul`.
    compute_dtype: of matmul operands and of the tokens between blocks.
    remat: recompute each block in backward, with weights that are gathered a
      block ahead, instead of saving its inside and its gathered weights.
    microbatches: parts of this device's images that go through a block one
      after the other, while it holds the block's weights; only with `remat`.
    tap: called with this device's tokens after the embedding, after each block
      and after the final norm, and with what the pooling's attention gives;
      its results are in the output then.
  """

  def __init__(
    self,
    cfg: ViTConfig,
    mesh: jax.sharding.Mesh,
    *,
    layout: str = "tokens",
    schedule: str | tuple[str, str] = "auto",
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
    microbatches: int = 1,
    tap: Callable[[jax.Array], jax.Array] | None = None,
  ):
    self.cfg = cfg
    self.tap = tap
    self.dtype = jnp.dtype(compute_dtype)
    self.by_features = layout == "features"
    self.remat = remat
    self.microbatches = microbatches
    self.specs = param_specs(cfg, mesh)
    self.alone = mesh.size == 1
    self.data_rings = axis_rings(mesh, "data")
    self.fused = can_fuse(cfg, mesh.devices.flat[0].device_kind)
    # The dim of x[rows, D] that is sharded over the model axis.
    self.dim = -1 if self.by_features else 0
    self._gather_matmul = functools.partial(
      all_gather_matmul, axis_name="model", schedule=schedule
    )
    self._matmul_scatter = functools.partial(
      matmul_reduce_scatter, axis_name="model", schedule=schedule
    )

  def __call__(
    self, params: dict, images: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classifies this device's images.

        images[B_dm, H, W, C] -> x[B_dm * S, D] or x[B_d * S, D_m], L blocks
          -> pooled[B_d, D_m] -> logits[B_dm, V]

    Args:
      params: this device's shards of the tree of `init_params`.
      images: `[B_dm, H, W, C]` in [-1, 1].

    Returns:
      float32 logits `[B_dm, V]`, the pre-logits if there is no classifier, and
      `{"max_attention_logit": scalar over this device's heads and images,
      "pre_logits": [B_d, D_m] float32}`. With a `tap` also "taps":
      `{"embed", "norm": tap(x), "block": [L, ...] of tap(x)}`, and if
      `cfg.pool` "pool": the `[B_d, D_m]` before the pooling's MLP.
    """
    cfg, specs = self.cfg, self.specs
    x = self._embed(params["embed"], images)
    taps = {"embed": self._tapped(x)}
    x, aux = self._blocks(x, params["blocks"], specs["blocks"])
    max_logits, taps["block"] = aux
    x = self._norm(x, params["norm"])
    taps["norm"] = self._tapped(x)
    if cfg.pool:
      z, taps["pool"] = self._pool(x, params["pool"], specs["pool"])
    else:
      z = self._first_or_mean(x)
    if cfg.pre_logits:
      z = self._pre_logits(z, params["pre_logits"])
    logits = z
    if cfg.classes:
      head = self._kernel(params["head"], specs["head"])
      logits = self._matmul_scatter(z.astype(self.dtype), head, scatter_dim=0)
      logits = logits.astype(jnp.float32) + params["head"]["bias"]
    return logits, {
      "max_attention_logit": lax.stop_gradient(max_logits.max()),
      "pre_logits": z.astype(jnp.float32),
      **({"taps": taps} if self.tap else {}),
    }

  def _tapped(self, x):
    """What is kept of the tokens between blocks: nothing without a tap."""
    return self.tap(x) if self.tap else None

  def _embed(self, embed, images):
    """Patches to tokens; the kernel is small and whole on every device."""
    if self.by_features:
      images = all_gather(images, "model", 0)  # [B_d, H, W, C]
    x = self._patches(embed, images)
    x = x + self._local(embed["bias"]) + self._local(embed["position"])
    if self.cfg.cls:
      cls = self._local(embed["cls"])
      cls = jnp.broadcast_to(cls, (len(x), 1, *cls.shape))
      x = jnp.concatenate([cls, x], axis=1)
    x = x.reshape(-1, x.shape[-1]).astype(self.dtype)
    return x

  def _patches(self, embed, images):
    """Patches times their kernel, in float32: -> [B, S, D]."""
    patches = patchify(images, self.cfg.patch).astype(self.dtype)
    kernel = self._local(embed["kernel"]).astype(self.dtype)
    return jnp.matmul(patches, kernel, preferred_element_type=jnp.float32)

  def _blocks(self, x, params, specs):
    """All encoder blocks; of each its largest attention logit and its tap."""
    rows, parts = x.shape[0], self.microbatches
    held = parts > 1
    if self.remat and (held or not self.alone):
      x, aux = prefetch_scan(
        self._block,
        x.reshape(parts, -1, x.shape[-1]) if held else x,
        params,
        specs=specs,
        has_aux=True,
        gather_dtype=self.dtype,
        hold_across_microbatches=held,
        rings=self.data_rings,
      )
      return x.reshape(rows, -1), aux
    specs = jax.tree.map(lambda spec: jax.P(*spec[1:]), specs)

    def block(x, params):
      whole = {
        name: layer | {"kernel": self._kernel(layer, specs[name])}
        if "kernel" in layer
        else layer
        for name, layer in params.items()
      }
      return self._block(whole, x)

    if self.remat:  # one device has nothing to fetch ahead
      block = jax.checkpoint(block, prevent_cse=False)
    return lax.scan(block, x, params)

  def _block(self, layer, x):
    """One encoder block; x[B_dm * S, D] or x[B_d * S, D_m]."""
    kernel = {
      name: layer[name]["kernel"].astype(self.dtype)
      for name in ("q", "k", "v", "mlp_in", "attention_out", "mlp_out")
    }
    y = self._norm(x, layer["norm"])
    if self.cfg.parallel:
      q, k, v, hidden = self._project(
        y, layer, kernel, ("q", "k", "v", "mlp_in")
      )
      attended, max_logit = self._attention(q, k, v, layer)
      out = self._matmul_scatter(
        (attended, hidden),
        (kernel["attention_out"], kernel["mlp_out"]),
        scatter_dim=self.dim,
      )
      x = self._add(x, out, layer["mlp_out"])
      return x, (max_logit, self._tapped(x))
    q, k, v = self._project(y, layer, kernel, ("q", "k", "v"))
    attended, max_logit = self._attention(q, k, v, layer)
    out = self._matmul_scatter(
      attended, kernel["attention_out"], scatter_dim=self.dim
    )
    x = self._add(x, out, layer["attention_out"])
    y = self._norm(x, layer["mlp_norm"])
    (hidden,) = self._project(y, layer, kernel, ("mlp_in",))
    out = self._matmul_scatter(hidden, kernel["mlp_out"], scatter_dim=self.dim)
    x = self._add(x, out, layer["mlp_out"])
    return x, (max_logit, self._tapped(x))

  def _attention(self, q, k, v, layer):
    """Attention of the local heads: q[B_d * S, D_m] -> [B_d * S, D_m]."""
    y, max_logit = attention(q, k, v, layer, cfg=self.cfg, fused=self.fused)
    return y, lax.stop_gradient(max_logit)

  def _project(self, y, layer, kernel, names):
    """`y` times several kernels, which share a gather; MLP-in activated."""
    biases = {n: layer[n]["bias"] for n in names if "bias" in layer[n]}

    def finish(biases, *products):
      done = []
      for name, x in zip(names, products, strict=True):
        x = x.astype(jnp.float32) + biases[name] if name in biases else x
        if name == "mlp_in":
          x = self._gelu(x)
        done.append(x.astype(self.dtype))
      return tuple(done)

    return self._gather_matmul(
      y,
      tuple(kernel[name] for name in names),
      gather_dim=self.dim,
      epilogue=jax.tree_util.Partial(finish, biases),
    )

  def _pool(self, x, pool, specs):
    """Pools tokens by one attention query: -> pooled[B_d, D_m].

    Also returns what it is before the MLP, in float32.
    """
    kernel = {
      name: self._kernel(pool[name], specs[name])
      for name in ("q", "k", "v", "out", "mlp_in", "mlp_out")
    }
    k, v = self._gather_matmul(
      x, (kernel["k"], kernel["v"]), gather_dim=self.dim
    )
    k, v = (
      self._heads(self._bias(y, pool[name]), self.cfg.tokens)
      for y, name in ((k, "k"), (v, "v"))
    )
    # Every device holds the probe, so that its product needs no gather.
    probe = pool["probe"][None].astype(self.dtype)
    q = jnp.matmul(probe, kernel["q"], preferred_element_type=jnp.float32)
    q = self._heads(self._bias(q, pool["q"]), 1)
    q = jnp.broadcast_to(q, (len(k), *q.shape[1:]))
    q, k, v = (y.astype(self.dtype) for y in (q, k, v))
    z, _ = attend(q, k, v)  # [B_d, 1, D_m]
    z = self._matmul_scatter(z[:, 0], kernel["out"], scatter_dim=-1)
    attended = z + local_features(pool["out"]["bias"])
    z = attended.astype(self.dtype)
    y = layer_norm_features(z, pool["norm"]).astype(self.dtype)
    hidden = self._gather_matmul(y, kernel["mlp_in"], gather_dim=-1)
    hidden = self._gelu(self._bias(hidden, pool["mlp_in"]))
    hidden = hidden.astype(self.dtype)
    out = self._matmul_scatter(hidden, kernel["mlp_out"], scatter_dim=-1)
    z = z + out.astype(jnp.float32) + local_features(pool["mlp_out"]["bias"])
    return z, attended

  def _first_or_mean(self, x):
    """The class token if there is one, else the mean: -> [B_d, D_m] float32."""
    x = x.reshape(-1, self.cfg.tokens, x.shape[-1]).astype(jnp.float32)
    x = x[:, 0] if self.cfg.cls else x.mean(axis=1)
    if self.by_features or axis_size("model") == 1:
      return x
    return lax.all_to_all(x, "model", split_axis=1, concat_axis=0, tiled=True)

  def _pre_logits(self, z, layer):
    """`tanh(z @ kernel + bias)`, the kernel whole everywhere: -> [B_d, D_m]."""
    z = all_gather(z.astype(self.dtype), "model", 1)
    kernel = local_features(layer["kernel"]).astype(self.dtype)
    z = jnp.matmul(z, kernel, preferred_element_type=jnp.float32)
    return jnp.tanh(z + local_features(layer["bias"]))

  def _kernel(self, layer, specs):
    """A kernel in the compute dtype, gathered over the data axis."""
    dim = data_dim(specs["kernel"])
    kernel = layer["kernel"].astype(self.dtype)  # rounded before it travels
    if dim is None:
      return kernel
    return all_gather(kernel, "data", dim)

  def _norm(self, x, norm):
    """LayerNorm of the tokens between blocks, in the compute dtype."""
    apply = layer_norm_features if self.by_features else layer_norm
    return apply(x, norm).astype(self.dtype)

  def _local(self, x):
    """This device's features of a small array that lies whole on each."""
    return local_features(x) if self.by_features else x

  def _add(self, x, out, layer):
    """The residual sum, with the bias of the layer that `out` came from."""
    out = out.astype(jnp.float32)
    if "bias" in layer:
      out = out + self._local(layer["bias"])
    return (x + out).astype(x.dtype)

  def _gelu(self, x):
    x = x.astype(jnp.float32)
    return jax.nn.gelu(x) if self.cfg.gelu == "tanh" else exact_gelu(x)

  def _bias(self, x, layer):
    """`x + bias` in float32, where the layer has a bias."""
    x = x.astype(jnp.float32)
    return x + layer["bias"] if "bias" in layer else x

  def _heads(self, x, tokens):
    """x[B * tokens, H_m * K] -> x[B, tokens, H_m, K]."""
    return x.reshape(
      -1, tokens, x.shape[-1] // self.cfg.head_dim, self.cfg.head_dim
    )


@jax.custom_jvp
def exact_gelu(x: jax.Array) -> jax.Array:
  """Returns `x` times the chance that a normal number is below it.

  The GELU of Hendrycks and Gimpel (2016), section 2, which public ViTs have.
  Its derivative is written out: inside `jax.shard_map` jax 0.12.0 has none of
  `erfc` in float32.

  Args:
    x: `[...]` float32; the result has its shape and dtype.
  """
  return jax.nn.gelu(x, approximate=False)


@exact_gelu.defjvp
def _exact_gelu_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  below = lax.erfc(-x * math.sqrt(0.5)) / 2
  density = jnp.exp(-jnp.square(x) / 2) / math.sqrt(2 * math.pi)
  return exact_gelu(x), (below + x * density) * dx
