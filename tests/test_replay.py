import itertools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo_text import ARRAY, LOOP_ENTRY, done, loop, module, product, start
from replays import RING, SQUARE

from collective_mm import all_gather_matmul
from profiling import peaks, replay, topology

V4 = peaks.CHIPS["TPU v4"]
SEND_S = V4.permute_latency_s + (1 << 20) / V4.permute_bandwidth


def run(text=RING, devices=SQUARE, chip="v4", **kwargs):
  return replay.replay(text, devices=devices, chip=chip, **kwargs)


def test_a_ring_that_hides_in_part():
  result = run()
  # On a square the two directions do not meet. 10 of each 110 us hide them.
  wait_s = SEND_S - 10e-6
  assert result.compute_s == {"products": pytest.approx(48 * 110e-6)}
  assert result.exposed_s == {"collective-permute": pytest.approx(48 * wait_s)}
  assert result.step_time_s == pytest.approx(48 * (wait_s + 110e-6))
  assert result.exposed_fraction == pytest.approx(wait_s / (wait_s + 110e-6))
  assert result.guessed_s == 0


def test_the_place_on_the_torus_counts():
  line = [[x, 0, 0, 0] for x in range(4)]
  # Of a whole cube, which wraps: no two meet.
  closed = run(devices=line, torus_shape=(4, 4, 4))
  assert closed.step_time_s == pytest.approx(run().step_time_s)
  # A part of a longer dim: the closing hops come back over the others' links.
  part = run(devices=line, torus_shape=(8, 4, 4))
  wait_s = 2 * SEND_S - 10e-6
  assert part.step_time_s == pytest.approx(48 * (wait_s + 110e-6))


def test_the_costliest_lines():
  lines = run().costliest(2)
  assert [line.name for line in lines["body"]] == ["y", "d"]
  y, _ = lines["body"]
  assert (y.kind, y.runs) == ("products", 48)
  assert y.total_s == pytest.approx(48 * 100e-6)
  (p,) = (line for line in run().lines if line.name == "p")
  assert p.op_name == "jit(f)/ring/dot_general"


def test_the_timeline_is_the_whole_step():
  result = run()
  core = [e for e in result.events if e.row in ("compute", "wait", "repeat")]
  core.sort(key=lambda e: e.start_s)
  assert core[0].start_s == 0
  assert core[-1].end_s == pytest.approx(result.step_time_s)
  for a, b in itertools.pairwise(core):
    assert b.start_s == pytest.approx(a.end_s)
  (repeat,) = (e for e in core if e.row == "repeat")
  assert (repeat.name, repeat.trips) == ("while", 46)
  (whole,) = (e for e in result.events if e.row == "loop")
  assert (whole.trips, whole.start_s) == (48, 0)
  assert whole.end_s == pytest.approx(result.step_time_s)
  sent = [e for e in result.events if e.row == "collective-permute"]
  assert {e.name for e in sent} == {"s", "t"}
  assert {e.links for e in sent} == {("x+", "x-", "y+", "y-")}


def test_totals_as_text():
  text = str(run())
  assert "simulated step" in text
  assert "compute: products" in text
  assert "waits: collective-permute" in text


def test_what_has_no_cycles_is_told_apart():
  result = run(module(f"ROOT %y = {ARRAY} concatenate(%x, %x)"))
  assert result.guessed_s == result.step_time_s == result.compute_s["rest"] > 0


def test_the_same_text_gives_the_same_result():
  assert run() == run()


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"text": "module @jit_f {}"}, "must be the HLO of a compiled module"),
    ({"devices": SQUARE[:2]}, "devices must list the module's 4 .* got 2"),
    ({"chip": "v9"}, "chip must be one of v4, v5e, .*, got 'v9'"),
    ({"chip": "v3"}, "whose clock and links are published, got 'v3'"),
    ({"torus_shape": (2, 1, 1)}, r"take \(2, 2, 1\), got \(2, 1, 1\)"),
    ({"torus_shape": (2, 2)}, r"take \(2, 2, 1\), got \(2, 2\)"),
    (
      {
        "text": module(
          f"ROOT %k = {ARRAY} custom-call(%x), "
          'custom_call_target="tpu_custom_call"'
        )
      },
      r"needs a cost_estimate\), got 1 without: k \(tpu_custom_call",
    ),
    (
      {"text": RING.replace("constant(48)", "add(%j, %j)")},
      "loop must turn a constant number of times, got while",
    ),
  ],
)
def test_what_cannot_be_replayed(kwargs, message):
  with pytest.raises(ValueError, match=message):
    run(**kwargs)


