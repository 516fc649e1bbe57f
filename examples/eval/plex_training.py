"""Fine-tunes Plex's ViT with a softmax loss, and asks it for probabilities."""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from models.plex import PlexViT


def fine_tune(
  model: PlexViT,
  params: dict,
  batches: Iterator[dict],
  mesh: jax.sharding.Mesh,
  *,
  steps: int,
  lr: float,
  seed: int = 0,
) -> tuple[dict, np.ndarray]:
  """Trains all parameters by SGD with momentum.

  The loss is the mean over members and images of `-sum_k q_k log p_k`, the
  gradient clipped to norm 1, the learning rate a cosine to zero.

  Args:
    model: what to train.
    params: as `model.init` makes them.
    batches: `{"image", "label", "mask"}` as of `examples.data.pipeline`.
    mesh: the model's.
    steps: of them.
    lr: the first learning rate.
    seed: of the heteroscedastic samples.

  Returns:
    The parameters on the mesh, and the loss of every step.

  Raises:
    FloatingPointError: if the last loss is not finite.
  """
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.sgd(optax.cosine_decay_schedule(lr, steps), momentum=0.9),
  )

  def loss(params, batch, key):
    logs = model(params, batch["image"], key)
    label = batch["label"] / jnp.maximum(
      batch["label"].sum(-1, keepdims=True), 1
    )
    members = len(logs) // len(label)
    weights = jnp.tile(label * batch["mask"][:, None], (members, 1))
    return -(weights * logs).sum() / (members * batch["mask"].sum())

  @jax.jit
  def step(params, state, batch, key):
    value, gradient = jax.value_and_grad(loss)(params, batch, key)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  params = place(model, params, mesh)
  state = optimizer.init(params)
  images = jax.NamedSharding(mesh, jax.P("data"))
  losses = []
  bar = tqdm.trange(steps, unit="step", desc="plex", disable=None, leave=False)
  for i in bar:
    batch = jax.device_put(next(batches), images)
    key = jax.random.fold_in(jax.random.key(seed), i)
    params, state, value = step(params, state, batch, key)
    losses.append(float(value))  # one step in flight
  if not np.isfinite(losses[-1]):
    raise FloatingPointError(f"the loss is {losses[-1]} at the end")
  return params, np.array(losses)


def place(model: PlexViT, params: dict, mesh: jax.sharding.Mesh) -> dict:
  """Puts the parameters on the mesh as the layers want them."""
  return jax.device_put(
    params,
    jax.tree.map(
      lambda spec: jax.NamedSharding(mesh, spec), model.specs(params)
    ),
  )


class Predictor:
  """Mean probabilities of the members, batch by batch, one compiled program."""

  def __init__(
    self,
    model: PlexViT,
    params: dict,
    mesh: jax.sharding.Mesh,
    *,
    batch: int,
    seed: int = 0,
  ):
    """Args:
    model, params, mesh: as for `fine_tune`.
    batch: images at a time, which the data axis must divide.
    seed: of the heteroscedastic samples.
    """
    self._run = jax.jit(model.probabilities)
    self._params = place(model, params, mesh)
    self._images = jax.NamedSharding(mesh, jax.P("data"))
    self._batch, self._key = batch, jax.random.key(seed)

  def __call__(self, images: Iterable[np.ndarray]) -> np.ndarray:
    """Returns `[N, K]` float64 of images `[H, W, C]`."""
    images = np.stack(list(images))
    found = []
    for start in range(0, len(images), self._batch):
      some = images[start : start + self._batch]
      filled = np.zeros((self._batch, *some.shape[1:]), np.float32)
      filled[: len(some)] = some
      probs = self._run(
        self._params, jax.device_put(filled, self._images), self._key
      )
      found.append(np.asarray(probs, np.float64)[: len(some)])
    return np.clip(np.concatenate(found), 0, 1)
