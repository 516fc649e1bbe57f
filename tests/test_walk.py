import collections

import pytest
from hlo_text import (
  ARRAY,
  ASYNC_ENTRY,
  ASYNC_FUSIONS,
  BACK,
  LOOP_ENTRY,
  RING,
  WHOLE,
  done,
  loop,
  module,
  product,
  start,
)

from collective_mm import hlo
from collective_mm.walk import Walk

SEND_S = 0.010  # of one MiB, which is what `hlo_text.ARRAY` has


class Costs:
  """A cycle is a microsecond; those that go the same way share one link."""

  def compute(self, line):
    return (line.cycles or 0) * 1e-6

  def alone(self, transfer):
    return SEND_S * transfer.nbytes / 2**20

  def rates(self, transfers):
    ways = [repr(transfer.pairs) for transfer in transfers]
    return tuple(1 / ways.count(way) for way in ways)

  def move(self, nbytes):
    return 0.001


def walk(*lines, computations=(), root=f"ROOT %root = {ARRAY} add(%x, %x)"):
  text = "\n".join((*lines, root))
  return Walk(hlo.parse(module(text, *computations)), Costs())


def totals(walked, what):
  seconds = collections.Counter()
  for span in walked.spans:
    if span.what == what:
      seconds[span.line.name] += span.runs * span.seconds
  return {name: pytest.approx(s) for name, s in seconds.items()}


def transfers(walked):
  return {s.line.name: s for s in walked.spans if s.what == "transfer"}


def test_a_transfer_hides_behind_a_longer_product():
  walked = walk(
    start("s", "x"), product("y", "x", "x", cycles=12_000), done("d", "s")
  )
  assert walked.seconds == pytest.approx(0.012)
  assert totals(walked, "wait") == {}
  span = transfers(walked)["s"]
  assert span.seconds == pytest.approx(SEND_S)
  assert span.hidden == pytest.approx(SEND_S)
  assert (span.products, span.ended_by.name) == (1, "d")


def test_the_rest_of_a_longer_transfer_is_exposed():
  walked = walk(
    start("s", "x"), product("y", "x", "x", cycles=4_000), done("d", "s")
  )
  assert walked.seconds == pytest.approx(SEND_S)
  assert totals(walked, "wait") == {"d": 0.006}
  assert transfers(walked)["s"].hidden == pytest.approx(0.004)


def test_a_blocking_collective_hides_nothing():
  walked = walk(
    product("y", "x", "x", cycles=4_000),
    f"%g = {ARRAY} collective-permute(%x), {RING}",
  )
  assert walked.seconds == pytest.approx(0.004 + SEND_S)
  assert totals(walked, "wait") == {"g": SEND_S}
  span = transfers(walked)["g"]
  assert (span.hidden, span.products, span.ended_by) == (0, 0, None)


@pytest.mark.parametrize("pairs, seconds", [(RING, 2 * SEND_S), (BACK, SEND_S)])
def test_two_that_go_the_same_way_share(pairs, seconds):
  walked = walk(
    start("s", "x"),
    start("t", "x", pairs=pairs),
    done("d", "s"),
    done("e", "t"),
  )
  assert walked.seconds == pytest.approx(seconds)


def test_a_shared_link_is_whole_again_when_the_other_has_arrived():
  # The first travels alone for 6 ms and shares for 8 while its last 4 go; the
  # second has then done 4 of its 10.
  walked = walk(
    start("s", "x"),
    product("y", "x", "x", cycles=6_000),
    start("t", "x"),
    done("d", "s"),
    done("e", "t"),
  )
  spans = transfers(walked)
  assert spans["s"].end == pytest.approx(0.014)
  assert spans["t"].end == pytest.approx(0.020)
  assert spans["s"].hidden == pytest.approx(0.006)
  assert spans["t"].hidden == 0


def test_moves_queue_beside_compute():
  walked = walk(
    f"%c = ({ARRAY}, {ARRAY}, u32[]) copy-start(%x)",
    f"%k = ({ARRAY}, {ARRAY}, u32[]) copy-start(%x)",
    product("y", "x", "x", cycles=500),
    f"%e = {ARRAY} copy-done(%c)",
    f"%f = {ARRAY} copy-done(%k)",
  )
  assert walked.seconds == pytest.approx(0.002)
  assert totals(walked, "wait") == {"e": 0.0005, "f": 0.001}


BODY = "\n".join(
  [
    start("s", "a"),
    product("p", "a", "a", cycles=3_000),
    done("d", "s"),
    product("y", "p", "d", cycles=2_000),
  ]
)


@pytest.mark.parametrize("trips", [0, 1, 2, 3, 50])
def test_a_loop_takes_as_long_as_its_trips(trips):
  walked = Walk(hlo.parse(module(LOOP_ENTRY, loop(BODY, trips=trips))), Costs())
  assert walked.seconds == pytest.approx(trips * 0.012)
  if trips:
    assert totals(walked, "compute") == {"p": trips * 0.003, "y": trips * 0.002}
    assert totals(walked, "wait") == {"d": trips * 0.007}
    spans = [s for s in walked.spans if s.what == "transfer"]
    assert sum(s.runs for s in spans) == trips
    assert {round(s.hidden, 9) for s in spans} == {0.003}


