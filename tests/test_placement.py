import dataclasses
import functools
import itertools
import math
import time
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from collective_mm.mesh import make_mesh
from collective_mm.placement import (
  hops,
  longest_hop,
  ring_order,
  wraps,
)

MEGACORE = {
  "chip_config_name": "megacore",
  "chips_per_host_bounds": (2, 2, 1),
  "num_slices": 1,
}


@dataclasses.dataclass(frozen=True)
class FakeDevice:
  """What `ring_order` reads of a device."""

  coords: tuple[int, ...] | None = None
  core_on_chip: int = 0
  slice_index: int = 0
  process_index: int = 0
  device_kind: str = "TPU v5 lite"


def fake_slice(shape, cores=1, **fields) -> list[FakeDevice]:
  return [
    FakeDevice(coords=chip, core_on_chip=core, **fields)
    for chip in itertools.product(*map(range, shape))
    for core in range(cores)
  ]


def ring_hops(ring, shape) -> list[int]:
  """Hops of each shift, counted one pair at a time."""
  wrapped = wraps(ring[0].device_kind, shape)
  total = []
  for a, b in zip(ring, [*ring[1:], ring[0]], strict=True):
    apart = [abs(i - j) for i, j in zip(a.coords, b.coords, strict=True)]
    total.append(
      sum(
        min(d, side - d) if wrap else d
        for d, side, wrap in zip(apart, shape, wrapped, strict=True)
      )
    )
  return total


def check_lattice(rings):
  """The data axis sees the same strides from every place of the ring."""
  coords = np.array([[d.coords for d in ring] for ring in rings])
  moves = coords - coords[:1]
  np.testing.assert_array_equal(
    moves, np.broadcast_to(moves[:, :1], moves.shape)
  )
  sides = [np.unique(along) for along in moves[:, 0].T]
  for side in sides:
    assert len(set(np.diff(side))) <= 1
  assert len({tuple(m) for m in moves[:, 0]}) == math.prod(map(len, sides))


@functools.cache
def topology(name, **options):
  pytest.importorskip("libtpu")
  from jax.experimental import topologies

  return topologies.get_topology_desc(name, platform="tpu", **options).devices


