"""docs/gate.md says what the gate says, and what replays say."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import collective_mm
from collective_mm import gate, make_mesh
from collective_mm.pass_times import SCHEDULES
from profiling import topology
from profiling.replay import replay

GATHER, SCATTER = "all_gather_matmul", "matmul_reduce_scatter"
OPS = (GATHER, SCATTER)
DOCS = (Path(__file__).parents[1] / "docs" / "gate.md").read_text()


def seconds(decision):
  return {c.schedule: (c.forward_s, c.backward_s) for c in decision.candidates}


def table_rows(columns):
  """The cells of every row of `docs/gate.md` with so many columns."""
  rows = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in DOCS.splitlines()
    if line.startswith("| ")
  ]
  return [row for row in rows if len(row) == columns]


def sizes(cell):
  return tuple(int(n) for n in cell.split(" x "))


REPLAYED = table_rows(13)[1:]


@pytest.mark.parametrize("row", REPLAYED, ids=lambda row: "-".join(row[:8]))
def test_the_gate_ranks_as_replays_do(row):
  chip, op, x, w, dim, t, which, options, *cells, chosen = row
  x, w, t, all_reduces = sizes(x), sizes(w), t.rstrip("*"), t.endswith("*")
  by_rows, gathers = dim == "0", op == GATHER
  decision = gate.choose(
    op,
    rows=x[0] * int(t) if gathers and by_rows else x[0],
    inner=w[0],
    outer=w[1],
    size=int(t),
    by_rows=by_rows,
    dtype=jnp.bfloat16,
    wire_dtype=None,
    chunks=1,
    device_kind=chip,
    all_reduces=all_reduces,
    async_options=options == "yes",
  )
  i = ("forward", "backward").index(which)
  assert decision.schedule[i] == chosen
  times = seconds(decision)
  replayed = {}
  for schedule, cell in zip(SCHEDULES, cells, strict=True):
    if not cell:
      continue
    ms, model, off = re.fullmatch(r"(\S+) \(([\d.]+)( !)?\)", cell).groups()
    assert f"{1e3 * times[schedule][i]:.2f}" == model
    replayed[schedule] = float(ms)
    error = 1e3 * times[schedule][i] / float(ms) - 1
    assert abs(error) < 0.15 or off
    assert abs(error) > 0.05 or not off
  plain = replayed.pop("unoverlapped")
  best = min(replayed.values())
  if chosen == "unoverlapped":
    assert plain <= best
  else:
    assert best < (1.01 if chosen == "async" else 1) * plain
    assert replayed.get(chosen, best) <= 1.02 * best


def test_the_document_shows_what_the_gate_says():
  chips = re.findall(r"^\*\*(\w+)\*\*$", DOCS, re.MULTILINE)
  rows = [row for row in table_rows(5) if row[0] in OPS]
  assert len(rows) == 4 * len(chips) == 16
  for n, (op, w, *cells) in enumerate(rows):
    inner, outer = sizes(w)
    for count, cell in zip((512, 2048, 32768), cells, strict=True):
      decision = gate.choose(
        op,
        rows=count,
        inner=inner,
        outer=outer,
        size=8,
        by_rows=True,
        dtype=jnp.bfloat16,
        wire_dtype=None,
        chunks=1,
        device_kind=chips[n // 4],
        async_options=True,
      )
      times = seconds(decision)
      chosen = sum(times[s][i] for i, s in enumerate(decision.schedule))
      gain = sum(times["unoverlapped"]) / chosen
      assert cell == f"{', '.join(decision.schedule)} {gain:.2f}x"


def replayed_ms(row, schedule):
  """Compiles and replays the pass of a row of the document."""
  chip, op, x, w, dim, _, which, options, *_ = row
  x, w, dim = sizes(x), sizes(w), int(dim)
  devices = topology.devices({"v4": "v4:2x2x2", "v5e": "v5e:2x4"}[chip])
  mesh = make_mesh(data=1, model=8, devices=devices)
  name = {"axis_name": "model", "schedule": schedule}
  if op == GATHER:
    call = functools.partial(
      collective_mm.all_gather_matmul, gather_dim=dim, **name
    )
  else:
    call = functools.partial(
      collective_mm.matmul_reduce_scatter, scatter_dim=dim, **name
    )
  whole, rows, columns = [None, None], jax.P("model"), jax.P(None, "model")
  whole[dim] = "model"
  sharded = jax.P(*whole)
  specs = (sharded, columns) if op == GATHER else (columns, rows)
  out = columns if op == GATHER else sharded
  shapes = [
    tuple(
      n * 8 if axis else n
      for n, axis in zip(shape, tuple(spec) + (None,) * 2, strict=False)
    )
    for shape, spec in zip((x, w), specs, strict=True)
  ]

  def backward(x, w, dy):
    return jax.vjp(call, x, w)[1](dy)

  run, in_specs, out_specs = call, specs, out
  if which == "backward":
    run, in_specs, out_specs = backward, (*specs, out), specs
    shapes.append((shapes[0][0], shapes[1][1]))
  mapped = jax.shard_map(
    run, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  args = (
    jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=jax.NamedSharding(mesh, p))
    for s, p in zip(shapes, in_specs, strict=True)
  )
  flags = gate.compiler_options(chip) if options == "yes" else {}
  compiled = jax.jit(mapped).lower(*args).compile(compiler_options=flags)
  places = topology.coordinates(list(mesh.devices.flat))
  return 1e3 * replay(compiled.as_text(), devices=places, chip=chip).step_time_s


@pytest.mark.long
@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  "row",
  [r for r in REPLAYED if r[0] in ("v4", "v5e") and r[5].rstrip("*") == "8"][
    ::4
  ],
  ids=lambda row: "-".join(row[:8]),
)
def test_replays_say_what_the_document_says(row):
  pytest.importorskip("libtpu")
  for schedule, cell in zip(SCHEDULES, row[8:12], strict=True):
    if cell:
      assert replayed_ms(row, schedule) == pytest.approx(
        float(cell.split()[0]), rel=0.03, abs=0.01
      )
