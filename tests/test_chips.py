import pytest

from collective_mm import chips


@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=chips.CHIPS)
def test_a_chip_is_found_by_either_name(chip):
  assert chips.find_chip(chip.name) is chip
  assert chips.find_chip(chip.kind) is chip


@pytest.mark.parametrize(
  "alias, name", [("TPU v5e", "v5e"), ("TPU v5p", "v5p")]
)
def test_aliases(alias, name):
  assert chips.find_chip(alias) is chips.CHIPS[name]


@pytest.mark.parametrize("name", ["", "v5", "TPU", "NVIDIA H100 80GB HBM3"])
def test_other_names_are_nothing(name):
  assert chips.find_chip(name) is None


@pytest.mark.parametrize("name", ["v2", "v3", "v9"])
def test_chips_without_figures_give_no_times(name):
  with pytest.raises(ValueError, match=rf"v4, v5e, .* got '{name}'"):
    chips.timed_chip(name)
  assert chips.timed_chip("v6e").name == "v6e"


def test_a_permute_gets_no_more_than_the_link():
  priced = [c for c in chips.CHIPS.values() if c.link_bandwidth]
  assert {c.name for c in priced} == set(chips.CHIPS) - {"v2"}
  for chip in priced:
    assert 0.9 < chip.permute_bandwidth / chip.link_bandwidth <= 1
    assert 1e-6 < chip.permute_latency_s < 1e-5


def test_published_permutes():
  # Seconds of 1 MB, from the fits of one-way permutes on a v5p and a v6e.
  for name, seconds in (("v5p", 16.14e-6), ("v6e", 13.81e-6)):
    chip = chips.CHIPS[name]
    fit = chip.permute_latency_s + 1e6 / chip.permute_bandwidth
    assert fit == pytest.approx(seconds, rel=1e-3)


def test_cycles_and_peak_agree():
  # FLOPs of a cycle are a power of two; the peaks are rounded.
  for chip in chips.CHIPS.values():
    if chip.clock_hz:
      per_cycle = chip.bf16_flops / chip.clock_hz
      powers = [2**n for n in range(16, 21)]
      assert any(abs(per_cycle / power - 1) < 0.01 for power in powers)