SLICES = [  # name, chips along x, y, z, devices a chip, options
  ("v5e:2x4", (2, 4, 1), 1, {}),
  ("v5e:8x8", (8, 8, 1), 1, {}),
  ("v5e:16x16", (16, 16, 1), 1, {}),
  ("v6e:2x4", (2, 4, 1), 1, {}),
  ("v6e:16x16", (16, 16, 1), 1, {}),
  ("v5p:2x2x2", (2, 2, 2), 1, {}),
  ("v5p:4x4x4", (4, 4, 4), 1, {}),
  ("v5p:2x2x3", (2, 2, 3), 1, {}),
  ("v5p:12x12x12", (12, 12, 12), 1, {}),
  ("v4:2x2x2", (2, 2, 2), 1, MEGACORE),
  ("v4:4x4x4", (4, 4, 4), 1, MEGACORE),
  ("v4:8x8x16", (8, 8, 16), 1, MEGACORE),
  ("v4:2x2x2", (2, 2, 2), 2, {}),
  ("v3:2x2", (2, 2, 1), 2, {}),
  ("v3:4x4", (4, 4, 1), 2, {}),
  ("tpu7x:2x2x2", (2, 2, 2), 2, {}),
]


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  ("name", "shape", "cores", "options", "model"),
  [
    pytest.param(*case, model, id=f"{case[0]}-{case[2]}cores-{model}")
    for case in SLICES
    for model in (1, 2, 3, 4, 6, 8, 9, 16)
    if math.prod(case[1]) * case[2] % model == 0
  ],
)
def test_a_ring_on_a_tpu_slice_takes_one_hop_a_step(
  name, shape, cores, options, model
):
  devices = topology(name, **options)
  assert len(devices) == math.prod(shape) * cores
  mesh = make_mesh(data=len(devices) // model, model=model, devices=devices)
  steps = [ring_hops(ring, shape) for ring in mesh.devices]
  longest = max(map(max, steps))
  chips = max(1, model // cores)
  assert max(map(sum, steps)) == (chips + chips % 2 if chips > 1 else 0)
  if model <= cores:
    best = 0
  elif model % 2:
    best = 2  # no slice here wraps in an odd dim, so there is no cycle
  else:
    best = 1
  assert longest == best
  assert longest_hop(mesh, "model") == best
  assert sorted(d.id for d in mesh.devices.flat) == sorted(
    d.id for d in devices
  )
  check_lattice(mesh.devices)


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  ("name", "model", "block", "shared"),
  [
    ("v5e:8x8", 2, (2, 1, 1), 1),
    ("v5e:16x16", 4, (2, 2, 1), 1),
    ("v5e:2x4", 8, (2, 4, 1), 2),
    ("v6e:16x16", 8, (4, 2, 1), 2),
    # The whole of a dim that wraps leaves the data axis the others whole.
    ("v6e:16x16", 16, (16, 1, 1), 8),
    ("v5p:4x4x4", 4, (4, 1, 1), 2),
    ("v5p:4x4x4", 8, (4, 2, 1), 2),
    ("v5p:4x4x4", 16, (4, 4, 1), 4),
    ("v5p:12x12x12", 12, (12, 1, 1), 6),
    ("v4:8x8x16", 4, (2, 2, 1), 1),
    ("tpu7x:2x2x2", 8, (2, 2, 1), 1),
  ],
)
def test_blocks_share_few_dims_and_hosts(name, model, block, shared):
  devices = topology(name, **(MEGACORE if name.startswith("v4") else {}))
  for ring in ring_order(devices, model):
    coords = np.array([d.coords for d in ring])
    assert tuple(np.ptp(coords, axis=0) + 1) == block
    hosts = {d.process_index for d in ring}  # of 2x2x1 chips
    assert len(hosts) == shared


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  ("name", "model", "block", "longest"),
  [
    ("v5e:8x8", 8, (8, 1, 1), 2),  # an open line; it would be 4x2
    ("v6e:2x4", 2, (2, 1, 1), 1),
    ("v5p:4x4x4", 16, (4, 4, 1), 1),
    ("v4:4x4x4", 1, (1, 1, 1), 0),
    ("tpu7x:2x2x2", 4, (2, 1, 1), 1),
  ],
)
def test_whole_dims_leave_the_data_axis_links_of_its_own(
  name, model, block, longest
):
  devices = topology(name, **(MEGACORE if name.startswith("v4") else {}))
  data = len(devices) // model
  mesh = make_mesh(data=data, model=model, devices=devices, whole_dims=True)
  coords = np.array([[d.coords for d in ring] for ring in mesh.devices])
  assert (np.ptp(coords, axis=1) + 1 == block).all()
  # Along a dim of the model axis the data axis does not move.
  moves = np.ptp(coords, axis=0).max(axis=0)
  assert not np.any(moves[np.array(block) > 1])
  assert longest_hop(mesh, "model") == longest
  check_lattice(mesh.devices)


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("name", ["v5e:8x8", "v5p:4x4x4", "tpu7x:2x2x2"])
def test_one_model_device_keeps_the_order_of_device_ids(name):
  devices = topology(name)
  mesh = make_mesh(data=len(devices), model=1, devices=devices)
  assert [d.id for d in mesh.devices.flat] == list(range(len(devices)))


