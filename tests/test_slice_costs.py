import itertools

import numpy as np
import pytest
from hlo_text import ARRAY, module

from collective_mm import hlo, hlo_flow
from profiling import peaks
from profiling.slice_costs import (
  SliceCosts,
  is_guessed,
  kernel_seconds,
  unknown_lines,
)
from profiling.torus import Torus

V4 = peaks.CHIPS["TPU v4"]
MIB = 1 << 20
WIRE_S = MIB / V4.permute_bandwidth
CUBE = list(itertools.product(range(4), repeat=3))


def costs_on(shape, places, *, wraps=True):
  torus = Torus(shape, (wraps,) * len(shape))
  return SliceCosts(V4, torus, np.array(places))


def transfer(line, partitions):
  header = f"is_scheduled=true, num_partitions={partitions}"
  parsed = hlo.parse(module(f"ROOT %y = {line}", header=header))
  (step,) = hlo_flow.steps(parsed, parsed.entry)
  return step.transfer


def permute(pairs, partitions=4):
  text = ",".join(f"{{{a},{b}}}" for a, b in pairs)
  return transfer(
    f"{ARRAY} collective-permute(%x), source_target_pairs={{{text}}}",
    partitions,
  )


def over(kind, groups, partitions):
  text = ",".join(f"{{{','.join(map(str, group))}}}" for group in groups)
  return transfer(f"{ARRAY} {kind}(%x), replica_groups={{{text}}}", partitions)


def ring(order):
  return list(zip(order, [*order[1:], order[0]], strict=True))


def test_a_permute_takes_its_latency_and_its_bytes():
  costs = costs_on((4,), [[0], [1], [2], [3]])
  seconds = V4.permute_latency_s + WIRE_S
  assert costs.alone(permute(ring(range(4)))) == pytest.approx(seconds)


def test_hops_over_one_link_add_up():
  # No way round: the last hop goes back over all links, the other way.
  costs = costs_on((4,), [[0], [1], [2], [3]], wraps=False)
  seconds = V4.permute_latency_s + WIRE_S
  assert costs.alone(permute(ring(range(4)))) == pytest.approx(seconds)
  # Every second chip: each link up carries two routes.
  seconds = V4.permute_latency_s + 2 * WIRE_S
  two_on = [(0, 2), (1, 3)]
  assert costs.alone(permute(two_on)) == pytest.approx(seconds)


def test_permutes_share_links_only_where_they_meet():
  costs = costs_on((4,), [[0], [1], [2], [3]], wraps=False)
  up, down = permute([(0, 1), (1, 2), (2, 3)]), permute([(1, 0), (2, 1)])
  far = permute([(0, 1)])
  assert costs.rates((up,)) == (1.0,)
  assert costs.rates((up, down)) == (1.0, 1.0)
  assert costs.rates((up, far)) == (0.5, 0.5)
  assert costs.rates((up, far, up)) == pytest.approx((1 / 3,) * 3)
  # The ring's closing hop comes down over all three links.
  closed = permute(ring(range(4)))
  assert costs.rates((closed, down)) == (0.5, 0.5)


def test_a_lightly_loaded_link_is_shared_by_load():
  # Two routes on the link 1 -> 2 make it the busiest; 0 -> 1 is half used.
  costs = costs_on((4,), [[0], [1], [2], [3]], wraps=False)
  uneven, one = permute([(0, 2), (1, 2)]), permute([(0, 1)])
  assert costs.rates((uneven, one)) == pytest.approx((2 / 3, 2 / 3))


@pytest.mark.parametrize(
  "kind, times, moved", [("all-gather", 1, 3), ("all-reduce", 2, 3 / 4)]
)
@pytest.mark.parametrize("wraps, links", [(True, 2), (False, 1)])
def test_a_gather_round_a_ring(kind, times, moved, wraps, links):
  # `x` is a shard of what is gathered, and all of what is reduced.
  costs = costs_on((4,), [[0], [1], [2], [3]], wraps=wraps)
  wire_s = WIRE_S * moved / links
  seconds = costs.alone(over(kind, [range(4)], 4))
  assert seconds == pytest.approx(times * (V4.permute_latency_s + wire_s))


def test_a_gather_over_a_cube_uses_every_dim():
  costs = costs_on((4, 4, 4), CUBE)
  seconds = costs.alone(over("reduce-scatter", [range(64)], 64))
  wire_s = WIRE_S * 63 / 64 / 6
  assert seconds == pytest.approx(3 * V4.permute_latency_s + wire_s)


