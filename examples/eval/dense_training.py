"""Trains what reads the tokens of a ViT: the ViT frozen, or along with it."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax import lax

from models.vit import ShardedViT
from models.vit_config import ViTConfig

_EXAMPLES = jax.P(("data", "model"))
_NO_BLOCK = ("embed", "norm")

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
  """What reads a ViT's features: its first parameters and its two functions.

  Attributes:
    layers: the features that it reads, as `examples.eval.features` names them.
    params: its first parameters.
    predict: `predict(params, features) -> prediction [B, ...]`.
    loss: `loss(params, features, targets, key) -> (sum, count)`: of one batch,
      over all that is labelled; the key is for dropout.
  """

  layers: tuple[str, ...]
  params: dict
  predict: Callable[[dict, list[jax.Array]], jax.Array]
  loss: Callable[..., tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """How a decoder is trained: Adam, warm-up and cosine to zero.

  The defaults are those of the paper's depth decoders (appendix E.2.3).

  Attributes:
    steps: of the whole run.
    batch: `B`, images a step, over all devices.
    lr: peak learning rate.
    warmup: steps to it.
    clip: largest global norm of a gradient.
    seed: of the order of the examples and of dropout.

  Raises:
    ValueError: if a number is not positive, or the warm-up is the whole run.
  """

  steps: int = 300_000
  batch: int = 64
  lr: float = 2e-4
  warmup: int = 2_500
  clip: float = 0.05
  seed: int = 0

  def __post_init__(self):
    for name in ("steps", "batch", "lr", "clip"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
    if not 0 <= self.warmup < self.steps:
      raise ValueError(
        f"warmup must be in [0, {self.steps}), the steps, got {self.warmup}"
      )

  def optimizer(self) -> optax.GradientTransformation:
    """Returns clip by global norm, then Adam at the schedule's rate."""
    schedule = optax.warmup_cosine_decay_schedule(
      0, self.lr, self.warmup, self.steps
    )
    return optax.chain(
      optax.clip_by_global_norm(self.clip), optax.adam(schedule)
    )


def fit_frozen(
  decoder: Decoder,
  features: Arrays,
  targets: Arrays,
  mesh: jax.sharding.Mesh,
  recipe: Recipe,
) -> dict:
  """Returns the decoder's parameters after training over kept features.

  Args:
    decoder: what to train.
    features: `[N, ...]` by name, as from `examples.eval.features.extract`.
    targets: `[N, ...]` by name, for `decoder.loss`.
    mesh: each batch lies on both of its axes.
    recipe: of the training.
  """
  optimizer = recipe.optimizer()

  @jax.jit
  def step(params, opt_state, batch, key):
    def loss(params):
      tokens = [batch[name] for name in decoder.layers]
      total, count = decoder.loss(params, tokens, batch, key)
      return total / jnp.maximum(count, 1)

    value, grads = jax.value_and_grad(loss)(params)
    return _updated(optimizer, params, opt_state, grads), value

  kept = {name: features[name] for name in decoder.layers} | targets
  params = jax.device_put(decoder.params, jax.NamedSharding(mesh, jax.P()))
  return _loop(step, params, optimizer, kept, mesh, recipe)


