import pytest
from hlo_text import (
  ALL,
  ARRAY,
  ASYNC_ENTRY,
  ASYNC_FUSIONS,
  WHOLE,
  done,
  module,
  product,
  start,
)

from collective_mm import hlo, hlo_flow


def steps_of(text):
  parsed = hlo.parse(text)
  return parsed, hlo_flow.steps(parsed, parsed.entry)


def only(text, *computations):
  _, steps = steps_of(module(text, *computations))
  (step,) = steps
  return step


def test_a_permute_that_starts_and_ends():
  text = "\n".join(
    [start("s", "x"), product("y", "x", "x", cycles=5), done("d", "s")]
  )
  parsed, (s, y, d) = steps_of(module(text))
  assert [s.does, y.does, d.does] == ["starts", "computes", "ends"]
  assert [s.kind, y.kind] == ["collective-permute", "products"]
  assert (s.transfer.nbytes, s.transfer.dtype) == (1 << 20, "f32")
  assert hlo_flow.origin(parsed, d.line) == (s.line, None)


@pytest.mark.parametrize(
  "line, kind, nbytes",
  [
    (f"{WHOLE} all-gather(%x), {ALL}, dimensions={{0}}", "all-gather", 4 << 20),
    (f"{WHOLE} all-gather(%x), replica_groups={{}}", "all-gather", 4 << 20),
    (
      f"{ARRAY} all-reduce(%x), {ALL}, to_apply=%product",
      "all-reduce",
      1 << 20,
    ),
    (
      f"f32[256,256]{{1,0}} reduce-scatter(%x), {ALL}",
      "reduce-scatter",
      1 << 20,
    ),
    (f"{ARRAY} all-to-all(%x), {ALL}, dimensions={{0}}", "all-to-all", 1 << 20),
    (f"({ARRAY}, {ARRAY}) all-reduce(%x, %x), {ALL}", "all-reduce", 2 << 20),
  ],
)
def test_a_plain_collective_blocks(line, kind, nbytes):
  step = only(f"ROOT %y = {line}")
  assert (step.does, step.kind) == ("blocks", kind)
  assert step.transfer.nbytes == nbytes
  assert step.transfer.groups.tolist() == [[0, 1, 2, 3]]


def test_among_one_device_nothing_travels():
  text = f"ROOT %y = {ARRAY} all-reduce(%x), replica_groups={{{{0}},{{1}}}}"
  assert steps_of(module(text))[1] == ()


def test_fusions_that_start_carry_and_end_a_gather():
  parsed, (s, f, d) = steps_of(module(ASYNC_ENTRY, ASYNC_FUSIONS))
  assert [s.does, f.does, d.does] == ["starts", "computes", "ends"]
  assert (s.kind, s.transfer.nbytes) == ("all-gather", 4 << 20)
  assert (f.kind, f.transfer) == ("products", None)
  # The end takes what the carrier passed on, which the start made.
  assert hlo_flow.origin(parsed, d.line, 1) == (s.line, 1)
  assert hlo_flow.origin(parsed, d.line, 0) == (s.line, 0)


def test_a_sparse_core_gathers_from_its_call_on():
  gathers = f"""
%gathers (p1: f32[1024,256], p2: token[]) -> f32[4096,256] {{
  %p2 = token[] parameter(1)
  %p1 = {ARRAY} parameter(0)
  ROOT %g = {WHOLE} all-gather(%p1), channel_id=1, {ALL}, dimensions={{0}}
}}, execution_thread="sparsecore"
"""
  entry = f"""
%tell = s32[] custom-call(), custom_call_target="PrepareAsyncCallStart"
%told = token[] custom-call(%tell), custom_call_target="PrepareAsyncCallDone"
%s = (({ARRAY}, token[]), {WHOLE}) call-start(%x, %told), to_apply=%gathers
ROOT %d = {WHOLE} call-done(%s)
"""
  parsed, (_, _, s, d) = steps_of(module(entry, gathers))
  assert [s.does, d.does] == ["starts", "ends"]
  assert (s.kind, s.transfer.nbytes) == ("all-gather", 4 << 20)
  assert hlo_flow.origin(parsed, d.line)[0] == s.line
  # libtpu 0.0.50.1 calls it first and hands over the array later.
  entry = f"""
%r = ((), (), s32[]) call-start(), to_apply=%gathers
%s = (({ARRAY}), {WHOLE}) call-update(%r, %x)
ROOT %d = {WHOLE} call-done(%s)
"""
  parsed, (r, s, d) = steps_of(module(entry, gathers))
  assert [r.does, s.does, d.does] == ["computes", "starts", "ends"]
  assert (s.kind, s.transfer.nbytes) == ("all-gather", 4 << 20)
  assert hlo_flow.origin(parsed, d.line)[0] == s.line


def test_a_fused_all_reduce_of_which_one_shard_is_kept():
  scatter = f"""
%all-reduce-scatter (p1: f32[1024,256]) -> f32[256,256] {{
  %p1 = {ARRAY} parameter(0)
  %sum = {ARRAY} all-reduce(%p1), {ALL}, to_apply=%product
  ROOT %part = f32[256,256]{{1,0}} slice(%sum), slice={{[0:256], [0:256]}}
}}
"""
  step = only(
    "ROOT %y = f32[256,256]{1,0} fusion(%x), kind=kCustom, "
    "calls=%all-reduce-scatter",
    scatter,
  )
  assert (step.does, step.kind) == ("blocks", "reduce-scatter")
  assert step.transfer.nbytes == 1 << 20
  # One that keeps the whole sum is an all-reduce.
  whole = scatter.replace("f32[256,256]{1,0} slice", f"{ARRAY} copy")
  step = only(
    f"ROOT %y = {ARRAY} fusion(%x), kind=kCustom, calls=%all-reduce-scatter",
    whole,
  )
  assert (step.does, step.kind) == ("blocks", "all-reduce")


WRAPPED = f"""
%wrapped (p1: f32[1024,256]) -> f32[256,256] {{
  %p1 = {ARRAY} parameter(0)
  ROOT %part = f32[256,256]{{1,0}} reduce-scatter(%p1), {ALL}
}}
"""


def test_the_forms_of_a_gpu():
  step = only(f"ROOT %s = ({ARRAY}, {WHOLE}) all-gather-start(%x), {ALL}")
  assert (step.does, step.kind) == ("starts", "all-gather")
  state = f"(({ARRAY}), f32[256,256]{{1,0}})"
  wrapped = f"ROOT %s = {state} async-start(%x), calls=%wrapped"
  step = only(wrapped, WRAPPED)
  assert (step.does, step.kind) == ("starts", "reduce-scatter")
  assert step.transfer.nbytes == 1 << 20
  step = only(wrapped + ', backend_config={"is_sync":true}', WRAPPED)
  assert step.does == "blocks"


def test_copies_inside_the_device_move():
  step = only(f"ROOT %s = ({ARRAY}, {ARRAY}, u32[]) copy-start(%x)")
  assert (step.does, step.kind, step.transfer) == ("moves", "copy", None)


@pytest.mark.parametrize(
  "target, kind",
  [
    ("tpu_custom_call", "kernels"),
    ("__cublas$gemm", "products"),
    ("AllocateBuffer", "rest"),
  ],
)
def test_custom_calls(target, kind):
  call = f'custom-call(%x), custom_call_target="{target}"'
  step = only(f"ROOT %y = {ARRAY} {call}")
  assert (step.does, step.kind) == ("computes", kind)
