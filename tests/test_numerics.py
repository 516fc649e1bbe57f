"""The script behind docs/numerics.md measures what the page says."""

import importlib.util
import pathlib
import sys

import jax
import numpy as np
import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def loaded():
  spec = importlib.util.spec_from_file_location(
    "numerics", DOCS / "numerics.py"
  )
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses look their module up
  spec.loader.exec_module(module)
  return module


numerics = loaded()
PAGE = (DOCS / "numerics.md").read_text()
TINY = {"rows": 24, "terms": 96, "columns": 24}


def table(name):
  """The cells of a table of the page, by line."""
  text = PAGE.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name}")
  lines = [ln for ln in text[0].splitlines() if ln.startswith("| `")]
  return [[cell.strip(" `") for cell in ln.split("|")[1:-1]] for ln in lines]


def rms(cell):
  return float(cell.partition(" ")[0])


def setting(op="matmul_reduce_scatter", dim=0, wire=None):
  return numerics.Setting(
    op=op, dim=dim, dtype="bfloat16", wire_dtype=wire, schedule="two_way"
  )


def test_relative_error():
  exact = np.array([3.0, 4.0, 0.0, 0.0])  # of RMS 2.5
  largest, rms = numerics.relative_error(exact + np.eye(4)[1], exact)
  assert (largest, rms) == (0.4, 0.2)


def test_page_has_a_row_for_every_setting():
  documented = table("errors")
  assert len(documented) == len(list(numerics.settings()))
  assert {len(row) for row in documented} == {5 + len(numerics.SIZES)}


def test_page_agrees_with_a_smaller_run():
  # A sum of fewer terms: the part that is lost is of the same order.
  measured = numerics.error_table((3,), **TINY).splitlines()[2:]
  column = 5 + numerics.SIZES.index(3)
  for line, row in zip(measured, table("errors"), strict=True):
    cells = [cell.strip(" `") for cell in line.split("|")[1:-1]]
    assert cells[:5] == row[:5]
    assert 1 / 8 < rms(cells[5]) / rms(row[column]) < 8, line


@pytest.mark.parametrize("dim", [0, -1])
def test_the_wire_decides_how_much_a_ring_loses(dim):
  floor = numerics.rounding("bfloat16", **TINY)[1]
  narrow, narrower = (
    numerics.error(setting(dim=dim), size, **TINY)[1] for size in (2, 8)
  )
  wide = numerics.error(setting(dim=dim, wire="float32"), 8, **TINY)[1]
  assert 1.4 * narrow < narrower < 3 * narrow
  assert floor <= wide < 1.1 * floor < narrow


def test_rewrite_replaces_what_stands_between_the_markers():
  page = "a\n<!-- t -->\nold\n<!-- end of t -->\nb"
  want = "a\n<!-- t -->\nnew\n<!-- end of t -->\nb"
  assert numerics.rewrite(page, "t", "new") == want
  with pytest.raises(ValueError, match="page must hold '<!-- u -->"):
    numerics.rewrite(page, "u", "new")


@pytest.mark.tpu_compiler
def test_bytes_of_policies_are_rings():
  pytest.importorskip("libtpu")
  shape = {"rows": 1024, "width": 512}
  ring = 3 * (1024 // 4) * 512 * 2  # three chunks of four pass, two bytes each
  got = numerics.bytes_of_policies(
    "all_gather_matmul", jax.nn.relu, dw="regather", **shape
  )
  documented = {tuple(row[:2]): row[2:] for row in table("bytes")}
  row = documented['all_gather_matmul`, `dw="regather"', "gelu"]
  assert [n / ring for n in got] == [float(n) / 6 for n in row]


def test_documented_bytes_are_rings():
  ring = 6  # MiB: what the page says of its shapes
  rows = {tuple(row[:2]): [float(n) / ring for n in row[2:]]
          for row in table("bytes")}  # fmt: skip
  assert len(rows) == 8
  assert rows["matmul_reduce_scatter", "-"] == [1, 1, 1, 1, 1]
  # Backward of an all-reduce needs no communication of its own.
  assert rows["matmul_all_reduce", "-"] == [2, 0, 0, 0, 0]