def fit_whole(
  decoder: Decoder,
  cfg: ViTConfig,
  params: dict,
  images: np.ndarray,
  targets: Arrays,
  mesh: jax.sharding.Mesh,
  recipe: Recipe,
) -> tuple[dict, dict]:
  """Returns the ViT's and the decoder's parameters after training both.

  Args:
    decoder: what to train beside the ViT.
    cfg: the ViT's shape.
    params: its parameters, the tree of `models.params.init_params`.
    images: `[N, H, W, C]` float32 in [-1, 1].
    targets: `[N, ...]` by name, for `decoder.loss`.
    mesh: with the axes "data" and "model".
    recipe: of the training.
  """

  def tap(x):
    return x.reshape(-1, cfg.tokens, x.shape[-1]).astype(jnp.float32)

  # Layers after the last tap get no gradient, and stay as they are.
  vit = ShardedViT(cfg, mesh, tap=tap)
  optimizer = recipe.optimizer()
  specs = {"vit": vit.specs, "decoder": jax.P()}

  @jax.shard_map(
    mesh=mesh, in_specs=(specs, _EXAMPLES, jax.P()), out_specs=(jax.P(), specs)
  )
  def gradients(both, batch, key):
    # Devices hold other examples, so that they drop other features.
    key = jax.random.fold_in(key, lax.axis_index(("data", "model")))

    def loss(both):
      _, out = vit(both["vit"], batch["image"])
      tokens = [_layer(out["taps"], name) for name in decoder.layers]
      total, count = decoder.loss(both["decoder"], tokens, batch, key)
      total, count = lax.psum((total, count), ("data", "model"))
      return total / jnp.maximum(count, 1)

    return jax.value_and_grad(loss)(both)

  @jax.jit
  def step(both, opt_state, batch, key):
    value, grads = gradients(both, batch, key)
    return _updated(optimizer, both, opt_state, grads), value

  shardings = {
    "vit": jax.tree.map(lambda s: jax.NamedSharding(mesh, s), vit.specs),
    "decoder": jax.NamedSharding(mesh, jax.P()),
  }
  both = {
    "vit": jax.device_put(params, shardings["vit"]),
    "decoder": jax.device_put(decoder.params, shardings["decoder"]),
  }
  kept = {"image": images} | targets
  both = _loop(step, both, optimizer, kept, mesh, recipe)
  return both["vit"], both["decoder"]


def predict(
  decoder: Decoder, params: dict, features: Arrays, *, batch: int = 64
) -> np.ndarray:
  """Returns the decoder's predictions, `[N, ...]`, some images at a time."""
  run = jax.jit(decoder.predict)
  rows = [features[name] for name in decoder.layers]
  found = []
  for start in range(0, len(rows[0]), batch):
    part = [x[start : start + batch] for x in rows]
    missing = batch - len(part[0])
    padded = [np.concatenate([x, np.repeat(x[-1:], missing, 0)]) for x in part]
    found.append(jax.device_get(run(params, padded))[: len(part[0])])
  return np.concatenate(found)


def _updated(optimizer, params, opt_state, grads):
  updates, opt_state = optimizer.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def _loop(step, params, optimizer, arrays, mesh, recipe):
  """Steps over batches of all arrays, every epoch in another order."""
  opt_state = jax.jit(optimizer.init)(params)
  sharding = jax.NamedSharding(mesh, _EXAMPLES)
  keys = jax.random.key(recipe.seed)
  bar = tqdm.trange(recipe.steps, unit="step", disable=None, leave=False)
  rows = _rows(len(next(iter(arrays.values()))), recipe)
  for i in bar:
    picked = next(rows)
    batch = jax.device_put({n: x[picked] for n, x in arrays.items()}, sharding)
    (params, opt_state), value = step(
      params, opt_state, batch, jax.random.fold_in(keys, i)
    )
    # One step in flight: virtual devices share one pool of threads.
    jax.block_until_ready(value)
    bar.set_postfix(loss=f"{float(value):.4f}", refresh=False)
    if not np.isfinite(float(value)):
      raise FloatingPointError(f"loss is {float(value)} at step {i + 1}")
  return params


def _rows(count: int, recipe: Recipe):
  """Endless batches of row numbers; a batch may end one epoch and begin one."""
  rng = np.random.default_rng(recipe.seed)
  left = np.empty(0, np.int64)
  while True:
    while len(left) < recipe.batch:
      left = np.concatenate([left, rng.permutation(count)])
    yield left[: recipe.batch]
    left = left[recipe.batch :]


def _layer(taps, name: str) -> jax.Array:
  """A layer of the taps of `ShardedViT` by the name of the features."""
  if name in _NO_BLOCK:
    return taps[name]
  return taps["block"][int(name.removeprefix("block_"))]


def block_names(indices: Sequence[int]) -> tuple[str, ...]:
  """Returns the names of blocks, counted from 0.

  Example:
    >>> block_names((5, 11))
    ('block_05', 'block_11')
  """
  return tuple(f"block_{i:02}" for i in indices)
