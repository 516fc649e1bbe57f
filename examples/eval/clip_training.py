"""Trains the temporal transformer on kept features, and its baseline."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models import temporal

_WARMUP_EPOCHS = 2.5  # paper, appendix F
_MOMENTUM = 0.9

# Probabilities `[N, V]` of views `[N, T, D]`.
Model = Callable[[np.ndarray], np.ndarray]


def fit(
  features: np.ndarray,
  labels: np.ndarray,
  cfg: temporal.TemporalConfig,
  *,
  epochs: int = 30,
  batch: int = 256,
  lr: float = 0.1,
  weight_decay: float = 0.0,
  seed: int = 0,
) -> Model:
  """Returns a temporal transformer, trained by SGD with momentum and cosine.

  Args:
    features: `[N, T, D]`; normalised by their mean and deviation first.
    labels: `[N]`.
    cfg: of the transformer.
    epochs: passes over the features; the first 2.5 warm up (paper, appendix
      F), fewer if the run is shorter.
    batch: clips a step; at most `N`.
    lr: peak learning rate.
    weight_decay: of kernels, times the learning rate.
    seed: of the first parameters and the order.
  """
  mean, deviation = features.mean((0, 1)), features.std((0, 1)) + 1e-5
  features = (features - mean) / deviation
  batch = min(batch, len(features))
  per_epoch = len(features) // batch
  steps = epochs * per_epoch
  warmup = min(round(_WARMUP_EPOCHS * per_epoch), steps // 2)
  schedule = optax.warmup_cosine_decay_schedule(0, lr, warmup, steps)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.add_decayed_weights(weight_decay, _kernels),
    optax.sgd(schedule, momentum=_MOMENTUM),
  )

  @jax.jit
  def step(params, opt_state, clips, labels):
    def loss(params):
      logits = temporal.classify(params, clips, cfg)
      nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return nats.mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  params = temporal.init(jax.random.key(seed), cfg)
  opt_state = optimizer.init(params)
  rng = np.random.default_rng(seed)
  bar = tqdm.trange(epochs, unit="epoch", disable=None, leave=False)
  for _ in bar:
    order = rng.permutation(len(features))[: per_epoch * batch]
    for rows in order.reshape(per_epoch, batch):
      params, opt_state, value = step(
        params, opt_state, features[rows], labels[rows]
      )
      jax.block_until_ready(value)
    bar.set_postfix(loss=f"{float(value):.3f}", refresh=False)

  @jax.jit
  def probabilities(clips):
    return jax.nn.softmax(temporal.classify(params, clips, cfg))

  return lambda clips: np.asarray(
    probabilities(jnp.asarray((clips - mean) / deviation))
  )


def fit_mean(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> Model:
  """Returns the baseline: logistic regression on the mean of the frames."""
  classifier = make_pipeline(
    StandardScaler(), LogisticRegression(max_iter=1000, random_state=seed)
  ).fit(features.mean(axis=1), labels)
  return lambda clips: classifier.predict_proba(clips.mean(axis=1))


def accuracy(model: Model, views: np.ndarray, labels: np.ndarray) -> float:
  """Returns the share of clips whose mean over the views is right.

  Args:
    model: probabilities of views.
    views: `[N, views, T, D]`.
    labels: `[N]`.
  """
  found = np.mean([model(views[:, v]) for v in range(views.shape[1])], axis=0)
  return float((found.argmax(axis=-1) == labels).mean())


def _kernels(params):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1] == jax.tree_util.DictKey("kernel"), params
  )