def test_the_command(tmp_path, capsys):
  text, devices = tmp_path / "f.hlo.txt", tmp_path / "devices.json"
  text.write_text(RING)
  devices.write_text(json.dumps(SQUARE))
  args = ["--text", str(text), "--devices", str(devices), "--chip", "v4"]
  assert replay.main(args) == 0
  out = capsys.readouterr().out
  assert f"{run().step_time_s * 1e3:.3f} ms" in out
  assert "jit(f)/ring/dot_general" in out
  assert "waits over" not in out
  assert replay.main([*args, "--mesh", "1,4"]) == 0
  assert "waits over model" in capsys.readouterr().out
  assert replay.main([*args, "--mesh", "4"]) == 2
  assert "--mesh must be 2 whole numbers" in capsys.readouterr().err
  text.write_text("nothing")
  assert replay.main(args) == 2
  err = capsys.readouterr().err
  assert err.startswith("python -m profiling.replay: text must be the HLO")
  assert err.count("\n") == 1


def test_the_command_exports(tmp_path, capsys):
  text, devices = tmp_path / "f.hlo.txt", tmp_path / "devices.json"
  text.write_text(RING)
  devices.write_text(json.dumps(SQUARE))
  summary = tmp_path / "report.json"
  summary.write_text(json.dumps({"model": "a ring", "mesh": {"model": 4}}))
  args = ["--text", str(text), "--devices", str(devices), "--chip", "v4"]
  args += ["--summary", str(summary)]
  paths = {name: tmp_path / name for name in ("trace", "png", "html")}
  exports = [f"--{name}={path}" for name, path in paths.items()]
  assert replay.main([*args, *exports]) == 0
  assert json.loads(paths["trace"].read_text())["traceEvents"]
  assert paths["png"].read_bytes().startswith(b"\x89PNG")
  assert "<title>a ring on v4:2x2x1" in paths["html"].read_text()
  capsys.readouterr()
  assert replay.main([*args, f"--png={tmp_path}/no/such.png"]) == 2
  out, err = capsys.readouterr()
  assert (out, err.count("\n")) == ("", 1)
  assert "such.png" in err


def test_a_module_of_1024_chips_is_replayed_fast():
  places = [[x, y, z, 0] for x in range(8) for y in range(8) for z in range(16)]
  ring = [f"{{{i},{i ^ 1}}}" for i in range(1024)]
  pairs = f"source_target_pairs={{{','.join(ring)}}}"
  body = []
  for i in range(400):
    body += [
      start(f"s{i}", "a", pairs=pairs),
      product(f"p{i}", "a", "a", cycles=9_000 + i),
      done(f"d{i}", f"s{i}"),
    ]
  body.append(f"%y = {ARRAY} add(%p0, %d0)")
  header = "is_scheduled=true, num_partitions=1024"
  text = module(LOOP_ENTRY, loop("\n".join(body), trips=48), header=header)
  assert len(text) > 4e6
  began = time.perf_counter()
  result = run(text, devices=places)
  assert time.perf_counter() - began < 5
  assert sum(line.runs for line in result.lines if line.kind == "products") == (
    48 * 400
  )


# From here on, what the TPU compiler makes of real functions.


