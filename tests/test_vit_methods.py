import jax
import pytest

from collective_mm import make_mesh
from models.vit_config import get_config
from profiling import vit_methods

TINY = get_config("vit_tiny", depth=1, width=16, mlp=32, pool=False)


def problem(**changes):
  devices = changes.pop("devices", jax.devices()[:4])
  model = changes.pop("model", 2)
  mesh = make_mesh(data=len(devices) // model, model=model, devices=devices)
  return vit_methods.Problem(
    **{"cfg": TINY, "mesh": mesh, "batch": 8, **changes}
  )


def test_methods_agree_and_a_head_is_drawn():
  methods = vit_methods.Methods(problem(schedules=("unoverlapped", "two_way")))
  assert list(methods.calls) == ["unoverlapped", "two_way"]
  first = methods.check()
  assert first["loss"] > 0
  state, metrics = methods.calls["unoverlapped"]()
  # Gradients reach the blocks.
  moved = state.opt_state[1].mu["blocks"]["q"]["kernel"]
  assert float(abs(moved).max()) > 0
  assert metrics.keys() == {"loss", "grad_norm", "max_attention_logit"}


def test_the_twins_on_one_device():
  one = problem(
    devices=jax.devices()[:1],
    model=1,
    schedules=("auto",),
    twins=("plain", "linen"),
  )
  methods = vit_methods.Methods(one)
  assert list(methods.calls) == ["auto", "plain", "linen"]
  methods.check()


def test_a_method_that_is_wrong_is_found():
  methods = vit_methods.Methods(problem(schedules=("unoverlapped",)))
  right = methods.calls["unoverlapped"]

  def wrong():
    state, metrics = right()
    # Far less than a missing chunk would do.
    return state, metrics | {"grad_norm": 1.001 * metrics["grad_norm"]}

  methods.calls["wrong"] = wrong
  with pytest.raises(
    ArithmeticError, match=r"grad_norm of wrong must be within .* got"
  ):
    methods.check()


def test_the_tolerance_grows_with_rounding_alone():
  assert problem().tolerance < 1e-5
  rounded = problem(compute_dtype="bfloat16")
  assert 1e-3 < rounded.tolerance < 1e-2
