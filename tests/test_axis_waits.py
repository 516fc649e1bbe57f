import pytest
from hlo_text import ARRAY, LOOP_ENTRY, loop, module, product
from replays import RING, SQUARE

from profiling import peaks, replay

V4 = peaks.CHIPS["TPU v4"]
SEND_S = V4.permute_latency_s + (1 << 20) / V4.permute_bandwidth


def run(text=RING, **mesh):
  return replay.replay(text, devices=SQUARE, chip="v4", mesh=mesh)


def test_a_ring_over_model():
  result = run(data=1, model=4)
  (body,) = result.stretches
  wait_s = SEND_S - 10e-6
  assert (body.computation, body.runs) == ("body", 48)
  assert body.compute_s == pytest.approx(48 * 110e-6)
  # The two directions keep different links busy.
  assert body.sends_s == {"model": pytest.approx(48 * SEND_S)}
  assert body.waits_s == {"model": pytest.approx(48 * wait_s)}
  assert body.blocking == {}
  assert result.exposed_by_axes_s == body.waits_s
  text = str(result)
  assert "waits over model" in text
  sends = f"sends over model {1e3 * SEND_S:.3f} ms"
  assert f"body, 48 times: compute 0.110 ms, {sends}" in text


def test_pairs_that_cross_both_axes():
  assert list(run(data=2, model=2).exposed_by_axes_s) == ["data,model"]


def test_without_a_mesh_no_axes_are_told():
  result = replay.replay(RING, devices=SQUARE, chip="v4")
  assert (result.stretches, result.exposed_by_axes_s) == ((), {})
  assert "waits over" not in str(result)


def test_what_blocks_in_a_loop():
  body = [
    f"%g = {ARRAY} all-gather(%a), replica_groups={{{{0,2}},{{1,3}}}}, "
    "dimensions={0}",
    f"%h = {ARRAY} all-gather(%g), replica_groups={{{{0,1}},{{2,3}}}}, "
    "dimensions={0}",
    product("y", "h", "h", cycles=1_050),
  ]
  text = module(LOOP_ENTRY, loop("\n".join(body), trips=6))
  result = run(text, data=2, model=2)
  (body,) = result.stretches
  assert body.blocking == {"data": 1, "model": 1}
  assert list(body.waits_s) == ["data", "model"]
  assert sum(body.waits_s.values()) == pytest.approx(
    result.exposed_communication_s
  )
  assert sum(result.exposed_by_axes_s.values()) + body.compute_s == (
    pytest.approx(result.step_time_s)
  )


def test_a_mesh_of_other_devices_is_refused():
  with pytest.raises(ValueError, match="must have the module's 4 devices, got"):
    run(data=2, model=4)