STATE = f"({ARRAY}, {ARRAY}, u32[], u32[])"


def carrying_a_transfer(*body, trips):
  """A loop into which, and out of which, a transfer comes under way.

  Args:
    *body: lines that make `%y` of `%a`, what the loop carries.
    trips: how often it turns.
  """
  entry = "\n".join(
    [
      start("s0", "x"),
      LOOP_ENTRY.replace("ROOT ", ""),
      f"%last = {STATE} get-tuple-element(%while), index=1",
      "ROOT " + done("d1", "last"),
    ]
  )
  text = module(entry, loop("\n".join(body), trips=trips))
  text = text.replace(f"(s32[], {ARRAY})", f"(s32[], {STATE})")
  text = text.replace("tuple(%zero, %x)", "tuple(%zero, %s0)")
  return Walk(
    hlo.parse(text.replace(f"%a = {ARRAY}", f"%a = {STATE}")), Costs()
  )


@pytest.mark.parametrize("trips", [1, 2, 3, 4, 30])
def test_a_transfer_may_cross_the_back_edge(trips):
  walked = carrying_a_transfer(
    done("m", "a"),
    start("y", "m"),
    product("p", "m", "m", cycles=7_000),
    trips=trips,
  )
  # Nothing hides the first, and 7 ms of product each of the others.
  assert walked.seconds == pytest.approx((trips + 1) * SEND_S)
  spans = [s for s in walked.spans if s.what == "transfer"]
  assert sum(s.runs for s in spans) == trips + 1
  hidden = sum(s.runs * s.hidden for s in spans)
  assert hidden == pytest.approx(trips * 0.007)
  assert sum(s.runs * s.products for s in spans) == trips


def test_a_transfer_may_pass_through_a_loop():
  walked = carrying_a_transfer(
    f"%y = {STATE} get-tuple-element(%c), index=1",
    product("p", "i", "i", cycles=700),
    trips=8,
  )
  assert walked.seconds == pytest.approx(SEND_S)
  span = transfers(walked)["s0"]
  assert span.hidden == pytest.approx(8 * 0.0007)
  assert span.products == 8


def test_a_loop_without_end_is_refused():
  text = module(LOOP_ENTRY, loop(BODY, trips=7)).replace(
    "%bound = s32[] constant(7)", "%bound = s32[] custom-call()"
  )
  with pytest.raises(ValueError, match=r"constant number of times, got while"):
    Walk(hlo.parse(text), Costs())
  walked = Walk(hlo.parse(text), Costs(), unknown_trips=1)
  assert walked.seconds == pytest.approx(0.012)


def test_the_slower_branch_is_taken():
  branches = [
    f"""
%{name} (b: f32[1024,256]) -> f32[1024,256] {{
  %b = {ARRAY} parameter(0)
  ROOT {product("p_" + name, "b", "b", cycles=cycles)}
}}
"""
    for name, cycles in (("one", 5_000), ("two", 9_000), ("three", 1_000))
  ]
  walked = walk(
    start("s", "x"),
    f"%c = {ARRAY} conditional(%x, %x, %x, %x), "
    "branch_computations={%one, %two, %three}",
    done("d", "s"),
    computations=branches,
  )
  assert walked.seconds == pytest.approx(SEND_S)
  assert totals(walked, "compute") == {"p_two": 0.009}
  assert transfers(walked)["s"].hidden == pytest.approx(0.009)


def test_a_call_is_entered():
  called = f"""
%callee (b: f32[1024,256]) -> f32[1024,256] {{
  %b = {ARRAY} parameter(0)
  ROOT {product("inner", "b", "b", cycles=2_000)}
}}
"""
  walked = walk(
    f"%c = {ARRAY} call(%x), to_apply=%callee", computations=[called]
  )
  assert totals(walked, "compute") == {"inner": 0.002}


def test_what_ends_must_have_started():
  with pytest.raises(ValueError, match="d must end something that has started"):
    walk(done("d", "x"))


def test_the_end_of_a_gather_that_was_moved_meanwhile():
  # The compiler made room: the shard and the whole went to the HBM and back, so
  # that only a semaphore of the end still comes from the start.
  moved = 'custom-call(%x), custom_call_target="ConcatBitcast"'
  lines = ASYNC_ENTRY.replace("%s0, %f1", "%m0, %m1, %s2").splitlines()
  walked = walk(
    *lines[:-1],
    f"%m0 = {ARRAY} {moved}",
    f"%m1 = {WHOLE} {moved}",
    "%s2 = s32[2]{0:S(4)} get-tuple-element(%s), index=2",
    lines[-1].replace("ROOT ", ""),
    computations=(ASYNC_FUSIONS,),
  )
  assert transfers(walked)["s"].seconds == pytest.approx(4 * SEND_S)
