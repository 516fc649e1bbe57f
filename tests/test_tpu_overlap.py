"""What the TPU compiler makes of the ops, at sizes of models that exist.

Each op runs forward and through both gradients on eight devices. All that is
asked of one compiled program is asked in one test: a compilation takes longest.
"""

import pytest

from collective_mm import gate, hlo, hlo_flow, overlap_report
from profiling import aot_programs, matmul_methods, simulate_matmul

pytestmark = pytest.mark.tpu_compiler

RING = simulate_matmul.RING
LARGE = 100_000  # bytes; a piece of a chunk is larger, bookkeeping is not

# Tokens, width and features of ViT-22B's MLP, of Llama-70B's, and of its gate
# and up products as one: on a v6e a ring hides from 8 x 5,300 features on.
VIT, LLAMA, GATE_AND_UP = (6144, 24576), (8192, 28672), (8192, 57344)
SHORT = [
  ("v4", 2048, *VIT),
  ("v5e", 2048, *VIT),
  ("v5p", 2048, *LLAMA),
  ("v6e", 2048, *GATE_AND_UP),
]
LONG = [
  ("v4", 16384, *LLAMA),
  ("v5e", 16384, *VIT),
  ("v5p", 131072, *LLAMA),
  ("v6e", 32768, *GATE_AND_UP),
]
CASES = [
  *SHORT,
  *(pytest.param(*case, marks=pytest.mark.long) for case in LONG),
]


def compile_op(op, method, chip, tokens, width, features, mesh=None):
  pytest.importorskip("libtpu")
  problem = matmul_methods.Problem(
    op=op,
    tokens=tokens,
    width=width,
    features=features,
    dtype="bfloat16",
    mesh=mesh or simulate_matmul.Simulator(chip).mesh,
  )
  lowered = matmul_methods.program(problem, method).lower()
  return lowered.compile(compiler_options=gate.compiler_options(chip))


def computed(module):
  """`(line, kind, opcodes)` of all large compute, the opcodes inside large."""
  found = []
  for step in hlo_flow.steps(module, module.entry):
    if step.does == "computes" and is_large(step.line):
      inside = filter(is_large, (step.line, *module.inside(step.line)))
      found.append((step.line, step.kind, {line.opcode for line in inside}))
  return found


def is_large(line):
  return max((array.nbytes for array in line.arrays), default=0) >= LARGE


def sources(module, line):
  """The lines that made what `line` reads."""
  return [
    hlo_flow.origin(module, line, i)[0] for i in range(len(line.operands))
  ]


@pytest.mark.parametrize("op", matmul_methods.OPS)
@pytest.mark.parametrize("chip, tokens, width, features", CASES)
def test_rings_hide_and_are_part_of_the_products(
  op, chip, tokens, width, features
):
  compiled = compile_op(op, "two_way", chip, tokens, width, features)
  report = overlap_report(compiled)
  print(report)

  # Permutes alone, to neighbours, in the dtype of the arrays: nothing gathers
  # an activation, nothing blocks. One op gathers `x`, scatters `dx` and gathers
  # `x` again, the other scatters `y` and gathers `dy` for both gradients.
  assert report.chip == chip
  assert {c.kind for c in report.collectives} == {"collective-permute"}
  assert {(c.dtype, c.hops) for c in report.collectives} == {("bf16", 1)}
  rings = 3 if op == "all_gather_matmul" else 2
  assert sum(c.runs for c in report.collectives) == rings * 2 * (RING - 1)

  # A product runs beside each of them, even the first and the last.
  assert min(c.products for c in report.collectives) > 0
  assert report.faults == ()
  report.assert_overlapped(min_hidden=0.95)

  # Two lanes of chunks make 2 t products a pass, and dw is one more.
  module = hlo.parse(compiled.as_text())
  lines = computed(module)
  products = [inside for _, kind, inside in lines if kind == hlo_flow.PRODUCTS]
  assert len(products) == 2 * 2 * RING + 1
  # Those of a gathered chunk and the two that end a reduction write in place.
  written = sum("dynamic-update-slice" in inside for inside in products)
  assert written == 2 * RING + 2
  # All but a lane's first share of a reduction add the sum that has arrived.
  assert sum("add" in inside for inside in products) == 2 * (RING - 1)

  # Nothing else adds, and nothing passes over what a product made; but dw, of
  # which no ring knows, may get another layout.
  rest = [(line, inside) for line, kind, inside in lines if kind == "rest"]
  assert [line.name for line, inside in rest if "add" in inside] == []
  dw = {(width, features // RING), (features // RING, width)}
  assert [
    line.name
    for line, _ in rest
    if line.arrays[0].dims not in dw
    and any(
      hlo_flow.kind_of(module, source) == hlo_flow.PRODUCTS
      for source in sources(module, line)
    )
  ] == []


@pytest.mark.long
@pytest.mark.parametrize("chip, tokens, width, features", SHORT)
def test_a_gather_left_to_the_compiler_is_asynchronous(
  chip, tokens, width, features
):
  report = overlap_report(
    compile_op(
      "all_gather_matmul", "two_way_async", chip, tokens, width, features
    )
  )
  print(report)
  gathers = [c for c in report.collectives if c.kind == "all-gather"]
  assert len(gathers) == 1
  assert not gathers[0].blocks
  assert gathers[0].products > 0
  permutes = {c.kind for c in report.collectives if c not in gathers}
  assert permutes == {"collective-permute"}
  assert report.faults == ()
  report.assert_overlapped(min_hidden=0.95)


@pytest.mark.parametrize("op", matmul_methods.OPS)
def test_a_ring_along_an_open_line_hides_too(op):
  # Shifts of two hops, on links that carry both ways round.
  mesh = aot_programs.mesh_on("v5e:4x4", 4, 4, whole_dims=True)
  compiled = compile_op(op, "two_way", "v5e", 16384, *VIT, mesh)
  report = overlap_report(compiled)
  assert {c.kind for c in report.collectives} == {"collective-permute"}
  assert min(c.hidden for c in report.collectives) > 0.95
