"""One training run, from its config to its final accuracy."""

import contextlib
import dataclasses
import math
import time
from pathlib import Path
from typing import Literal

import jax
import tqdm

from examples import first_weights, hosts, pace, run_folder, stop
from examples.checkpoints import Checkpoints, restore
from examples.pace import Pace
from examples.presets import TrainConfig
from examples.run_log import RunLog
from examples.run_setup import Setup, choose_mesh, fitted, open_data
from examples.step_trace import StepTrace
from examples.usage import UsageError
from models.optimizer import learning_rate
from models.train_step import TrainState
from profiling.flops import throughput, vit_flops_per_token

_clock = time.monotonic


class NonFinite(FloatingPointError):
  """A run that stopped because its loss or gradient was not finite."""


def run(
  config: TrainConfig,
  workdir: Path | None = None,
  *,
  resume: bool | Literal["auto"] = False,
) -> dict:
  """Trains, evaluates, and leaves the run's files in `workdir`.

  They are `config.json`, `starts.jsonl`, `metrics.jsonl`, TensorBoard events,
  `checkpoints/` and `curves.png`. What can be wrong with the request is found
  before anything is compiled.

  Args:
    config: the run.
    workdir: a folder that is empty or not there yet; None for a fresh one
      under `runs/`.
    resume: continue the run in `workdir` from its newest checkpoint instead;
      "auto" starts it again if it was ended before its first checkpoint.

  Returns:
    `"accuracy"` and `"loss"` on the held-out part, both with `"ema_"` before
    them too if the run averages its parameters, `"steps"`, `"tokens_per_s"` of
    all devices together (None if no step was left), `"state"` and `"workdir"`.

  Raises:
    UsageError: if the run cannot be; nothing was overwritten then.
    NonFinite: if the loss is no longer finite.
    CheckpointError: if a checkpoint could not be written.
    Stopped: if a signal asked for it; the state was saved.
  """
  train, test = open_data(config)
  config, mesh, params = fitted(config, train), choose_mesh(config), None
  if config.init_from and not resume:
    config, params = first_weights.load(config, mesh)
  setup = Setup(config, mesh, train, test)
  workdir = workdir or run_folder.fresh(config.name)
  with stop.listening() as request:
    if resume:
      run_folder.check_same_run(workdir, config)
      state = _restored(setup, workdir, or_none=resume == "auto")
      hosts.first_does(lambda: run_folder.write_config(workdir, config))
    else:
      hosts.first_does(lambda: run_folder.claim(workdir, config))
      run_folder.check_shared(workdir)
      state = None
    state = state or setup.first_state(params)
    del params
    start = int(state.step)
    hosts.first_does(lambda: run_folder.record_start(workdir, start, mesh))
    _say(f"{_describe(config, mesh)}\nrun folder: {workdir}")
    _say(f"compiled in {setup.compile():.1f} s")
    first = hosts.is_first()
    with (
      RunLog(workdir, start) if first else contextlib.nullcontext() as log,
      Checkpoints(
        workdir / "checkpoints",
        config.keep,
        about={"config": dataclasses.asdict(config)},
      ) as checkpoints,
      StepTrace(
        workdir / "trace", start, config.trace_steps if first else 0
      ) as trace,
    ):
      loop = _Loop(setup, workdir, request, log, checkpoints, trace)
      state, result = loop.train(state)
  return _report(config, result, state, loop.total, workdir)