@pytest.mark.tpu_compiler
def test_the_data_axis_goes_across_slices():
  devices = topology("v5e:2x4", num_slices=2)
  mesh = make_mesh(data=4, model=4, devices=devices)
  assert [{d.slice_index for d in ring} for ring in mesh.devices] == [
    {0},
    {0},
    {1},
    {1},
  ]
  assert longest_hop(mesh, "model") == 1
  with pytest.raises(ValueError, match=r"'data' must stay in one slice .*0, 1"):
    longest_hop(mesh, "data")
  with pytest.raises(ValueError, match=r"slice; slice 0 has 8, got model=16$"):
    make_mesh(data=1, model=16, devices=devices)


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("model", [1, 4, 7, 16, 8960])
def test_the_largest_slice_is_placed_in_seconds(model):
  devices = topology("v5p:16x20x28")
  start = time.perf_counter()
  rings = ring_order(devices, model)
  assert time.perf_counter() - start < 5
  longest = max(max(ring_hops(ring, (16, 20, 28))) for ring in rings)
  assert longest == {1: 0, 7: 2}.get(model, 1)


@pytest.mark.tpu_compiler
def test_longest_hop_of_tuples_and_of_other_orders():
  devices = sorted(topology("v5e:2x4"), key=lambda d: d.id)
  mesh = make_mesh(data=2, model=4, devices=devices)
  assert longest_hop(mesh, "data") == 2  # 2x2 squares side by side
  ring = np.array(ring_order(devices, 8)).reshape(2, 4)
  one_ring = jax.sharding.Mesh(ring, ("data", "model"))
  assert longest_hop(one_ring, ("data", "model")) == 1
  assert longest_hop(one_ring, "model") > 1
  by_id = jax.sharding.Mesh(np.reshape(devices, (2, 4)), ("data", "model"))
  assert longest_hop(by_id, "model") == 2
  turned = jax.sharding.Mesh(np.reshape(devices, (4, 2)), ("model", "data"))
  assert longest_hop(turned, "model") == 3  # a line of 4 and its way back


def test_longest_hop_without_coordinates():
  mesh = make_mesh(data=8, model=1)
  assert longest_hop(mesh, "data") == 1
  assert longest_hop(mesh, "model") == 0
  with pytest.raises(ValueError, match=r"axes of mesh, .*got 'modle'"):
    longest_hop(mesh, "modle")


@pytest.mark.parametrize(
  ("kind", "shape", "expected"),
  [
    ("TPU v4", (4, 4, 4), (True, True, True)),
    ("TPU v4", (2, 2, 4), (False, False, False)),
    ("TPU v5", (4, 8, 12), (True, True, True)),
    ("TPU7x", (2, 4, 4), (False, False, False)),
    ("TPU v5 lite", (16, 16, 1), (True, True, False)),
    ("TPU v5 lite", (8, 16, 1), (False, True, False)),
    ("TPU v6 lite", (8, 8, 1), (False, False, False)),
    ("TPU v3", (16, 32, 1), (False, True, False)),
    ("a chip of next year", (4, 4, 4), (False, False, False)),
  ],
)
def test_wraps(kind, shape, expected):
  assert wraps(kind, shape) == expected


def test_hops_go_the_shorter_way_round():
  a = np.array([[0, 0], [1, 5], [3, 2]])
  b = np.array([[3, 5], [1, 0], [3, 2]])
  wrapped = hops(a, b, (4, 6), (True, True))
  np.testing.assert_array_equal(wrapped, [2, 1, 0])
  open_ends = hops(a, b, (4, 6), (False, False))
  np.testing.assert_array_equal(open_ends, [8, 5, 0])


def has_one_hop_cycle(devices, shape) -> bool:
  """Whether all devices lie on a cycle of single hops, by trying them all."""
  wrapped = wraps(devices[0].device_kind, shape)
  near = [
    [
      j
      for j, b in enumerate(devices)
      if i != j and hops(a.coords, b.coords, shape, wrapped) <= 1
    ]
    for i, a in enumerate(devices)
  ]

  def extend(path, seen):
    if len(path) == len(devices):
      return 0 in near[path[-1]]
    return any(
      extend([*path, j], seen | {j}) for j in near[path[-1]] if j not in seen
    )

  return extend([0], {0})


