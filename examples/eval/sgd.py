"""A linear classifier by SGD with momentum on frozen features, resumable."""

import dataclasses
import json
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm


@dataclasses.dataclass(frozen=True, kw_only=True)
class SgdConfig:
  """How the classifier is trained; the defaults are the paper's but for `lr`.

  Attributes:
    lr: peak learning rate, falling to zero as a cosine.
    epochs: passes over the images; the paper's linear probe has 10.
    warmup_epochs: of them, rising from zero.
    batch: images a step.
    momentum: of the gradient.
    weight_decay: added to the gradient of the kernel.
    group_lasso: strength of `sum_i ||W_i||_2` over the features.
    seed: of the order of the images.

  Raises:
    ValueError: if a number is out of range.
  """

  lr: float = 0.1
  epochs: int = 10
  warmup_epochs: int = 0
  batch: int = 512
  momentum: float = 0.9
  weight_decay: float = 0.0
  group_lasso: float = 0.0
  seed: int = 0

  def __post_init__(self):
    for name in ("lr", "epochs", "batch"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
    for name in ("warmup_epochs", "momentum", "weight_decay", "group_lasso"):
      if not getattr(self, name) >= 0:
        raise ValueError(
          f"{name} must be at least 0, got {getattr(self, name)}"
        )


# iNaturalist 2017's recipe: paper, section "Linear probing".
INATURALIST = SgdConfig(lr=0.001, epochs=30, warmup_epochs=3)


class Linear(NamedTuple):
  """A linear classifier: `x @ kernel + bias`."""

  kernel: np.ndarray
  bias: np.ndarray

  def logits(self, features: np.ndarray) -> np.ndarray:
    """Returns `[N, V]` of features `[N, D]`."""
    return np.asarray(features) @ self.kernel + self.bias


def train(
  features: np.ndarray,
  labels: np.ndarray,
  config: SgdConfig,
  *,
  folder: Path | None = None,
) -> tuple[Linear, list[float]]:
  """Minimises the softmax cross-entropy from a zero kernel.

  Args:
    features: `[N, D]`, or `[views, N, D]` of differently augmented images, of
      which each epoch takes the next.
    labels: `[N, V]`; several labels of an image share it alike.
    config: how.
    folder: keeps the state after each epoch, from which the same call goes on.

  Returns:
    The classifier, and the mean loss of every epoch.

  Raises:
    ValueError: if features and labels differ in number.
  """
  views = features if features.ndim == 3 else features[None]
  count = len(labels)
  if views.shape[1] != count or not count:
    raise ValueError(
      f"every image must have features and a label, got {views.shape[1]} and "
      f"{count}"
    )
  batch = min(config.batch, count)
  steps = count // batch
  optimizer = _optimizer(config, steps)
  labels = labels / np.maximum(labels.sum(axis=1, keepdims=True), 1)
  labels = jnp.asarray(labels, jnp.float32)

  def loss_of(params, x, y):
    logits = x @ params["kernel"] + params["bias"]
    loss = -(jax.nn.log_softmax(logits) * y).sum(axis=-1).mean()
    if config.group_lasso:
      squares = jnp.square(params["kernel"]).sum(axis=1)
      # The root has no gradient at the zeros that the kernel starts from.
      loss += config.group_lasso * jnp.sqrt(squares + 1e-12).sum()
    return loss

  @jax.jit
  def epoch(state, x, order):
    def step(state, rows):
      params, opt_state = state
      loss, grads = jax.value_and_grad(loss_of)(params, x[rows], labels[rows])
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), loss

    state, losses = jax.lax.scan(step, state, order)
    return state, losses.mean()

  params = {
    "kernel": jnp.zeros((views.shape[-1], labels.shape[1])),
    "bias": jnp.zeros(labels.shape[1]),
  }
  kept = _Kept(folder, (params, optimizer.init(params)), config, views.shape)
  state, losses = kept.read()
  bar = tqdm.tqdm(
    range(len(losses), config.epochs), unit="epoch", desc="sgd", disable=None,
    leave=False,
  )  # fmt: skip
  for i in bar:
    rng = np.random.default_rng((config.seed, i))
    order = rng.permutation(count)[: steps * batch].reshape(steps, batch)
    x = jnp.asarray(views[i % len(views)], jnp.float32)
    state, loss = epoch(state, x, order)
    losses.append(float(loss))
    kept.write(state, losses)
  kernel, bias = jax.device_get((state[0]["kernel"], state[0]["bias"]))
  return Linear(kernel, bias), losses


def _optimizer(config, steps):
  total = config.epochs * steps
  schedule = optax.warmup_cosine_decay_schedule(
    0.0 if config.warmup_epochs else config.lr,
    config.lr,
    config.warmup_epochs * steps,
    max(total, 1),
  )
  return optax.chain(
    optax.add_decayed_weights(
      config.weight_decay, {"kernel": True, "bias": False}
    ),
    optax.sgd(schedule, momentum=config.momentum),
  )


class _Kept:
  """The state after each epoch, in one file of a folder."""

  def __init__(self, folder, first, config, shape):
    self._leaves, self._treedef = jax.tree.flatten(first)
    self._key = json.dumps([dataclasses.asdict(config), list(shape)])
    self._path = folder and Path(folder) / "sgd.npz"

  def read(self):
    """The state and the losses so far; the first ones if nothing fits."""
    leaves, losses = self._leaves, []
    if self._path and self._path.exists():
      with np.load(self._path) as file:
        if str(file["key"]) == self._key:
          leaves = [jnp.asarray(file[f"{i}"]) for i in range(len(leaves))]
          losses = file["losses"].tolist()
    return self._treedef.unflatten(leaves), losses

  def write(self, state, losses):
    if not self._path:
      return
    self._path.parent.mkdir(parents=True, exist_ok=True)
    partial = self._path.with_suffix(".tmp")
    leaves = {f"{i}": x for i, x in enumerate(jax.tree.leaves(state))}
    with partial.open("wb") as file:
      np.savez(file, key=self._key, losses=losses, **jax.device_get(leaves))
    os.replace(partial, self._path)
