import pytest
from hlo_text import ARRAY, LOOP_ENTRY, loop, module

from collective_mm import hlo, hlo_loops

BODY = f"  %y = {ARRAY} add(%a, %a)"


def count(text):
  parsed = hlo.parse(text)
  (line,) = (i for i in parsed.instructions.values() if i.opcode == "while")
  return hlo_loops.trip_count(parsed, line)


@pytest.mark.parametrize("trips, step", [(48, 1), (4, 2), (3, 5), (0, 1)])
def test_a_loop_that_counts_up(trips, step):
  assert count(module(LOOP_ENTRY, loop(BODY, trips=trips, step=step))) == trips


@pytest.mark.parametrize(
  "old, new, trips",
  [
    ("constant(7)", "constant(8)", 8),
    ("direction=LT", "direction=LE", 8),
    ("direction=LT", "direction=NE", 7),
    (
      "compare(%j, %bound), direction=LT",
      "compare(%bound, %j), direction=GT",
      7,
    ),
    ("%zero = s32[] constant(0)", "%zero = s32[] constant(3)", 4),
    ("%bound = s32[] constant(7)", "%bound = s32[] copy(%seven)\n", None),
  ],
)
def test_bounds_and_directions(old, new, trips):
  text = module(LOOP_ENTRY, loop(BODY, trips=7))
  assert old in text
  text = text.replace(old, new).replace(
    "s32[] copy(%seven)", "s32[] custom-call()"
  )
  assert count(text) == trips


@pytest.mark.parametrize(
  "last, direction, trips", [(0, "GT", 6), (0, "GE", 7), (1, "GE", 6)]
)
def test_a_loop_that_counts_down(last, direction, trips):
  text = module(LOOP_ENTRY, loop(BODY, trips=7))
  text = text.replace("%zero = s32[] constant(0)", "%zero = s32[] constant(6)")
  text = text.replace("%step = s32[] constant(1)", "%step = s32[] constant(-1)")
  text = text.replace(
    "%bound = s32[] constant(7)", f"%bound = s32[] constant({last})"
  )
  assert count(text.replace("direction=LT", f"direction={direction}")) == trips


def test_an_odd_step_rounds_up():
  text = module(LOOP_ENTRY, loop(BODY, trips=7))
  text = text.replace("%step = s32[] constant(1)", "%step = s32[] constant(2)")
  assert count(text) == 4


def test_a_comparison_and_an_increment_inside_fusions():
  fused = """
%plus (m: s32[], n: s32[]) -> s32[] {
  %m = s32[] parameter(0)
  %n = s32[] parameter(1)
  ROOT %sum = s32[] add(%m, %n)
}

%under (m2: s32[], n2: s32[]) -> pred[] {
  %m2 = s32[] parameter(0)
  %n2 = s32[] parameter(1)
  ROOT %is = pred[] compare(%m2, %n2), direction=LT
}
"""
  text = module(LOOP_ENTRY, fused, loop(BODY, trips=5))
  text = text.replace(
    "add(%i, %step)", "fusion(%i, %step), kind=kLoop, calls=%plus"
  )
  text = text.replace(
    "compare(%j, %bound), direction=LT",
    "fusion(%j, %bound), kind=kLoop, calls=%under",
  )
  assert count(text) == 5


def carried(text):
  """`text` with the bound carried by the loop instead of in the condition."""
  text = text.replace(f"(s32[], {ARRAY})", f"(s32[], {ARRAY}, s32[])")
  text = text.replace("tuple(%zero, %x)", "tuple(%zero, %x, %last)")
  text = text.replace("tuple(%next, %y)", "tuple(%next, %y, %same)")
  text = text.replace(
    "  %step =", "  %same = s32[] get-tuple-element(%c), index=2\n  %step ="
  )
  return text.replace(
    "%bound = s32[] constant(5)",
    "%bound = s32[] get-tuple-element(%d), index=2",
  )


def test_a_bound_that_the_loop_carries():
  entry = "%last = s32[] constant(9)\n" + LOOP_ENTRY
  assert count(carried(module(entry, loop(BODY, trips=5)))) == 9


def test_a_bound_that_changes_is_not_constant():
  entry = "%last = s32[] constant(9)\n" + LOOP_ENTRY
  text = carried(module(entry, loop(BODY, trips=5)))
  assert (
    count(text.replace("tuple(%next, %y, %same)", "tuple(%next, %y, %i)"))
    is None
  )


def test_the_compilers_own_count_comes_first():
  text = module(LOOP_ENTRY, loop(BODY, trips=5)).replace(
    "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"11"}}'
  )
  assert count(text) == 11


def test_runs_multiply_through_loops():
  inner = loop(BODY, trips=5)
  for name in ("body", "cond"):
    inner = inner.replace(f"%{name} ", f"%in_{name} ")
  calls = f"""
  %z = s32[] constant(0)
  %begin = (s32[], {ARRAY}) tuple(%z, %a)
  %w = (s32[], {ARRAY}) while(%begin), condition=%in_cond, body=%in_body
  %y = {ARRAY} get-tuple-element(%w), index=1
"""
  parsed = hlo.parse(module(LOOP_ENTRY, inner, loop(calls, trips=3)))
  assert hlo_loops.run_counts(parsed) == {"main": 1, "body": 3, "in_body": 15}