class _Loop:
  """The steps of one run, and what is due between them."""

  def __init__(self, setup, workdir, request, log, checkpoints, trace):
    self.total = Pace()
    self._setup, self._config = setup, setup.config
    self._workdir, self._request = workdir, request
    self._log, self._checkpoints, self._trace = log, checkpoints, trace
    self._agreement = hosts.Agreement(setup.mesh)
    self._signal = 0  # which signal asked any process to stop
    self._saved, self._saved_at = 0, _clock()
    self._skipped = self._skipped_in_a_row = 0

  def train(self, state: TrainState) -> tuple[TrainState, dict]:
    """Steps from `state` to the end; returns the last state and its result."""
    config, setup = self._config, self._setup
    start = self._saved = int(state.step)
    last = config.steps
    batches = setup.batches(start)
    pace_, result = Pace(), None
    self._listen()
    self._leave_if_asked(start, state)
    bar = tqdm.tqdm(
      range(start + 1, last + 1),
      initial=start,
      total=last,
      unit="step",
      disable=None if hosts.is_first() else True,  # None: unless a terminal
      leave=False,
    )
    for step in bar:
      self._trace.before(step)
      began = time.perf_counter()
      batch = next(batches)
      waiting_s = time.perf_counter() - began
      with jax.profiler.StepTraceAnnotation("train", step_num=step):
        state, metrics = setup.train(state, batch)
        asked = self._ask()
        # One step in flight: virtual CPU devices share a pool of threads.
        metrics = {k: float(x) for k, x in jax.device_get(metrics).items()}
      pace_ += Pace(1, time.perf_counter() - began, waiting_s)
      self._trace.after(step)
      save = self._hear(asked)
      self._check(step, metrics)
      self._checkpoints.check()

      if step % config.log_every == 0 or step == last:
        self._write(step, self._scalars(step, metrics, pace_))
        self.total, pace_ = self.total + pace_, Pace()
        bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
      if step % config.eval_every == 0 or step == last:
        result = self._evaluate(step, state, metrics, pace_)
      if step % config.checkpoint_every == 0 or step == last or save:
        self._save(step, state)
      self._leave_if_asked(step, state)
    return state, result or setup.evaluate(state, lambda: True)

  def _scalars(self, step, metrics, pace_):
    """What the log has of a step and of those since the last record."""
    config = self._config
    rate = learning_rate(config.optimizer)(step - 1)
    counts = {"skipped": self._skipped} if config.skip_nonfinite else {}
    self._skipped = 0
    return (
      {f"train/{name}": x for name, x in (metrics | counts).items()}
      | {"train/learning_rate": float(rate)}
      | pace_.scalars(config)
      | pace.memory(self._setup.mesh.local_devices[0])
    )

  def _evaluate(self, step, state, metrics, pace_):
    """Evaluates and tells; returns None if a signal came meanwhile."""

    def go_on():
      self._listen()
      return not self._signal

    config, speed = self._config, self.total + pace_
    result = self._setup.evaluate(state, go_on)
    if result is None:
      return None
    self._write(step, {f"eval/{name}": x for name, x in result.items()})
    device = self._setup.mesh.local_devices[0]
    _say(speed.line(config.steps - step, device))
    average = ""
    if "ema_accuracy" in result:
      average = f", of the average {result['ema_accuracy']:.2%}"
    _say(
      f"step {step:>5} of {config.steps}: train loss {metrics['loss']:.3f}, "
      f"test loss {result['loss']:.3f}, accuracy {result['accuracy']:.2%}"
      f"{average}"
    )
    return result

  def _check(self, step, metrics):
    """Counts an update that was left out; raises if it may not be."""
    loss, norm = metrics["loss"], metrics["grad_norm"]
    if math.isfinite(loss) and math.isfinite(norm):
      self._skipped_in_a_row = 0
      return
    self._skipped += 1
    self._skipped_in_a_row += 1
    if self._skipped_in_a_row <= self._config.skip_nonfinite:
      _say(f"step {step}: loss {loss}, gradient norm {norm}: update left out")
      return
    names = self._setup.names(step)
    if hosts.is_first():
      run_folder.record_nonfinite(self._workdir, step, loss, norm, names)
    kept = "there is no checkpoint yet"
    if self._saved:
      folder = self._workdir / "checkpoints" / str(self._saved)
      kept = f"the last good checkpoint is {folder}"
    what = f"loss is {loss}"
    if math.isfinite(loss):
      what = f"the norm of the gradient is {norm}"
    shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
    raise NonFinite(
      f"{what} at step {step}, whose images are {shown} (all in "
      f"{self._workdir / run_folder.NONFINITE}); {kept}"
    )

  def _ask(self):
    minutes = self._config.checkpoint_minutes
    due = minutes and _clock() - self._saved_at > 60 * minutes
    return self._agreement.ask(self._request.signal, bool(due))

  def _hear(self, asked) -> bool:
    """Takes in what was agreed; returns whether to save."""
    signal, save = self._agreement.answer(asked)
    self._signal = max(self._signal, signal)
    return bool(save)

  def _listen(self):
    self._hear(self._ask())

  def _leave_if_asked(self, step, state):
    if not self._signal:
      return
    if self._saved != step:
      self._save(step, state)
    raise stop.Stopped(
      self._signal,
      f"stopped at step {step} of {self._config.steps}; --resume "
      f"--workdir={self._workdir} continues",
    )

  def _save(self, step, state):
    # An item of the data depends on its number alone.
    self._checkpoints.save(step, state, data={"next_item": step})
    self._saved, self._saved_at = step, _clock()

  def _write(self, step, scalars):
    if self._log:
      self._log.write(step, scalars)


def _restored(setup, workdir, *, or_none) -> TrainState | None:
  """The newest state of the run, placed on the mesh; None if there is none."""
  folder = workdir / "checkpoints"
  if or_none and not any(path.name.isdigit() for path in folder.glob("*")):
    return None
  state = restore(folder, setup.abstract_state())
  config = setup.config
  if int(state.step) > config.steps:
    raise UsageError(
      f"--steps={config.steps}: the run in {workdir} is at step "
      f"{int(state.step)} already"
    )
  return state


def _describe(config: TrainConfig, mesh: jax.sharding.Mesh) -> str:
  model = config.model
  device = mesh.devices.flat[0]
  processes = jax.process_count()
  return (
    f"{config.name}: width {model.width}, depth {model.depth}, "
    f"{model.heads} heads; {mesh.shape['data']} x {mesh.shape['model']} "
    f"(data x model) {device.device_kind} devices"
    + (f" of {processes} processes" if processes > 1 else "")
    + f"; {config.steps} steps of {config.batch} images"
  )


def _report(config, result, state, total, workdir) -> dict:
  """Says how the run ended; its last line is the one to quote."""
  _say(f"curves: {workdir / 'curves.png'}")
  speed = "no step was left to train"
  tokens_per_s = None
  if total.steps:
    tokens_per_s = total.scalars(config)["speed/tokens_per_s"]
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
  if hosts.is_first():
    tqdm.tqdm.write(line)  # above the progress bar, where there is one
