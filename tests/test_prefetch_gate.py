import doctest
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collective_mm import make_mesh, prefetch_gate, prefetch_scan
from collective_mm.chips import CHIPS

OLD, NEW = "0.0.42.1", "0.0.50.1"
RINGS = {"v4": (4, 4, 4), "v5e": (8, 8), "v5p": (4, 4, 4), "v6e": (8, 8)}
TIMED = [c.name for c in CHIPS.values() if c.is_timed]


def explain(**changes):
  given = {"nbytes": 453_000_000, "rings": (4, 4, 4), "chip": "v4"}
  return prefetch_gate.explain(**given | {"libtpu": OLD} | changes)


def chosen(**changes):
  decision = explain(**changes)
  return decision.gathers, decision.reductions


@pytest.mark.parametrize("chip", TIMED)
@pytest.mark.parametrize("libtpu", [OLD, NEW])
@pytest.mark.parametrize("rings", [(8,), (2, 2, 2), (8, 8), (4, 4, 4)])
def test_takes_what_the_model_says_is_less(chip, libtpu, rings):
  decision = explain(chip=chip, libtpu=libtpu, rings=rings)
  native, ring = decision.candidates
  assert (native.backend, ring.backend) == ("native", "ring")
  assert (decision.gathers == "ring") == (ring.gather_s < native.gather_s)
  assert (decision.reductions == "ring") == (ring.reduce_s < native.reduce_s)
  is_async = libtpu == OLD or chip in ("v5e", "v5p", "v6e")
  assert (native.gather_s == 0) == is_async


@pytest.mark.parametrize(("chip", "rings"), RINGS.items())
def test_whole_slices(chip, rings):
  # All links of a torus bring weights sooner than copies put them into place.
  for libtpu in (OLD, NEW):
    assert chosen(chip=chip, rings=rings, libtpu=libtpu) == ("native", "ring")


def test_one_ring_where_gathers_block():
  assert chosen(rings=(8,), libtpu=NEW) == ("ring", "ring")
  assert chosen(rings=(8,), libtpu=OLD) == ("native", "ring")
  assert chosen(rings=(8,), libtpu=NEW, chip="v5e") == ("native", "ring")


def test_what_has_no_model():
  assert chosen(chip="TPU v99") == ("native", "ring")
  assert chosen(chip="cpu") == chosen(chip=None) == ("native", "native")
  assert chosen(rings=(1,)) == ("native", "native")
  assert explain(chip="cpu").candidates == ()


def test_says_why():
  assert "they are asynchronous" in str(explain())
  text = str(explain(libtpu=NEW, rings=(8,)))
  assert text.splitlines()[0] == (
    "prefetch_scan: gathers ring, reductions ring"
  )
  assert "ring gathers: 4.05 ms of copies against 4.41 ms that block" in text


def test_the_document_shows_what_the_gate_says():
  docs = Path(__file__).parents[1] / "docs" / "prefetch.md"
  failed, tried = doctest.testfile(str(docs), module_relative=False)
  assert failed == 0
  assert tried == 2


def test_auto_asks_with_the_bytes_and_rings_of_the_stack(monkeypatch):
  asked = []
  real = prefetch_gate.explain

  def ask(**given):
    asked.append(given)
    return real(**given)

  monkeypatch.setattr(prefetch_gate, "explain", ask)
  params = {"w": np.ones((3, 16, 8), np.float32), "b": np.ones((3, 8))}
  specs = {"w": jax.P(None, "data"), "b": jax.P()}

  def trace(backend):
    def run(params, x):
      return prefetch_scan(
        lambda w, x: x @ w["w"].astype(x.dtype).T[:8, :8] + w["b"],
        x, params, specs=specs, backend=backend, rings=(2, 2),
      )  # fmt: skip

    mapped = jax.shard_map(
      run,
      mesh=make_mesh(data=4, model=1, devices=jax.devices()[:4]),
      in_specs=(specs, jax.P("data")),
      out_specs=jax.P("data"),
    )
    jax.eval_shape(mapped, params, jnp.ones((4, 8)))

  trace("auto")
  assert len(asked) == 1
  assert asked[0]["nbytes"] == 16 * 8 * 2
  assert asked[0]["rings"] == (2, 2)
  assert asked[0]["sums_per_byte"] == 2
  trace("native")
  assert len(asked) == 1