@pytest.mark.parametrize(
  ("shape", "cores"),
  [
    *(((1, n), 1) for n in range(3, 8)),
    *(((n, m), 1) for n in range(2, 5) for m in range(2, 5)),
    *((shape, 1) for shape in [(2, 2, 2), (2, 2, 3), (3, 3, 1), (1, 3, 5)]),
    *((shape, 2) for shape in [(1, 3), (3, 3), (1, 4), (2, 3), (2, 2, 2)]),
  ],
)
def test_a_cycle_of_single_hops_is_found_where_there_is_one(shape, cores):
  devices = fake_slice(shape, cores)
  (ring,) = ring_order(devices, len(devices))
  assert sorted(map(repr, ring)) == sorted(map(repr, devices))
  longest = 1 if has_one_hop_cycle(devices, shape) else 2
  assert max(ring_hops(ring, shape)) == longest


def test_a_line_is_closed_by_its_wrap_or_folded():
  (ring,) = ring_order(fake_slice((1, 5)), 5)
  assert [d.coords[1] for d in ring] == [0, 2, 4, 3, 1]
  (ring,) = ring_order(fake_slice((1, 16)), 16)  # a v5e dim of 16 wraps
  assert [d.coords[1] for d in ring] == list(range(16))


@st.composite
def slices_and_models(draw):
  shape = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=3)))
  cores = draw(st.sampled_from([1, 2]))
  kind = draw(st.sampled_from(["TPU v4", "TPU v5 lite"]))
  count = math.prod(shape) * cores
  model = draw(
    st.sampled_from([n for n in range(1, count + 1) if count % n == 0])
  )
  seed = draw(st.randoms(use_true_random=False))
  devices = [
    d
    for i in range(draw(st.integers(1, 2)))
    for d in fake_slice(shape, cores, device_kind=kind, slice_index=i)
  ]
  seed.shuffle(devices)
  return shape, devices, model


@hypothesis.settings(deadline=None)
@hypothesis.given(slices_and_models())
def test_any_box_is_tiled(case):
  shape, devices, model = case
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    rings = ring_order(devices, model)
  assert {len(ring) for ring in rings} == {model}
  assert len({d for ring in rings for d in ring}) == len(devices)
  slice_of_ring = []
  for ring in rings:
    assert max(ring_hops(ring, shape)) <= 2
    assert len({d.slice_index for d in ring}) == 1
    slice_of_ring.append(ring[0].slice_index)
  assert slice_of_ring == sorted(slice_of_ring)
  for index in set(slice_of_ring):
    check_lattice([r for r in rings if r[0].slice_index == index])
  assert rings == ring_order(devices[::-1], model)


@pytest.mark.parametrize("model", [2, 4])
def test_a_ring_never_leaves_its_slice(model):
  small = fake_slice((1, 3), slice_index=3)
  large = fake_slice((1, 5), slice_index=1)
  with pytest.raises(ValueError, match=f"slice 1 has 5, got model={model}$"):
    ring_order(small + large, model)


def test_a_slice_with_chips_missing_is_placed_along_a_line():
  devices = [d for d in fake_slice((3, 3)) if d.coords != (0, 0)]
  devices += [d for d in fake_slice((3, 3), slice_index=1) if sum(d.coords) < 4]
  with pytest.warns(UserWarning) as caught:
    rings = ring_order(devices, 4)
  assert len(caught) == 1
  assert "longest shift takes 2 hops" in str(caught[0].message)
  assert len({d for ring in rings for d in ring}) == 16
  assert max(max(ring_hops(ring, (3, 3))) for ring in rings) == 2
  # Pairs of neighbours are still there, and then there is nothing to say.
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    pairs = ring_order(devices, 2)
  assert {max(ring_hops(pair, (3, 3))) for pair in pairs} == {1}


def test_devices_without_coordinates_are_grouped_by_process():
  devices = [FakeDevice(core_on_chip=i, process_index=i % 2) for i in range(8)]
  rings = ring_order(devices, 4)
  assert [[d.core_on_chip for d in ring] for ring in rings] == [
    [0, 2, 4, 6],
    [1, 3, 5, 7],
  ]
