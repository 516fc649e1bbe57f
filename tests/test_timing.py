import time

import jax
import jax.numpy as jnp
import pytest

from profiling.timing import time_interleaved


def test_methods_take_turns_after_the_warmup():
  calls = []
  timings = time_interleaved(
    {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
    rounds=3,
    warmup=2,
  )
  assert "".join(calls) == "ab" * 5
  assert list(timings) == ["a", "b"]
  assert [timing.rounds for timing in timings.values()] == [3, 3]


def test_median_min_and_max():
  pauses = iter([0.0, 0.02, 0.3, 0.1])  # the first is the warm-up's
  timing = time_interleaved({"a": lambda: time.sleep(next(pauses))}, 3)["a"]
  assert 0.02 <= timing.min_s < 0.1
  assert 0.1 <= timing.median_s < 0.3
  assert timing.max_s >= 0.3


def test_the_result_is_waited_for():
  # The call returns long before the product is there.
  x = jnp.ones((1000, 1000))
  product = jax.jit(lambda x: x @ x @ x @ x)
  product(x).block_until_ready()
  whole_s = []
  for _ in range(3):
    start = time.perf_counter()
    product(x).block_until_ready()
    whole_s.append(time.perf_counter() - start)
  timing = time_interleaved({"product": lambda: product(x)}, 5)["product"]
  assert timing.max_s > min(whole_s) / 2


@pytest.mark.parametrize(
  "options, message",
  [
    ({"rounds": 0}, "rounds must be at least 1, got 0"),
    ({"rounds": 1, "warmup": -1}, "warmup must be at least 0, got -1"),
  ],
)
def test_wrong_counts(options, message):
  with pytest.raises(ValueError, match=message):
    time_interleaved({}, **options)
