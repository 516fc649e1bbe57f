import statistics

import numpy as np
import pytest

from examples.data import bench


def test_the_command_prints_both_rates(capsys, monkeypatch):
  monkeypatch.setattr(bench, "_IMAGES", 32)
  assert bench.main(["--rounds=1", "--threads=1"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == [
    "32",
    "bare",
    "pipeline",
    "ratio",
  ]
  assert all("images/s" in line for line in lines[1:3])


def test_images_are_drawn_alike_and_not_the_same():
  first, again, other = (
    np.asarray(bench.draw(np.random.default_rng(seed), (64, 64)))
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert 100 < first.mean() < 140 and 100 < other.mean() < 140
  assert not np.array_equal(first, other)


@pytest.mark.long
def test_the_pipeline_keeps_up_with_bare_decoding(tmp_path):
  bench.write_folder(tmp_path, count=8192)
  bare, ours = bench.measure(tmp_path, threads=2, rounds=7)
  ratios = [b / a for a, b in zip(bare, ours, strict=True)]
  assert statistics.median(ratios) >= 0.8
