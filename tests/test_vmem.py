"""The script behind a table of docs/performance.md."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "vmem.py"


@pytest.mark.long
@pytest.mark.tpu_compiler
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_products_gain_by_more_vmem(chip):
  pytest.importorskip("libtpu")
  spec = importlib.util.spec_from_file_location("vmem", SCRIPT)
  vmem = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(vmem)
  limit = {"v6e": "98304"}.get(chip, "32768")
  shape = (16_384, 6_144, 6_144)
  own, given = (vmem.seconds(chip, shape, of) for of in (None, limit))
  assert given < 0.95 * own
