import jax
import pytest

from collective_mm import make_mesh
from examples import hosts
from examples.usage import UsageError


def test_one_process_agrees_with_itself_and_asks_no_device():
  agreement = hosts.Agreement(make_mesh(data=2, model=4))
  asked = agreement.ask(15, True)
  assert not any(isinstance(x, jax.Array) for x in asked)
  assert agreement.answer(asked) == [15, 1]


def test_the_first_process_does_and_its_errors_are_everyones():
  done = []
  hosts.first_does(lambda: done.append(hosts.is_first()))
  assert done == [True]

  def fail():
    raise UsageError("--workdir: no")

  with pytest.raises(UsageError, match="--workdir: no"):
    hosts.first_does(fail)
