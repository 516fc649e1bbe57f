import pytest

from examples.pace import Pace, memory
from examples.presets import PRESETS


class Device:
  """What `jax.Device` tells of its memory."""

  platform = "tpu"

  def __init__(self, stats):
    self.memory_stats = lambda: stats


GIB = 1 << 30
TPU = Device({"peak_bytes_in_use": 3 * GIB, "bytes_limit": 32 * GIB})
PACE = Pace(3, 1.0, 0.25) + Pace(1, 1.0, 0.25)


def test_paces_add_up():
  assert Pace(4, 2.0, 0.5) == PACE
  assert PACE.scalars(PRESETS["digits"]) == {
    "speed/step_ms": 500.0,
    "speed/images_per_s": 256.0,
    "speed/tokens_per_s": 256.0 * 16,
    "speed/share_waiting_for_data": 0.25,
  }


@pytest.mark.parametrize(
  ("device", "hbm"),
  [(TPU, "3.0 of 32.0 GiB"), (Device(None), "n/a on tpu")],
)
def test_a_pace_in_words(device, hbm):
  assert PACE.line(7200, device) == (
    f"500.0 ms a step, 25.0% of it waiting for data; 1:00:00 left; HBM {hbm}"
  )


def test_memory_is_logged_where_it_is_told():
  assert memory(TPU) == {"memory/peak_gib": 3.0}
  assert memory(Device(None)) == memory(Device({"bytes_limit": 1})) == {}