def test_a_square_in_a_cube_has_two_links():
  costs = costs_on((4, 4, 4), CUBE)
  square = [i for i, (x, y, z) in enumerate(CUBE) if x < 2 and y < 2 and not z]
  rest = [i for i in range(64) if i not in square]
  groups = [square, *np.reshape(rest, (15, 4)).tolist()]
  seconds = costs.alone(over("reduce-scatter", groups, 64))
  wire_s = WIRE_S * 3 / 4 / 2
  assert seconds == pytest.approx(2 * V4.permute_latency_s + wire_s)


def test_groups_that_interleave_share_a_dim():
  costs = costs_on((8,), [[i] for i in range(8)])
  apart = over("reduce-scatter", [range(0, 8, 2), range(1, 8, 2)], 8)
  wire_s = WIRE_S * 3 / 4 / (2 / 2)  # two links, two groups
  seconds = V4.permute_latency_s + wire_s
  assert costs.alone(apart) == pytest.approx(seconds)


def test_a_group_that_is_no_box_goes_by_its_routes():
  # Two opposite corners of a 2x2: two hops, and the other pair's on the same
  # square. Of a shard to each other, half goes each way of a "ring" of two,
  # which are the same links.
  places = [[0, 0], [0, 1], [1, 0], [1, 1]]
  costs = costs_on((2, 2), places, wraps=False)
  corners = over("reduce-scatter", [[0, 3], [1, 2]], 4)
  seconds = V4.permute_latency_s + WIRE_S / 2 / 2 * 2
  assert costs.alone(corners) == pytest.approx(seconds)


def test_an_exchange_goes_by_its_routes():
  # On a line of four, four pairs cross the middle each way.
  costs = costs_on((4,), [[0], [1], [2], [3]], wraps=False)
  seconds = V4.permute_latency_s + 4 * WIRE_S / 4
  assert costs.alone(over("all-to-all", [range(4)], 4)) == pytest.approx(
    seconds
  )


def line_of(text):
  return hlo.parse(module(f"ROOT %y = {text}")).entry.root


def kernel(cost):
  call = f'{ARRAY} custom-call(%x), custom_call_target="tpu_custom_call"'
  return f'{call}, backend_config={{"custom_call_config":{{{cost}}}}}'


FLOPS = '"cost_estimate":{"flops":"275000000000","bytes_accessed":"7"}'
BYTES = '"cost_estimate":{"flops":"7","bytes_accessed":"1230000000"}'
NONE = '"cost_estimate":{"flops":"0","bytes_accessed":"0"}'


@pytest.mark.parametrize(
  "cost, seconds", [(FLOPS, 4e-3), (BYTES, 1e-3), (NONE, None), ("", None)]
)
def test_a_kernel_costs_what_its_author_says_at_a_quarter_of_peak(
  cost, seconds
):
  found = kernel_seconds(line_of(kernel(cost)), V4)
  assert found == (seconds and pytest.approx(seconds))


def test_lines_without_a_cost_are_told():
  text = "\n".join(
    [
      f'%k = {kernel("")}, metadata={{op_name="attend"}}',
      f"%l = {kernel(FLOPS)}",
      f'%b = {ARRAY} custom-call(), custom_call_target="AllocateBuffer"',
      f"%s = ({ARRAY}, u32[], token[]) send(%x, %t), channel_id=1",
      f"ROOT %y = {ARRAY} add(%k, %l)",
    ]
  )
  unknown = unknown_lines(hlo.parse(module(text)), V4)
  assert unknown == ["k (tpu_custom_call attend)", "s (send )"]


def test_compute_takes_its_cycles():
  costs = costs_on((4,), [[0], [1], [2], [3]])
  config = 'backend_config={"estimated_cycles":"21"}'
  line = line_of(f"{ARRAY} add(%x, %x), {config}")
  assert costs.compute(line) == pytest.approx(21 / 1.05e9)
  assert not is_guessed(line)


@pytest.mark.parametrize(
  "text, guessed",
  [
    (f"{ARRAY} concatenate(%x, %x)", True),
    ("f32[1024,256]{1,0:T(8,128)S(1)} copy(%x)", False),  # not in HBM
    ("s32[] add(%x, %x)", False),
    (f"{ARRAY} all-gather(%x), replica_groups={{}}", False),
  ],
)
def test_what_has_no_cycles_is_guessed_by_its_bytes(text, guessed):
  costs = costs_on((4,), [[0], [1], [2], [3]])
  line = line_of(text)
  assert is_guessed(line) == guessed
  seconds = 2 * MIB / V4.hbm_bandwidth if guessed else 0.0
  assert costs.compute(line) == pytest.approx(seconds)
  assert costs.move(MIB) == pytest.approx(MIB / V4.hbm_bandwidth)
