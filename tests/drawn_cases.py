"""Hypothesis strategies for cases of the ops."""

from hypothesis import HealthCheck
from hypothesis import strategies as st
from op_cases import Case

from collective_mm.op_arguments import SCHEDULES

SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}
SIZES = (1, 2, 3, 4, 5, 6, 8)


@st.composite
def cases(draw, op):
  """A call of `op` with every option that changes what it computes or sends."""
  size = draw(st.sampled_from(SIZES))
  rows = draw(st.lists(st.integers(1, 4), max_size=3))
  inner = draw(st.integers(1, 6))
  dtype = draw(st.sampled_from(("float32", "bfloat16", "float16")))
  schedule = st.sampled_from(SCHEDULES)
  options = {
    "accum_dtype": draw(st.sampled_from(("float32", dtype))),
    # Many lanes of a large ring take long to compile and show nothing new.
    "chunks": draw(st.integers(1, 3 if size < 5 else 1)),
  }
  dim, short = -1, 0
  if op == "matmul_all_reduce":
    options["schedule"] = draw(schedule)
  else:
    options["schedule"] = draw(
      st.one_of(schedule, st.tuples(schedule, schedule))
    )
    dim = draw(st.integers(-1 - len(rows), -1))
  # What may be missing from the last shard, or shards.
  if op == "all_gather_matmul":
    options["dw"] = draw(st.sampled_from(("regather", "save")))
    short = draw(st.integers(0, min(size, inner) - 1 if dim == -1 else 0))
  else:
    wires = (None, "float32", "bfloat16")
    options["wire_dtype"] = draw(st.sampled_from(wires))
  if op == "matmul_reduce_scatter":
    short = draw(st.integers(0, size - 1))
  return Case(
    op=op,
    size=size,
    rows=tuple(rows),
    inner=inner,
    # Tuples of inputs share the width of `y`, the first of these.
    outer=tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=2))),
    dim=dim,
    short=short,
    across=draw(st.sampled_from([n for n in (1, 2, 3) if size % n == 0])),
    whole=draw(st.booleans()),
    dtype=dtype,
    check_vma=draw(st.booleans()),
    options=tuple(sorted(options.items())),
  )
