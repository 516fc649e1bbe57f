import os
import signal
import threading

import pytest

from examples import stop


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_the_first_signal_is_a_request_and_the_second_is_not(number, capfd):
  before = [signal.getsignal(n) for n in stop.SIGNALS]
  with stop.listening() as request:
    assert request.signal == 0
    os.kill(os.getpid(), number)
    assert request.signal == number
    # Another one would end the process.
    assert [signal.getsignal(n) for n in stop.SIGNALS] == [signal.SIG_DFL] * 2
  assert [signal.getsignal(n) for n in stop.SIGNALS] == before
  assert f"{number.name}: stopping after this step" in capfd.readouterr().err


def test_other_threads_hear_nothing():
  before = [signal.getsignal(n) for n in stop.SIGNALS]
  seen = []

  def body():
    with stop.listening() as request:
      seen.append(request.signal)
      seen.append([signal.getsignal(n) for n in stop.SIGNALS] == before)

  thread = threading.Thread(target=body)
  thread.start()
  thread.join()
  assert seen == [0, True]


def test_a_stopped_run_knows_its_signal():
  assert stop.Stopped(15, "at step 3").signal is signal.SIGTERM
  assert str(stop.Stopped(2, "at step 3")) == "at step 3"
