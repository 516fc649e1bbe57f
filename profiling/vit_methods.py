"""The trainer's step by several methods, as calls ready to be timed.

Each call is one whole step of `models.train_step`: forward, backward, optimiser
and update. All methods carry one state on, so that it is held once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from collective_mm.gate import compiler_options
from models import train_step
from models.loss import sigmoid_xent
from models.optimizer import OptimizerConfig, make_optimizer
from models.train_step import TrainState
from models.vit_config import ViTConfig
from models.vit_reference import forward

TWINS = ("plain", "linen")
"""The same model for one device: in plain jnp, and with flax.linen."""
_BARE = ("unoverlapped", *TWINS)
"""Methods that are compiled without `gate.compiler_options`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """One training step at one size.

  Attributes:
    cfg: the model.
    mesh: with the axes "data" and "model".
    batch: images, over all devices.
    whole_dims: whether the mesh has them, as `make_mesh` says.
    layout: "tokens" or "features"; see `models.vit`.
    compute_dtype: of matmul operands and of the tokens between blocks.
    remat: recompute each block in backward.
    optimizer: "adam" or "adafactor", with ViT-22B's numbers.
    schedules: of the collective matmuls, a method each; the first is what the
      others must agree with.
    twins: of `TWINS`, a method each where there is one device.
  """

  cfg: ViTConfig
  mesh: jax.sharding.Mesh
  batch: int
  whole_dims: bool = False
  layout: str = "tokens"
  compute_dtype: str = "float32"
  remat: bool = False
  optimizer: str = "adam"
  schedules: tuple[str, ...] = ("unoverlapped", "auto")
  twins: tuple[str, ...] = ("plain",)

  @property
  def tokens(self) -> int:
    """Tokens of one step, over all devices."""
    return self.batch * self.cfg.tokens

  @property
  def tolerance(self) -> float:
    """Relative difference of loss or gradient norm of two correct methods.

    They round the same numbers to `compute_dtype` in other places: each block
    adds an error of the order of its epsilon, independent of the others', and
    float32 sums over the longest dim are made in another order. A chunk that is
    missing or double changes a block's output by `1 / model axis`.
    """
    longest = max(self.cfg.mlp, self.cfg.classes, self.tokens)
    return float(
      jnp.finfo(self.compute_dtype).eps * math.sqrt(self.cfg.depth)
      + jnp.finfo(jnp.float32).eps * math.sqrt(longest)
    )


