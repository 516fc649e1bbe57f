"""What the TPU compiler makes of a prefetched stack, without a TPU."""

import math

import jax
import jax.numpy as jnp
import pytest

from collective_mm import (
  gate,
  make_mesh,
  overlap_report,
  prefetch_gate,
  prefetch_scan,
)
from collective_mm.axis_rings import axis_rings
from models.vit_config import get_config
from profiling import aot_programs, topology
from profiling.replay import replay

P = jax.P
SPECS = {
  "up": P(None, "data", "model"),
  "down": P(None, ("model", "data"), None),
}


def compiled_stack(
  name, rows, *, width=4096, length=6, backend="auto", options=None
):
  """The gradients of a stack of MLPs, `rows` tokens a chip."""
  pytest.importorskip("libtpu")
  devices = topology.devices(name)
  mesh = make_mesh(data=len(devices), model=1, devices=devices)
  x_spec = P("data")

  def layer(w, x):
    return x + jax.nn.gelu(x @ w["up"]) @ w["down"]

  def loss(params, x):
    y = prefetch_scan(
      layer,
      x,
      params,
      specs=SPECS,
      rings=axis_rings(mesh, "data"),
      backend=backend,
    )
    return jnp.square(y.astype(jnp.float32)).sum()

  mapped = jax.shard_map(
    jax.grad(loss),
    mesh=mesh,
    in_specs=(SPECS, x_spec),
    out_specs=SPECS,
    check_vma=False,
  )

  def array(shape, spec, dtype):
    sharding = jax.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  shapes = {"up": (width, 4 * width), "down": (4 * width, width)}
  params = {
    k: array((length, *s), SPECS[k], jnp.float32) for k, s in shapes.items()
  }
  x = array((rows * len(devices), width), x_spec, jnp.bfloat16)
  if options is None:
    options = gate.compiler_options(name.partition(":")[0], prefetch=True)
  return jax.jit(mapped).lower(params, x).compile(compiler_options=options)


def check(name, rows):
  report = overlap_report(compiled_stack(name, rows))
  in_loops = [c for c in report.collectives if c.runs > 1]
  kinds = {c.kind for c in in_loops}
  # A reduction has no blocking form, nor does a gather become an all-reduce.
  assert kinds == {"all-gather", "collective-permute"}
  sends = [c for c in in_loops if c.kind == "collective-permute"]
  assert len(sends) >= 2 * len(SPECS)
  gathers = [c for c in in_loops if c.kind == "all-gather"]
  assert {c.dtype for c in gathers} == {"bf16"}
  # Two layers of forward a trip, and one of backward.
  assert len(gathers) == 3 * len(SPECS)
  assert min(c.hidden for c in in_loops) > 0.99
  return report


@pytest.mark.tpu_compiler
def test_gathers_and_reductions_hide_behind_the_layer_at_hand():
  report = check("v4:2x2x2", 4096)
  first = [
    c for c in report.collectives if (c.kind, c.runs) == ("all-gather", 1)
  ]
  assert len(first) == len(SPECS)
  # To round six layers takes half as long as to gather one.
  assert min(c.hidden for c in first) > 0.4
  # Of the end of backward only the first layer's reductions are waited for: the
  # others' have its recomputation and its gradients to hide behind, without
  # which less than half of all these bytes did.
  last = [
    c
    for c in report.collectives
    if (c.kind, c.runs) == ("collective-permute", 1)
  ]
  hidden = sum(c.hidden * c.nbytes for c in last)
  assert hidden > 0.65 * sum(c.nbytes for c in last)


@pytest.mark.long
@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  "name", ["v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8"]
)
def test_they_hide_on_larger_slices(name):
  check(name, 16384)


def held_at_most(weights, rings):
  """Bytes of weights and gradients that a stack may hold, beside its layers'.

  Args:
    weights: bytes of a layer's gathered weights in bfloat16.
    rings: of the axis, outermost first.
  """
  held = 2 * weights  # gathered
  held += 2 * weights  # whole gradients
  # Then a ring after the other leaves 1 / f of them, in float32: what it takes
  # and what it makes, its shares cut out and those that arrive.
  size = weights
  for i, f in enumerate(rings):
    held += 2 * size * (f - 1) // f
    size = 2 * weights // math.prod(rings[: i + 1])
    held += 2 * size
  return held


def temporaries(compiled):
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.tpu_compiler
def test_a_stack_holds_two_layers_of_weights_and_two_of_gradients():
  width, length, rows = 2048, 12, 64
  compiled = compiled_stack("v4:2x2x2", rows, width=width, length=length)
  weights = 2 * width * 4 * width * 2
  carry = rows * width * 2
  # The weights of all layers are rounded to bfloat16 before they travel.
  bound = held_at_most(weights, (2, 2, 2))
  bound += length * (carry + weights // 8) + 16 * carry
  assert temporaries(compiled) < bound
  assert bound < length * weights  # were all kept, they alone would not fit


def compiled_blocks(depth):
  """The gradients of ViT-22B's blocks, one image a chip."""
  pytest.importorskip("libtpu")
  cfg = get_config("vit_22b", depth=depth)
  mesh = aot_programs.mesh_on("v4:2x2x2", 8, 1)
  program = aot_programs.vit_blocks(cfg, mesh, batch=8)
  options = gate.compiler_options("v4", prefetch=True)
  return cfg, program.lowered.compile(compiler_options=options)


@pytest.mark.long
@pytest.mark.tpu_compiler
def test_vit_22b_holds_two_layers_of_weights_and_two_of_gradients():
  # Of few layers most is held beside the first in backward, of many before it.
  cfg, six = compiled_blocks(6)
  _, many = compiled_blocks(22)
  _, more_still = compiled_blocks(24)
  weights = (4 * cfg.width + 2 * cfg.mlp) * cfg.width * 2
  carry = cfg.tokens * cfg.width * 2
  # A layer more is its carry and its shards in bfloat16; its gradients are
  # among the outputs.
  more = (temporaries(more_still) - temporaries(many)) / 2
  assert carry + weights / 8 <= more < carry + weights / 8 + 0.01 * weights
  hidden = cfg.tokens * cfg.mlp * 4
  bound = held_at_most(weights, (2, 2, 2)) + 16 * hidden
  assert temporaries(many) - 22 * more < bound
  assert temporaries(six) < bound


@pytest.mark.long
@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  ("name", "rows"), [("v4:2x2x2", 8192), ("v6e:2x4", 16384)]
)
def test_auto_takes_what_replays_faster_where_gathers_may_block(name, rows):
  chip, width = name.partition(":")[0], 2048
  options = gate.compiler_options(chip, prefetch=True)
  if not gate.offloads_gathers(chip):
    # Newer compilers refuse it (`gate.fuses_gathers`).
    options.pop("xla_tpu_enable_async_collective_fusion_fuse_all_gather")
  places = topology.coordinates(
    list(
      make_mesh(data=8, model=1, devices=topology.devices(name)).devices.flat
    )
  )
  seconds = {}
  for backend in ("native", "ring"):
    compiled = compiled_stack(
      name, rows, width=width, length=8, backend=(backend, "ring"),
      options=options,
    )  # fmt: skip
    run = replay(compiled.as_text(), devices=places, chip=chip)
    seconds[backend] = run.step_time_s
  print({b: f"{1e3 * s:.1f} ms" for b, s in seconds.items()})
  chosen = prefetch_gate.explain(
    nbytes=2 * width * 4 * width * 2,
    rings=(2, 2, 2),
    chip=chip,
    libtpu="0.0.50.1",
  )
  assert seconds[chosen.gathers] == min(seconds.values())
