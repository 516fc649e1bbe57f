"""What a run is made of, from its config: data, mesh, compiled programs."""

import dataclasses
import math
import time
from collections.abc import Iterator

import grain
import jax
import jax.numpy as jnp

from collective_mm import gate, make_mesh
from examples.data import feed, pipeline
from examples.data.skipped import Skipped
from examples.data.source import Source
from examples.data.sources import open_source
from examples.presets import TrainConfig
from examples.usage import blame
from models import train_step
from models.optimizer import make_optimizer
from models.param_groups import check_groups, is_frozen
from models.params import init_params
from models.sharding import check_mesh
from models.vit_config import ViTConfig


def fitted(config: TrainConfig, source: Source) -> TrainConfig:
  """Returns `config` with as many classes as the data have.

  If the model had another number, a new head begins by giving each class one
  chance in that number: with a kernel of zeros, its bias alone speaks.
  """
  classes = len(source.classes)
  if config.model.classes == classes:
    return config
  bias = -math.log(max(classes - 1, 1))
  model = dataclasses.replace(
    config.model, classes=classes, head_bias_init=bias
  )
  return dataclasses.replace(config, model=model)


def open_data(config: TrainConfig) -> tuple[Source, Source]:
  """Returns what to train on and what is held out.

  Raises:
    UsageError: if `config.data` cannot be opened.
  """
  with blame(f"--data={config.data}"):
    return open_source(config.data, "train"), open_source(config.data, "val")


def choose_mesh(config: TrainConfig) -> jax.sharding.Mesh:
  """Makes the mesh, of all devices.

  Raises:
    UsageError: if there are not as many as it should have.
  """
  shape = config.mesh
  if shape is None:
    devices = jax.device_count()
    tutorial = jax.default_backend() == "cpu" and devices == 8
    shape = (2, 4) if tutorial else (devices, 1)
  with blame(f"--mesh={shape[0]},{shape[1]}"):
    return make_mesh(
      data=shape[0], model=shape[1], whole_dims=config.whole_dims
    )


def _check_fit(config, mesh):
  """Checks that the mesh divides the model and the batch."""
  model = config.model
  flag = f"--mesh={mesh.shape['data']},{mesh.shape['model']}"
  sizes = f"--heads={model.heads} --mlp={model.mlp} --width={model.width}"
  with blame(f"{flag} {sizes}"):
    check_mesh(model, mesh, mesh.size, config.layout)
  with blame(f"{flag} --batch={config.batch}"):
    check_mesh(model, mesh, config.batch, config.layout)
    if config.batch // mesh.size % config.microbatches:
      raise ValueError(
        f"microbatches must divide the images of a device: {config.batch} / "
        f"{mesh.size} = {config.batch // mesh.size} is not a multiple of "
        f"microbatches={config.microbatches}"
      )