class Methods:
  """The steps of a problem on one state and one batch.

  Attributes:
    calls: a call for each method, by name, which makes a step and returns the
      new state and its metrics.
  """

  def __init__(self, problem: Problem):
    self.problem = problem
    self._optimizer = make_optimizer(OptimizerConfig(kind=problem.optimizer))
    self._batch = _draw_batch(problem)
    steps = {
      schedule: train_step.make_train_step(
        problem.cfg,
        self._optimizer,
        problem.mesh,
        layout=problem.layout,
        schedule=schedule,
        compute_dtype=jnp.dtype(problem.compute_dtype),
        remat=problem.remat,
      )
      for schedule in problem.schedules
    }
    if problem.mesh.size == 1:
      for name in problem.twins:
        steps[name] = twin_step(
          name,
          problem.cfg,
          self._optimizer,
          problem.mesh,
          compute_dtype=jnp.dtype(problem.compute_dtype),
          remat=problem.remat,
        )
    self._state: TrainState | None = None
    self.calls: dict[str, Callable[[], tuple[TrainState, dict]]] = {
      name: self._call(name, step) for name, step in steps.items()
    }

  def check(self) -> dict[str, float]:
    """Makes each method's first step from the same state and compares them.

    Returns:
      "loss" and "grad_norm" of the first method.

    Raises:
      ArithmeticError: if one differs from the first method's by more than
        `problem.tolerance`, or is not finite.
    """
    expected: dict[str, float] = {}
    for name, call in self.calls.items():
      self._state = None  # freed before the next one is drawn
      self._state = self._draw_state()
      _, metrics = call()
      got = {key: float(metrics[key]) for key in ("loss", "grad_norm")}
      expected = expected or got
      for key, value in got.items():
        error = abs(value - expected[key]) / abs(expected[key])
        if not error <= self.problem.tolerance:
          raise ArithmeticError(
            f"{key} of {name} must be within {self.problem.tolerance:.1e} of "
            f"{self.problem.schedules[0]}'s, {expected[key]:.6g}, got "
            f"{value:.6g}"
          )
    return expected

  def _call(self, name: str, step):
    kind = self.problem.mesh.devices.flat[0].device_kind
    options = {}
    if name not in _BARE:
      options = compiler_options(
        kind, prefetch=True, whole_dims=self.problem.whole_dims
      )

    @functools.cache
    def compiled():
      lowered = step.lower(self._state, self._batch)
      return lowered.compile(compiler_options=options)

    def call():
      if self._state is None:
        self._state = self._draw_state()
      self._state, metrics = compiled()(self._state, self._batch)
      return self._state, metrics

    return call

  def _draw_state(self) -> TrainState:
    """First parameters, but for the head.

    The head is drawn: from the zeros that training starts with, no gradient
    would reach the blocks.
    """
    return self._draw(jax.random.key(0))

  @functools.cached_property
  def _draw(self) -> Callable[[jax.Array], TrainState]:
    cfg, mesh = self.problem.cfg, self.problem.mesh

    def draw(key):
      state = train_step.init_state(key, cfg, self._optimizer, mesh)
      if cfg.classes:
        head = state.params["head"]
        shape, dtype = head["kernel"].shape, head["kernel"].dtype
        kernel = jax.random.normal(jax.random.fold_in(key, 1), shape, dtype)
        head = head | {"kernel": kernel / math.sqrt(cfg.width)}
        state = state._replace(params=state.params | {"head": head})
      return state

    shardings = train_step.state_shardings(cfg, self._optimizer, mesh)
    return jax.jit(draw, out_shardings=shardings)


def _draw_batch(problem: Problem) -> train_step.Batch:
  """Random images and labels, each device its own, on every process alike."""
  cfg = problem.cfg

  def draw():
    key_image, key_label = jax.random.split(jax.random.key(2))
    shape = (problem.batch, cfg.image, cfg.image, cfg.channels)
    label = jax.random.randint(key_label, (problem.batch,), 0, cfg.classes)
    return {
      "image": jax.random.uniform(key_image, shape, minval=-1, maxval=1),
      "label": jax.nn.one_hot(label, cfg.classes),
      "mask": jnp.ones(problem.batch),
    }

  sharding = train_step.batch_sharding(problem.mesh)
  return jax.jit(draw, out_shardings=sharding)()


def twin_step(
  name: str,
  cfg: ViTConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  *,
  compute_dtype: jax.typing.DTypeLike = jnp.float32,
  remat: bool = False,
) -> Callable[[TrainState, train_step.Batch], tuple[TrainState, dict]]:
  """Returns a step like that of `models.train_step`, from a twin of the model.

  Args:
    name: one of `TWINS`; "linen" needs flax.
    cfg, optimizer, compute_dtype, remat: as there.
    mesh: of one device.
  """
  logits_of = {"plain": _plain, "linen": _linen}[name](
    cfg, compute_dtype, remat
  )

  def loss_of(params, batch):
    logits = logits_of(params, batch["image"]).astype(jnp.float32)
    nats = sigmoid_xent(logits, batch["label"]) * batch["mask"]
    return nats.sum() / jnp.maximum(batch["mask"].sum(), 1)

  def step(state, batch):
    loss, grads = jax.value_and_grad(loss_of)(state.params, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    params = optax.apply_updates(state.params, updates)
    state = state._replace(
      step=state.step + 1, params=params, opt_state=opt_state
    )
    return state, metrics

  shardings = train_step.state_shardings(cfg, optimizer, mesh)
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _plain(cfg, dtype, remat):
  return lambda params, images: forward(
    params, images, cfg, compute_dtype=dtype, remat=remat
  )[0]


def _linen(cfg, dtype, remat):
  from profiling.vit_linen import ViT, to_linen  # needs flax

  model = ViT(cfg, dtype, remat)
  return lambda params, images: model.apply(to_linen(params, cfg), images)
