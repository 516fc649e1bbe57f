import jax
import jax.numpy as jnp
import pytest

from profiling import device_time


def space(*planes):
  return jax.profiler.ProfileData.from_text_proto("\n".join(planes))


def plane(name, line, starts_and_lengths):
  events = "".join(
    f"events {{ metadata_id: 1 offset_ps: {s * 1000} duration_ps: {d * 1000} }}"
    for s, d in starts_and_lengths
  )
  return f"""
planes {{
  name: "{name}"
  lines {{ name: "{line}" timestamp_ns: 5 {events} }}
  event_metadata {{ key: 1 value {{ id: 1 name: "jit_step(1)" }} }}
}}"""


def test_the_programs_of_the_first_tpu():
  profile = space(
    plane("/host:CPU", "python", [(0, 9000)]),
    plane("/device:TPU:1", "XLA Modules", [(0, 7000)]),
    plane("/device:TPU:0", "XLA Modules", [(4000, 2000), (0, 3000)]),
  )
  assert device_time.seconds_of(profile) == pytest.approx([3e-6, 2e-6])


def test_no_programs_without_a_tpu():
  profile = space(plane("/device:GPU:0", "Stream #1", [(0, 9000)]))
  assert device_time.seconds_of(profile) is None
  other = space(plane("/device:TPU:0", "Steps", [(0, 9000)]))
  assert device_time.seconds_of(other) is None


def test_a_trace_of_a_cpu(tmp_path):
  assert device_time.program_seconds(tmp_path) is None
  with jax.profiler.trace(str(tmp_path)):
    jnp.ones(3).block_until_ready()
  assert device_time.program_seconds(tmp_path) is None
