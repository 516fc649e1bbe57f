"""One training run, from its config to its final accuracy."""

import dataclasses
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import tqdm

from collective_mm import gate, make_mesh
from examples import run_folder
from examples.checkpoints import Checkpoints, restore
from examples.data.feed import prefetched
from examples.data.pipeline import eval_batches, train_batches
from examples.data.sources import open_source
from examples.presets import TrainConfig
from examples.run_log import RunLog
from examples.usage import UsageError, blame
from models import train_step
from models.optimizer import make_optimizer, rsqrt_schedule
from models.sharding import check_mesh
from profiling.flops import throughput, vit_flops_per_token


def run(
  config: TrainConfig, workdir: Path | None = None, *, resume: bool = False
) -> dict:
  """Trains, evaluates, and leaves the run's files in `workdir`.

  They are `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/`
  and `curves.png`. What can be wrong with the request is found before anything
  is compiled.

  Args:
    config: the run.
    workdir: a folder that is empty or not there yet; None for a fresh one
      under `runs/`.
    resume: continue the run in `workdir` from its newest checkpoint instead.

  Returns:
    `"accuracy"` and `"loss"` on the held-out part, `"steps"`, `"tokens_per_s"`
    of all devices together (None if no step was left), `"state"` and
    `"workdir"`.

  Raises:
    UsageError: if the run cannot be; nothing was overwritten then.
    FloatingPointError: if the loss is no longer finite.
  """
  with blame(f"--preset={config.name}"):
    train, test = (open_source(config.data, part) for part in ("train", "val"))
    train = train_batches(
      train, config.model, batch=config.batch, seed=config.seed
    )
    test = eval_batches(test, config.model, batch=config.batch)
  mesh = _mesh(config)
  optimizer = make_optimizer(config.optimizer)
  workdir = workdir or run_folder.fresh(config.name)
  if resume:
    run_folder.check_same_run(workdir, config)
    state = _restored(config, workdir, optimizer, mesh)
    run_folder.write_config(workdir, config)
  else:
    run_folder.claim(workdir, config)
    state = train_step.init_state(
      jax.random.key(config.seed), config.model, optimizer, mesh
    )

  _say(f"{_describe(config, mesh)}\nrun folder: {workdir}")
  steps = _Steps(config, optimizer, mesh, state, test)
  _say(f"compiled in {steps.compile_s:.1f} s")
  with (
    RunLog(workdir, start=int(state.step)) as log,
    Checkpoints(workdir / "checkpoints", config.keep) as checkpoints,
  ):
    state, pace = _train(config, steps, state, train, log, checkpoints)
  return _report(config, steps.evaluate(state.params), state, pace, workdir)


class _Steps:
  """The compiled training and evaluation step, and where batches go."""

  def __init__(self, config, optimizer, mesh, state, test):
    options = {
      "layout": config.layout,
      "schedule": config.schedule,
      "compute_dtype": jnp.dtype(config.compute_dtype),
    }
    self._sharding = train_step.batch_sharding(mesh)
    self._test = [self.place(batch) for batch in test]
    kind = mesh.devices.flat[0].device_kind
    compiler_options = gate.compiler_options(kind, prefetch=True)
    start = time.perf_counter()
    self.train = (
      train_step.make_train_step(
        config.model, optimizer, mesh, remat=config.remat, **options
      )
      .lower(state, self._test[0])
      .compile(compiler_options=compiler_options)
    )
    self._evaluate = (
      train_step.make_eval_step(config.model, mesh, **options)
      .lower(state.params, self._test[0])
      .compile()
    )
    self.compile_s = time.perf_counter() - start

  def place(self, batch: dict) -> dict:
    """Puts a batch on the mesh."""
    return jax.device_put(batch, self._sharding)

  def evaluate(self, params) -> dict[str, float]:
    """Returns the mean loss and the accuracy on the held-out part."""
    # One batch in flight: virtual CPU devices take their threads from one
    # pool, and with many computations waiting in it they would starve.
    sums = [
      jax.device_get(self._evaluate(params, batch)) for batch in self._test
    ]
    total = {name: float(sum(s[name] for s in sums)) for name in sums[0]}
    return {
      "loss": total["loss"] / total["count"],
      "accuracy": total["correct"] / total["count"],
    }


@dataclasses.dataclass
class _Pace:
  """Steps taken and the time they took, evaluations and checkpoints apart."""

  steps: int = 0
  seconds: float = 0.0
  waiting_s: float = 0.0  # of these, for data

  def __add__(self, other):
    return _Pace(
      self.steps + other.steps,
      self.seconds + other.seconds,
      self.waiting_s + other.waiting_s,
    )

  def scalars(self, config: TrainConfig) -> dict[str, float]:
    images_per_s = config.batch * self.steps / self.seconds
    return {
      "speed/images_per_s": images_per_s,
      "speed/tokens_per_s": config.model.tokens * images_per_s,
      "speed/share_waiting_for_data": self.waiting_s / self.seconds,
    }


