import time

import pytest
from hlo_text import ARRAY, TPU_HEADER, done, module, product, start

from collective_mm import hlo

SENT = module(
  "\n".join(
    [
      start("s", "x"),
      product("y", "x", "x", cycles=1234),
      done("d", "s"),
      f"ROOT %z = {ARRAY} add(%y, %d)",
    ]
  )
)
TABLES = """
FileNames
1 "ring.py"
2 "/home/me/train.py"

FunctionNames
1 "shift"

FileLocations
1 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=3 end_column=9}
2 {file_name_id=1 function_name_id=1 line=59 end_line=60 column=3 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}
"""


def entry_line(text):
  """The line of an entry that holds one line beside its parameter."""
  return hlo.parse(module(text)).entry.root


def test_instructions_come_in_schedule_order():
  parsed = hlo.parse(SENT)
  assert (parsed.name, parsed.partitions) == ("jit_f", 4)
  assert [i.name for i in parsed.entry.instructions] == list("xsydz")
  assert [i.opcode for i in parsed.entry.instructions] == [
    "parameter",
    "collective-permute-start",
    "fusion",
    "collective-permute-done",
    "add",
  ]
  root = parsed.entry.root
  assert root.operands == ("y", "d")
  assert parsed.operand(root, 1).name == "d"


def test_a_fusion_tells_its_cycles_and_what_is_inside():
  parsed = hlo.parse(SENT)
  fusion = parsed.instructions["main", "y"]
  assert fusion.cycles == 1234
  assert fusion.called == {"calls": ("product",)}
  inside = [line.opcode for line in parsed.inside(fusion)]
  assert inside == ["parameter", "parameter", "convolution"]
  assert parsed.instructions["main", "s"].cycles is None


def test_a_permute_tells_its_pairs_and_channel():
  line = hlo.parse(SENT).instructions["main", "s"]
  assert line.pairs.tolist() == [[0, 1], [1, 2], [2, 3], [3, 0]]
  assert line.channel == 1
  assert line.groups is None


def test_a_permute_may_have_no_pairs():
  line = entry_line(
    f"ROOT %y = {ARRAY} collective-permute(%x), source_target_pairs={{}}"
  )
  assert line.pairs.shape == (0, 2)


@pytest.mark.parametrize(
  "type_text, arrays",
  [
    ("f32[]", [("f32", (), 0, 4)]),
    ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", [("bf16", (8, 128), 1, 2048)]),
    ("pred[3]{0:T(512)}", [("pred", (3,), 0, 3)]),
    ("s4[3]{0}", [("s4", (3,), 0, 2)]),
    ("f8e4m3fn[2,5]{1,0}", [("f8e4m3fn", (2, 5), 0, 10)]),
    ("c64[2]{0}", [("c64", (2,), 0, 16)]),
    ("token[]", [("token", (), 0, 0)]),
    (
      "((f32[2]{0}), /*index=1*/bf16[4]{0:T(128)S(1)}, u32[]{:S(2)})",
      [("f32", (2,), 0, 8), ("bf16", (4,), 1, 8), ("u32", (), 2, 4)],
    ),
  ],
)
def test_the_arrays_of_a_result(type_text, arrays):
  line = entry_line(f"ROOT %y = {type_text} custom-call(%x)")
  found = [(a.dtype, a.dims, a.space, a.nbytes) for a in line.arrays]
  assert found == arrays
  assert line.nbytes == sum(nbytes for *_, nbytes in arrays)


def test_an_unknown_dtype_is_said():
  line = entry_line("ROOT %y = what[2]{0} custom-call(%x)")
  with pytest.raises(ValueError, match="dtype must be one that HLO knows"):
    _ = line.nbytes


def test_operands_in_every_form():
  text = "ROOT %y = (f32[2]{0}, s32[]) tuple(%a.1, /*index=1*/%b-2)"
  assert entry_line(text).operands == ("a.1", "b-2")
  text = "ROOT y = f32[2]{0} add(a.1, b-2), metadata={}"
  assert entry_line(text).operands == ("a.1", "b-2")
  text = "ROOT %y = f32[2]{0} add(f32[2]{0:T(8)} %a, f32[2]{0:T(8)} %b)"
  assert entry_line(text).operands == ("a", "b")
  assert entry_line("ROOT %y = s32[] constant(-3)").operands == ()


def test_what_shares_a_buffer():
  line = entry_line(
    "ROOT %y = (f32[2]{0}, f32[2]{0}) fusion(%x, %x), kind=kCustom, "
    "output_to_operand_aliasing={{0}: (1, {}), {1}: (0, {})}, calls=%product"
  )
  assert line.aliases == {0: 1, 1: 0}
  line = entry_line(
    "ROOT %y = f32[2]{0} fusion(%x, %x), kind=kCustom, "
    "output_to_operand_aliasing={{}: (1, {})}, calls=%product"
  )
  assert line.aliases == {0: 1}
  assert entry_line("ROOT %y = f32[2]{0} add(%x, %x)").aliases == {}


def test_branches_are_called():
  line = entry_line(
    f"ROOT %y = {ARRAY} conditional(%x, %x, %x), "
    "branch_computations={%one, %two}"
  )
  assert line.called == {"branch_computations": ("one", "two")}


def test_the_source_is_the_innermost_frame():
  text = module(
    f'ROOT %y = {ARRAY} add(%x, %x), metadata={{op_name="jit(f)/add" '
    "stack_frame_id=2}"
  ).replace("\n", "\n" + TABLES, 1)
  parsed = hlo.parse(text)
  assert parsed.entry.root.op_name == "jit(f)/add"
  assert parsed.source(parsed.entry.root) == "ring.py:59"
  assert parsed.source(parsed.entry.instructions[0]) == ""


def test_the_source_in_its_older_form():
  parsed = hlo.parse(
    module(
      f'ROOT %y = {ARRAY} add(%x, %x), metadata={{op_name="jit(f)/add" '
      'source_file="train.py" source_line=12}'
    )
  )
  assert parsed.source(parsed.entry.root) == "train.py:12"


def test_replicas_count_as_partitions():
  header = "is_scheduled=true, replica_count=2, num_partitions=4"
  root = f"ROOT %y = {ARRAY} add(%x, %x)"
  assert hlo.parse(module(root, header=header)).partitions == 8
  assert hlo.parse(module(root, header="is_scheduled=true")).partitions == 1


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "must be the HLO of a compiled module"),
    ("module @jit_f attributes {}", "got 'module @jit_f attributes {}'"),
    (SENT.replace(TPU_HEADER, "num_partitions=4"), "must be scheduled HLO"),
    (f"HloModule jit_f, {TPU_HEADER}\n", "must hold an ENTRY computation"),
  ],
)
def test_text_of_another_kind_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    hlo.parse(text)


def test_a_large_module_is_read_fast():
  line = start("s@", "x") + ", backend_config={" + 40 * '"key":"v",' + "}"
  many = [line.replace("@", str(i)) for i in range(10_000)]
  text = module("\n".join([*many, f"ROOT %y = {ARRAY} add(%x, %x)"]))
  assert len(text) > 5e6
  began = time.perf_counter()
  parsed = hlo.parse(text)
  assert time.perf_counter() - began < 2
  assert len(parsed.entry.instructions) == 10_002
