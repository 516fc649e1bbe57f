import jax
import jax.numpy as jnp
import pytest

from collective_mm import make_mesh
from profiling import topology
from profiling.torus import Torus

SLICES = [
  # name, device kind, devices, TensorCores a device
  ("v2:4x4", "TPU v2", 32, 1),
  ("v3:4x4", "TPU v3", 32, 1),
  ("v4:2x2x2", "TPU v4", 8, 2),
  ("v4:8x8x16", "TPU v4", 1024, 2),
  ("v5e:2x4", "TPU v5 lite", 8, 1),
  ("v5p:2x2x2", "TPU v5", 8, 2),
  ("v6e:16x16", "TPU v6 lite", 256, 1),
  ("tpu7x:2x2x2", "TPU7x", 16, 1),
]


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("name, kind, count, cores", SLICES)
def test_the_devices_of_a_slice(name, kind, count, cores):
  pytest.importorskip("libtpu")
  devices = topology.devices(name)
  assert len(devices) == count
  assert {d.device_kind for d in devices} == {kind}
  assert {d.num_cores for d in devices} == {cores}
  # Every chip of the torus is there.
  torus = topology.torus(name)
  places = topology.coordinates(devices)
  dims = len(torus.shape)
  assert len({tuple(place) for place in places}) == count
  assert (
    tuple(max(p[i] for p in places) + 1 for i in range(dims)) == torus.shape
  )


@pytest.mark.tpu_compiler
def test_the_compiler_knows_that_a_pod_of_v5e_wraps():
  """It makes a shift block along a dim that does not close."""
  pytest.importorskip("libtpu")
  devices = topology.devices("v5e:16x16")
  mesh = make_mesh(data=16, model=16, devices=devices)
  x = jax.ShapeDtypeStruct((2048, 128), jnp.float32)
  for axis in mesh.axis_names:
    after = [(i, (i + 1) % 16) for i in range(16)]
    shift = jax.shard_map(
      lambda x, axis=axis, after=after: jax.lax.ppermute(x, axis, after),
      mesh=mesh,
      in_specs=jax.P(mesh.axis_names),
      out_specs=jax.P(mesh.axis_names),
    )
    text = jax.jit(shift).lower(x).compile().as_text()
    assert " collective-permute-start(" in text


def test_the_torus_of_a_slice():
  assert topology.torus("v4:8x8x4") == Torus((8, 8, 4), (True,) * 3)
  assert topology.torus("v5e:4x16") == Torus((4, 16), (False, True))


@pytest.mark.parametrize(
  "name, message",
  [
    ("v9:2x2", r"a chip \(v2, v3, v4, v5e, v5p, v6e, tpu7x\).* got 'v9:2x2'"),
    ("v5e", "a colon and a shape such as 2x4, got 'v5e'"),
    ("v5e-8", "got 'v5e-8'"),
    ("v5e:2x2x2", "2 dims from 1 for a v5e, got 'v5e:2x2x2'"),
    ("v4:2x4", "3 dims from 1 for a v4, got 'v4:2x4'"),
    ("v5e:0x4", "got 'v5e:0x4'"),
  ],
)
def test_a_name_that_means_nothing(name, message):
  for function in (topology.devices, topology.torus):
    with pytest.raises(ValueError, match=message):
      function(name)


@pytest.mark.tpu_compiler
def test_a_slice_that_the_compiler_does_not_know():
  pytest.importorskip("libtpu")
  with pytest.raises(ValueError, match=r"TPU compiler knows.* got 'v5e:3x5'"):
    topology.devices("v5e:3x5")
