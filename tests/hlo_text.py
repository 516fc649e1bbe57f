"""Small scheduled modules, written the way the TPU compiler writes them."""

ARRAY = "f32[1024,256]{1,0:T(8,128)}"  # one MiB
RING = "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
BACK = "source_target_pairs={{1,0},{2,1},{3,2},{0,3}}"
TPU_HEADER = "is_scheduled=true, num_partitions=4"

_PRODUCT = f"""
%product (p: f32[1024,256], q: f32[1024,256]) -> f32[1024,256] {{
  %p = {ARRAY} parameter(0)
  %q = {ARRAY} parameter(1)
  ROOT %conv = {ARRAY} convolution(%p, %q), dim_labels=bf_oi->bf
}}
"""


def module(entry: str, *computations: str, header: str = TPU_HEADER) -> str:
  """A module of four partitions around the lines of its entry."""
  return "\n".join(
    (
      f"HloModule jit_f, {header}",
      _PRODUCT,
      *computations,
      "ENTRY %main (x: f32[1024,256]) -> f32[1024,256] {",
      f"  %x = {ARRAY} parameter(0)",
      *_indented(entry),
      "}",
      "",
    )
  )


def product(name: str, a: str, b: str, *, cycles: int) -> str:
  """`name` = a product of `a` and `b`, of so many cycles."""
  return (
    f"%{name} = {ARRAY} fusion(%{a}, %{b}), kind=kOutput, calls=%product, "
    f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
  )


def start(name: str, a: str, *, pairs: str = RING, array: str = ARRAY) -> str:
  """`name` starts to send `a` on."""
  return (
    f"%{name} = ({array}, {array}, u32[]{{:S(2)}}, u32[]{{:S(2)}}) "
    f"collective-permute-start(%{a}), channel_id=1, {pairs}"
  )


def done(name: str, of: str, *, array: str = ARRAY) -> str:
  """`name` = what arrives from `of`."""
  return f"%{name} = {array} collective-permute-done(%{of})"


def loop(body: str, *, trips: int, step: int = 1, out: str = "y") -> str:
  """Computations `%body` and `%cond` of a loop that carries `%a` from `%y`.

  Args:
    body: lines that make `%{out}`, and may use `%a`.
    trips: how often it turns, counting from 0 to `trips * step`.
    step: what the body adds to the index.
    out: the line that the next trip gets.
  """
  carry, lines = f"(s32[], {ARRAY})", "\n".join(_indented(body))
  return f"""
%body (c: (s32[], f32[1024,256])) -> (s32[], f32[1024,256]) {{
  %c = {carry} parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %a = {ARRAY} get-tuple-element(%c), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
{lines}
  ROOT %again = {carry} tuple(%next, %{out})
}}

%cond (d: (s32[], f32[1024,256])) -> pred[] {{
  %d = {carry} parameter(0)
  %j = s32[] get-tuple-element(%d), index=0
  %bound = s32[] constant({trips * step})
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}}
"""


def _indented(lines: str) -> list[str]:
  return ["  " + line.strip() for line in lines.strip().splitlines()]


LOOP_ENTRY = f"""
%zero = s32[] constant(0)
%init = (s32[], {ARRAY}) tuple(%zero, %x)
%while = (s32[], {ARRAY}) while(%init), condition=%cond, body=%body
ROOT %out = {ARRAY} get-tuple-element(%while), index=1
"""

ALL = "replica_groups={{0,1,2,3}}"
WHOLE = "f32[4096,256]{1,0:T(8,128)}"
STATE = f"({ARRAY}, {WHOLE}, s32[2]{{0:S(4)}})"
GATHER = (
  f"all-gather(%p1), channel_id=1, {ALL}, dimensions={{0}}, "
  'backend_config={"async_collective_fusion_config":{"flag_start":"2"}}'
)
# Computations that start, carry and end one gather, and lines that call them.
ASYNC_FUSIONS = f"""
%starts (p1: f32[1024,256]) -> (...) {{
  %p1 = {ARRAY} parameter(0)
  %g1 = {WHOLE} {GATHER}
  ROOT %a = {STATE} custom-call(%g1), custom_call_target="AsyncCollectiveStart"
}}

%carries (p1: f32[1024,256], p2: f32[4096,256]) -> (...) {{
  %p1 = {ARRAY} parameter(0)
  %p2 = {WHOLE} parameter(1)
  %g2 = {WHOLE} {GATHER}
  %c = {ARRAY} convolution(%p1, %p1), dim_labels=bf_oi->bf
  ROOT %t = ({ARRAY}, {WHOLE}) tuple(%c, %p2)
}}

%ends (p1: f32[1024,256], p2: f32[4096,256]) -> f32[4096,256] {{
  %p1 = {ARRAY} parameter(0)
  %p2 = {WHOLE} parameter(1)
  %g3 = {WHOLE} {GATHER}
  ROOT %e = {WHOLE} custom-call(%p2), custom_call_target="AsyncCollectiveDone"
}}
"""
SAME = "kind=kCustom, output_to_operand_aliasing"
ASYNC_ENTRY = "\n".join(
  [
    f"%s = {STATE} fusion(%x), {SAME}={{{{0}}: (0, {{}})}}, calls=%starts",
    f"%s0 = {ARRAY} get-tuple-element(%s), index=0",
    f"%s1 = {WHOLE} get-tuple-element(%s), index=1",
    f"%f = ({ARRAY}, {WHOLE}) fusion(%s0, %s1), {SAME}={{{{1}}: (1, {{}})}}, "
    'calls=%carries, backend_config={"estimated_cycles":"500"}',
    f"%f1 = {WHOLE} get-tuple-element(%f), index=1",
    f"ROOT %d = {WHOLE} fusion(%s0, %f1), {SAME}={{{{}}: (1, {{}})}}, "
    "calls=%ends",
  ]
)
