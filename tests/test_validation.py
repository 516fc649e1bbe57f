"""The script behind docs/validation.md computes what the page says."""

import importlib.util
from pathlib import Path

import pytest

from collective_mm.chips import CHIPS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def validation():
  pytest.importorskip("libtpu")
  spec = importlib.util.spec_from_file_location(
    "validation", DOCS / "validation.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.tpu_compiler
def test_a_permute_takes_what_the_chip_table_says(validation):
  chip, nbytes = CHIPS["v6e"], 1 << 20
  got = validation.permute("v6e:2x2", nbytes)
  assert got == pytest.approx(
    chip.permute_latency_s + nbytes / chip.permute_bandwidth
  )
  page = (DOCS / "validation.md").read_text()
  assert f"| v6e:2x2 | 1,048,576 | 17.45 | {1e6 * got:.2f} | -18 % |" in page


@pytest.mark.tpu_compiler
def test_a_roof_is_faster_than_what_gathers(validation):
  shape = (1024, 1024, 4096)
  roof, compiler = (
    validation.gather_matmul("v6e:2x2", shape, method)
    for method in ("roof", "compiler")
  )
  assert 0 < roof < compiler
