import functools

import pytest

from profiling import matmul_methods, peaks, simulate_matmul

pytestmark = pytest.mark.tpu_compiler


@functools.cache
def simulator(chip):
  pytest.importorskip("libtpu")
  return simulate_matmul.Simulator(chip)


def problem(chip, tokens=1024, width=512, features=2048, gathers=True):
  return matmul_methods.Problem(
    op=matmul_methods.OPS[0 if gathers else 1],
    tokens=tokens,
    width=width,
    features=features,
    dtype="bfloat16",
    mesh=simulator(chip).mesh,
  )


@pytest.mark.parametrize("chip", simulate_matmul.SLICES)
def test_the_roof_is_the_products_alone(chip):
  roof = simulator(chip).run(problem(chip, 2048, 1024, 8192), "roof")
  peak = peaks.CHIPS[simulator(chip).mesh.devices.flat[0].device_kind]
  flops = 3 * 2 * 2048 * 1024 * 8192 / simulate_matmul.RING
  least_ms = 1e3 * flops / peak.bf16_flops_per_chip
  # Small products are bound by memory on the fastest chips.
  assert least_ms < roof.compute_ms < 3 * least_ms
  assert roof.exposed_ms == 0
  assert roof.compute_ms <= roof.step_time_ms < 1.3 * roof.compute_ms


def test_what_communicates_waits_or_hides():
  case = problem("v5p")
  unoverlapped, ring = (
    simulator("v5p").run(case, method) for method in ("unoverlapped", "two_way")
  )
  assert 0 < ring.exposed_ms < unoverlapped.exposed_ms
  for run in (unoverlapped, ring):
    parts = run.compute_ms + run.exposed_ms
    assert parts == pytest.approx(run.step_time_ms, rel=0.2)
    assert parts <= run.step_time_ms
    assert run.temp_bytes > 0


def test_the_modes_of_the_compiler_differ():
  none, default, post_spmd = (
    simulator("v5p").run(problem("v5p", 2048, 2048, 8192), mode)
    for mode in simulate_matmul.BASELINES["best compiler"]
  )
  # By default it makes rings of this one: less is exposed.
  assert default.exposed_ms < none.exposed_ms
  assert post_spmd == none
  # Conservative as it is, it makes rings of larger ones only.


def test_equal_programs_are_compiled_once():
  case = problem("v5p", gathers=False)
  first = simulator("v5p").run(case, "one_way")
  assert simulator("v5p").run(case, "one_way") is first
  assert simulator("v5p").run(case, "two_way") is not first


def test_what_does_not_fit_says_so():
  message = "roof of all_gather_matmul does not fit into a v5e: .*exceeds"
  with pytest.raises(MemoryError, match=message):
    simulator("v5e").run(problem("v5e", 1 << 20, 6144, 43008), "roof")
