"""docs/drop_in.md says what the gate says, and shows what was changed."""

import re
from pathlib import Path

import pytest

from collective_mm import gate
from collective_mm.chips import CHIPS

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "drop_in.md").read_text()
TOKENS, WIDTH = 16384, 4096
# Of Llama-3 8B: op, what it multiplies, features that the axis splits.
LAYERS = (
  ("all_gather_matmul", "gate and up", 28672),
  ("all_gather_matmul", "query, key, value", 6144),
  ("matmul_reduce_scatter", "down", 14336),
  ("matmul_reduce_scatter", "out", 4096),
)


def table(name):
  """The gate's inequality, and what it chose, for one chip."""
  chip = CHIPS[name]
  least = chip.bf16_flops / (2 * chip.permute_bandwidth)
  lines = [
    f"**{name}**: `features / t` at least {least:,.0f}",
    "",
    "| layer | t | features / t | hides | forward | gain |",
    "|---|---|---|---|---|---|",
  ]
  for op, layer, features in LAYERS:
    for size in (4, 8):
      own = features // size
      x, w, dim = (TOKENS // size, WIDTH), (WIDTH, own), "gather_dim"
      if op == "matmul_reduce_scatter":
        x, w, dim = (TOKENS, own), (own, WIDTH), "scatter_dim"
      found = gate.explain(op, x=x, w=w, axis_size=size, chip=name, **{dim: 0})
      seconds = {c.schedule: c for c in found.candidates}
      plain = seconds["unoverlapped"]
      forward = found.schedule[0]
      gain = plain.forward_s / seconds[forward].forward_s
      lines.append(
        f"| {layer} | {size} | {own:,} | {min(own / least, 1):.0%} | "
        f"{forward} | {gain:.2f}x |"
      )
  return "\n".join(lines)


@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v6e"])
def test_the_tables_are_the_gates(chip):
  assert table(chip) in DOCS, table(chip)


@pytest.mark.parametrize("model", ["vit_linen", "llama_nnx", "mixer_equinox"])
def test_what_a_diff_shows_is_what_was_changed(model):
  folder = ROOT / "examples" / "drop_in"
  lines_of = {
    sign: {_squeezed(line) for line in (folder / name).read_text().splitlines()}
    for sign, name in (("-", f"{model}.py"), ("+", f"{model}_sharded.py"))
  }
  section = DOCS.split(f"{model}.py", 1)[1]
  shown = re.findall(r"```diff\n(.*?)```", section, re.S)[0]
  changed = [line for line in shown.splitlines() if line[:1] in lines_of]
  assert {line[0] for line in changed} == set("+-")
  for line in changed:
    assert _squeezed(line[1:]) in lines_of[line[0]], line


def _squeezed(line):
  return re.sub(r"\s", "", line)