class Setup:
  """The parts of a run that do not change from step to step.

  Attributes:
    config: the run.
    mesh: its devices.
    optimizer: made from `config.optimizer`.
    skipped: images that were left out.
  """

  def __init__(
    self,
    config: TrainConfig,
    mesh: jax.sharding.Mesh,
    train: Source,
    test: Source,
  ):
    """Checks what can be wrong with the request; compiles nothing.

    Raises:
      UsageError: if the model or the batch does not fit on the mesh, the data
        are not for this model, or a group of parameters names none.
    """
    _check_fit(config, mesh)
    self.config, self.mesh = config, mesh
    self.optimizer = make_optimizer(config.optimizer)
    self.skipped = Skipped(config.max_bad_images)
    self._sharding = train_step.batch_sharding(mesh)
    self._source = train
    options = {
      "batch": config.batch,
      "rows": feed.host_rows(self._sharding, config.batch),
      "skipped": self.skipped,
      "levels": True,
    }
    with blame("--set optimizer.groups"):
      check_groups(config.optimizer.groups, _shapes(config.model))
    with blame(f"--data={config.data}"):
      self._train = pipeline.train_batches(
        train,
        config.model,
        seed=config.seed,
        augment=config.augment,
        **options,
      )
      self._test = pipeline.eval_batches(test, config.model, **options)

  def abstract_state(self) -> train_step.TrainState:
    """Returns the state of the run as shapes with their shardings."""
    return train_step.abstract_state(
      self.config.model, self.optimizer, self.mesh, ema=self._has_ema
    )

  def first_state(self, params: dict | None = None) -> train_step.TrainState:
    """Returns the state before the first step, from `params` or drawn."""
    config, ema = self.config, self._has_ema
    if params is not None:
      return train_step.state_from(
        params, config.model, self.optimizer, self.mesh, ema=ema
      )
    key = jax.random.key(config.seed)
    return train_step.init_state(
      key, config.model, self.optimizer, self.mesh, ema=ema
    )

  def compile(self, *, train: bool = True) -> float:
    """Compiles the steps; returns the seconds that it took.

    Args:
      train: the training step as well as that of evaluation.
    """
    config, start = self.config, time.perf_counter()
    options = {
      "layout": config.layout,
      "schedule": config.schedule,
      "compute_dtype": jnp.dtype(config.compute_dtype),
      "loss": config.loss,
    }
    state = self.abstract_state()
    batch = train_step.abstract_batch(config.model, self.mesh, config.batch)
    groups = config.optimizer.groups
    if train:
      kind = self.mesh.devices.flat[0].device_kind
      step = train_step.make_train_step(
        config.model,
        self.optimizer,
        self.mesh,
        remat=config.remat,
        microbatches=config.microbatches,
        ema_decay=config.ema_decay,
        guard=True,
        frozen=(lambda name: is_frozen(name, groups)) if groups else None,
        **options,
      )
      self.train = step.lower(state, batch).compile(
        compiler_options=gate.compiler_options(
          kind, prefetch=True, whole_dims=config.whole_dims
        )
      )
    evaluate = train_step.make_eval_step(config.model, self.mesh, **options)
    self._evaluate = evaluate.lower(state.params, batch).compile()
    return time.perf_counter() - start

  def batches(self, start: int) -> Iterator[dict]:
    """Yields the batches of the steps after `start`, on the mesh."""
    return self._placed(self._train, start, self.config.steps)

  def names(self, step: int) -> list[str]:
    """Returns the ids of the images of a step, counted from 1."""
    config = self.config
    data = pipeline.train_names(
      self._source, batch=config.batch, seed=config.seed
    )
    return data[step - 1]

  def evaluate(self, state: train_step.TrainState, go_on) -> dict | None:
    """Returns the mean loss and the accuracy on the held-out part.

    Args:
      state: whose parameters, and whose average of them if it has one, to
        evaluate: "loss" and "accuracy", "ema_loss" and "ema_accuracy".
      go_on: called after each batch; evaluation ends early, with None, where
        it returns false.
    """
    trees = {"": state.params} | ({"ema_": state.ema} if state.ema else {})
    total = dict.fromkeys(
      (p + name for p in trees for name in ("loss", "correct", "count")), 0.0
    )
    # One batch in flight: virtual CPU devices take their threads from one
    # pool, and with many computations waiting in it they would starve.
    for batch in self._placed(self._test, 0, len(self._test)):
      for prefix, params in trees.items():
        sums = jax.device_get(self._evaluate(params, batch))
        for name, x in sums.items():
          total[prefix + name] += float(x)
      if not go_on():
        return None
    result = {}
    for p in trees:
      result[p + "loss"] = total[p + "loss"] / total[p + "count"]
      result[p + "accuracy"] = total[p + "correct"] / total[p + "count"]
    return result

  @property
  def _has_ema(self) -> bool:
    return self.config.ema_decay is not None

  def _placed(self, data: grain.MapDataset, start, stop):
    return feed.on_device(
      feed.prefetched(data, start, stop), self._sharding, self.config.batch
    )


def _shapes(cfg: ViTConfig):
  return jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
