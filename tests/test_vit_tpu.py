"""What the TPU compiler makes of the training step: eight blocks of ViT-22B.

`docs/performance.md` has how it came about. The ceilings are a little above
what the schedule had when this was written.
"""

import pytest

from collective_mm import gate, hlo, overlap_report
from models.vit_config import get_config
from profiling import aot_compile, aot_programs

pytestmark = pytest.mark.tpu_compiler


@pytest.fixture(scope="module")
def step():
  pytest.importorskip("libtpu")
  cfg = get_config("vit_22b", depth=8, classes=1024)
  mesh = aot_programs.mesh_on("v4:2x2x2", 2, 4)
  program = aot_programs.vit_step(
    cfg, mesh, batch=64 * 8, schedule=("two_way", "async")
  )
  return mesh, aot_compile.compile_and_replay(
    program.lowered, mesh, gate.compiler_options("v4", prefetch=True)
  )


def test_nothing_blocks_in_the_loops(step):
  mesh, compiled = step
  report = overlap_report(compiled.text, mesh=mesh)
  print(report)
  module = hlo.parse(compiled.text)
  loops = {
    name
    for line in module.instructions.values()
    if line.opcode == "while"
    for name in line.called["body"]
  }
  inside = [c for c in report.collectives if c.computation in loops]
  assert {c.kind for c in inside} >= {"all-gather", "collective-permute"}
  assert [c.start for c in inside if c.blocks] == []
  assert {c.dtype for c in inside if c.kind == "all-gather"} == {"bf16"}


def test_time_goes_into_products(step):
  _, compiled = step
  run = compiled.replayed
  print(run)
  assert run.exposed_fraction < 0.03
  rest = run.compute_s["rest"] / run.step_time_s
  assert rest < 0.09
  assert run.compute_s["kernels"] / run.step_time_s < 0.04
