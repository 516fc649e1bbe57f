"""How fast a run is: step time, time waiting for data, memory in use."""

import dataclasses
import datetime

import jax

from examples.presets import TrainConfig

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Pace:
  """Steps taken and the time they took, evaluations and checkpoints apart."""

  steps: int = 0
  seconds: float = 0.0
  waiting_s: float = 0.0  # of these, for data

  def __add__(self, other: "Pace") -> "Pace":
    return Pace(
      self.steps + other.steps,
      self.seconds + other.seconds,
      self.waiting_s + other.waiting_s,
    )

  def scalars(self, config: TrainConfig) -> dict[str, float]:
    """Returns what the log has of it."""
    images_per_s = config.batch * self.steps / self.seconds
    return {
      "speed/step_ms": 1e3 * self.seconds / self.steps,
      "speed/images_per_s": images_per_s,
      "speed/tokens_per_s": config.model.tokens * images_per_s,
      "speed/share_waiting_for_data": self.waiting_s / self.seconds,
    }

  def line(self, steps_left: int, device: jax.Device) -> str:
    """Returns it in words, with the time that is left and the memory."""
    each = self.seconds / self.steps
    left = datetime.timedelta(seconds=round(each * steps_left))
    return (
      f"{1e3 * each:.1f} ms a step, {self.waiting_s / self.seconds:.1%} of it "
      f"waiting for data; {left} left; HBM {_hbm(device)}"
    )


def memory(device: jax.Device) -> dict[str, float]:
  """Returns the peak of a device's memory; nothing where it does not tell."""
  stats = device.memory_stats()
  if not stats or "peak_bytes_in_use" not in stats:
    return {}
  return {"memory/peak_gib": stats["peak_bytes_in_use"] / _GIB}


def _hbm(device):
  stats = device.memory_stats() or {}
  if "peak_bytes_in_use" not in stats:
    return f"n/a on {device.platform}"
  whole = stats.get("bytes_limit", 0) / _GIB
  return f"{stats['peak_bytes_in_use'] / _GIB:.1f} of {whole:.1f} GiB"