def compile_op(op, devices, tokens, width, features, *, backward):
  """`op` over one model axis of `devices`, with both gradients or without."""
  mesh = jax.sharding.Mesh(np.array(devices), ("model",))
  specs = (jax.P("model"), jax.P(None, "model"), jax.P(None, "model"))
  shapes = ((tokens, width), (width, features), (tokens, features))
  args = [
    jax.ShapeDtypeStruct(
      shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec)
    )
    for shape, spec in zip(shapes, specs, strict=True)
  ]

  def step(x, w, dy):
    y, pull = jax.vjp(op, x, w)
    return y, *pull(dy)

  mapped = jax.shard_map(
    step if backward else op,
    mesh=mesh,
    in_specs=specs if backward else specs[:2],
    out_specs=(specs[2], *specs[:2]) if backward else specs[2],
  )
  lowered = jax.jit(mapped).lower(*args[: len(args) if backward else 2])
  return lowered.compile().as_text(), topology.coordinates(devices)


def compile_roof(name, tokens, width, features):
  """The three products of one device's share, alone."""
  device = topology.devices(name)[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  x, w, dy = (
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    for shape in ((tokens, width), (width, features), (tokens, features))
  )
  products = jax.jit(lambda x, w, dy: (x @ w, dy @ w.T, x.T @ dy))
  return products.lower(x, w, dy).compile().as_text()


def gather_then_multiply(x, w):
  return jax.lax.all_gather(x, "model", axis=0, tiled=True) @ w


def ring(x, w):
  return all_gather_matmul(x, w, axis_name="model", gather_dim=0)


@pytest.mark.tpu_compiler
def test_a_ring_hides_most_of_a_gather():
  pytest.importorskip("libtpu")
  devices = topology.devices("v5e:2x2")
  devices = [devices[i] for i in (0, 1, 3, 2)]  # round the square
  plain, ours = (
    replay.replay(text, devices=places, chip="v5e")
    for text, places in (
      compile_op(op, devices, 8192, 1024, 16384, backward=False)
      for op in (gather_then_multiply, ring)
    )
  )
  chip = peaks.chip_of(devices[0])
  # Of the gathered x, three quarters arrive over two links.
  gather_s = 8192 * 1024 * 2 * 3 / 4 / 2 / chip.permute_bandwidth
  gather_s += 2 * chip.permute_latency_s
  assert plain.exposed_s["all-gather"] == pytest.approx(gather_s)
  flops_s = 2 * 8192 * 1024 * 4096 / chip.bf16_flops_per_device
  for result in (plain, ours):
    assert 1.0 < result.compute_s["products"] / flops_s < 1.4
  assert ours.exposed_communication_s < 0.25 * gather_s


# Milliseconds of the three plain products and of the unoverlapped op, forward
# and both gradients in bf16 over eight chips on a Hamiltonian cycle, from an
# earlier, independent replay of the same compiler's schedules.
CUBE = (0, 1, 3, 2, 6, 7, 5, 4)


@pytest.mark.long
@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  "chip, name, tokens, width, features, roof_ms, unoverlapped_ms",
  [
    ("v4", "v4:2x2x2", 65536, 6144, 43008, 50.2, 66.5),
    ("v5e", "v5e:2x4", 16384, 6144, 43008, 17.3, 19.7),
    ("v5p", "v5p:2x2x2", 32768, 8192, 57344, 27.5, 33.0),
    ("v6e", "v6e:2x4", 32768, 8192, 57344, 17.4, 23.1),
  ],
)
def test_the_roof_and_the_unoverlapped_op(
  chip, name, tokens, width, features, roof_ms, unoverlapped_ms
):
  pytest.importorskip("libtpu")
  text = compile_roof(name, tokens, width, features // 8)
  roof = replay.replay(text, devices=[[0] * 4], chip=chip)
  assert roof.step_time_s * 1e3 == pytest.approx(roof_ms, rel=0.02)
  devices = topology.devices(name)
  if chip in ("v4", "v5p"):
    devices = [devices[i] for i in CUBE]
  text, places = compile_op(
    gather_then_multiply, devices, tokens, width, features, backward=True
  )
  result = replay.replay(text, devices=places, chip=chip)
  assert result.step_time_s * 1e3 == pytest.approx(unoverlapped_ms, rel=0.02)
