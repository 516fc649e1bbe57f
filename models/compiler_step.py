"""The training step that the compiler partitions: the baseline of ours.

The single-device twin of `vit_reference` with sharding constraints and nothing
else: no rings, no `jax.shard_map`. Weights are rounded, then gathered over the
data axis by a constraint; tokens lie as in the layout "tokens" between blocks,
and each block's first products read them gathered over the model axis.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from models.loss import loss_fn
from models.sharding import param_specs
from models.train_step import (
  Batch,
  TrainState,
  state_shardings,
  updated,
)
from models.vit_config import ViTConfig
from models.vit_reference import forward

_TOKENS = jax.P(("data", "model"), None, None)
_GATHERED = jax.P("data", None, None)
_FEATURES = jax.P("data", None, "model")


def make_compiler_step(
  cfg: ViTConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  *,
  compute_dtype: jax.typing.DTypeLike = jnp.float32,
  remat: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns a jitted step like that of `models.train_step.make_train_step`.

  State and batch lie on the mesh as they do there, and the numbers are the
  same but for the order of sums.

  Args:
    cfg, optimizer, mesh, remat: as there.
    compute_dtype: as there; partial sums of products travel in it.
  """
  dtype = jnp.dtype(compute_dtype)
  places = _places(cfg, mesh)

  def place(name, x):
    # Each constraint holds for the cotangent too, in the opposite order: what
    # is gathered forward is reduce-scattered backward.
    for spec in places.get(name, ()):
      x = lax.with_sharding_constraint(x, jax.NamedSharding(mesh, spec))
    return x

  def loss_of(params, batch):
    logits, out = forward(
      params,
      batch["image"],
      cfg,
      compute_dtype=dtype,
      product_dtype=dtype,
      remat=remat,
      place=place,
    )
    loss = loss_fn(logits, batch["label"], batch["mask"])
    return loss, out["max_attention_logit"]

  def step(state, batch):
    (loss, max_logit), grads = jax.value_and_grad(loss_of, has_aux=True)(
      state.params, batch
    )
    return updated(state, optimizer, loss, max_logit, grads)

  shardings = state_shardings(cfg, optimizer, mesh)
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _places(cfg, mesh) -> dict[str, tuple[jax.P, ...]]:
  """Where each array that `forward` names lies, one place after the other."""
  places = {"tokens": (_TOKENS,), "gathered": (_TOKENS, _GATHERED)}
  for layer, spec in _layers(param_specs(cfg, mesh)):
    at_rest = jax.P(*spec[-2:])
    gathered = jax.P(
      *("model" if axes and "model" in axes else None for axes in at_rest)
    )
    places[layer] = (at_rest, gathered)
    if gathered == jax.P(None, "model"):
      places[f"{layer} product"] = (_FEATURES,)
    elif layer in ("attention_out", "mlp_out"):
      places[f"{layer} operand"] = (_FEATURES,)
      places[f"{layer} product"] = (_GATHERED, _TOKENS)
  if cfg.parallel:  # added to the MLP's before it is reduced
    del places["attention_out product"]
  return places


def _layers(specs: dict) -> list[tuple[str, jax.P]]:
  """Every layer with a kernel, and its spec; blocks and pool are alike."""
  found = []
  for name, inside in specs.items():
    if "kernel" in inside:
      found.append((name, inside["kernel"]))
    elif isinstance(inside, dict):
      found += _layers(inside)
  return found