def _train(config, steps, state, train, log, checkpoints):
  """Steps from `state` to the end; returns the last state and the pace."""
  start, last = int(state.step), config.steps
  learning_rate = rsqrt_schedule(config.optimizer)
  ahead = prefetched(train, start, last)
  total, pace, metrics = _Pace(), _Pace(), {}
  bar = tqdm.tqdm(
    range(start + 1, last + 1),
    initial=start,
    total=last,
    unit="step",
    disable=None,  # unless stderr is a terminal
    leave=False,
  )
  for step in bar:
    log_due, eval_due, checkpoint_due = (
      step % every == 0 or step == last
      for every in (
        config.log_every,
        config.eval_every,
        config.checkpoint_every,
      )
    )
    began = time.perf_counter()
    batch = next(ahead)
    waiting_s = time.perf_counter() - began
    batch = steps.place(batch)
    jax.block_until_ready(metrics)  # one step in flight, no more
    state, metrics = steps.train(state, batch)
    if log_due or eval_due or checkpoint_due:
      jax.block_until_ready(metrics)  # what follows is not training time
    pace += _Pace(1, time.perf_counter() - began, waiting_s)

    if log_due:
      scalars = {name: float(x) for name, x in metrics.items()}
      log.write(
        step,
        {f"train/{name}": x for name, x in scalars.items()}
        | {"train/learning_rate": float(learning_rate(step - 1))}
        | pace.scalars(config),
      )
      total, pace = total + pace, _Pace()
      bar.set_postfix(loss=f"{scalars['loss']:.3f}", refresh=False)
      if not math.isfinite(scalars["loss"]):
        raise FloatingPointError(f"loss is {scalars['loss']} at step {step}")
    if eval_due:
      result = steps.evaluate(state.params)
      log.write(step, {f"eval/{name}": x for name, x in result.items()})
      _say(
        f"step {step:>5} of {last}: train loss {float(metrics['loss']):.3f}, "
        f"test loss {result['loss']:.3f}, accuracy {result['accuracy']:.2%}"
      )
    if checkpoint_due:
      checkpoints.save(step, state)
  return state, total


def _mesh(config: TrainConfig) -> jax.sharding.Mesh:
  """Makes the mesh and checks that the model and the batch fit on it."""
  devices = jax.device_count()
  shape = config.mesh
  if shape is None:
    tutorial = jax.default_backend() == "cpu" and devices == 8
    shape = (2, 4) if tutorial else (devices, 1)
  flag = f"--mesh={shape[0]},{shape[1]}"
  with blame(flag):
    mesh = make_mesh(data=shape[0], model=shape[1])
  model = config.model
  sizes = f"--heads={model.heads} --mlp={model.mlp} --width={model.width}"
  with blame(f"{flag} {sizes}"):
    check_mesh(model, mesh, mesh.size, config.layout)
  with blame(f"{flag} --batch={config.batch}"):
    check_mesh(model, mesh, config.batch, config.layout)
  return mesh


def _restored(config, workdir, optimizer, mesh):
  """Returns the newest state of the run, placed on `mesh`."""
  like = train_step.abstract_state(config.model, optimizer, mesh)
  state = restore(workdir / "checkpoints", like)
  if int(state.step) > config.steps:
    raise UsageError(
      f"--steps={config.steps}: the run in {workdir} is at step "
      f"{int(state.step)} already"
    )
  return state


def _describe(config: TrainConfig, mesh: jax.sharding.Mesh) -> str:
  model = config.model
  device = mesh.devices.flat[0]
  return (
    f"{config.name}: width {model.width}, depth {model.depth}, "
    f"{model.heads} heads; {mesh.shape['data']} x {mesh.shape['model']} "
    f"(data x model) {device.device_kind} devices; {config.steps} steps of "
    f"{config.batch} images"
  )


def _report(config, result, state, pace, workdir) -> dict:
  """Says how the run ended; its last line is the one to quote."""
  _say(f"curves: {workdir / 'curves.png'}")
  speed = "no step was left to train"
  tokens_per_s = None
  if pace.steps:
    tokens_per_s = pace.scalars(config)["speed/tokens_per_s"]
    flops = vit_flops_per_token(config.model)
    speed = f"{throughput(tokens_per_s, flops, jax.devices())}"
  _say(f"test accuracy {result['accuracy']:.2%}; {speed}")
  return {
    **result,
    "steps": int(state.step),
    "tokens_per_s": tokens_per_s,
    "state": state,
    "workdir": workdir,
  }


def _say(line: str) -> None:
  tqdm.tqdm.write(line)  # above the progress bar, where there is one
