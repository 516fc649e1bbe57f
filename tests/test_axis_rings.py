import pytest

from collective_mm.axis_rings import axis_rings
from collective_mm.mesh import make_mesh
from profiling import topology


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  ("name", "model", "rings"),
  [
    ("v4:4x4x4", 1, ((4, 1), (4, 1), (4, 1))),
    ("v4:4x4x4", 2, ((4, 1), (4, 1), (2, 2))),
    ("v4:4x4x4", 4, ((4, 1), (4, 1))),
    ("v5e:8x8", 4, ((2, 4), (2, 2), (2, 4), (2, 2))),
    ("v5e:16x16", 1, ((2, 8), (2, 4), (2, 2), (2, 1)) * 2),
    ("v5e:16x16", 4, ((2, 8), (2, 4), (2, 2)) * 2),
    ("v6e:16x16", 1, ((16, 1), (16, 1))),
    ("v5e:2x4", 1, ((2, 2), (2, 1), (2, 1))),
    ("v5e:2x4", 8, ((1, 1),)),
  ],
)
def test_axis_rings_follow_the_torus(name, model, rings):
  devices = topology.devices(name)
  mesh = make_mesh(data=len(devices) // model, model=model, devices=devices)
  assert axis_rings(mesh, "data") == rings


@pytest.mark.tpu_compiler
def test_axis_rings_beside_whole_dims():
  devices = topology.devices("v5e:8x8")
  mesh = make_mesh(data=8, model=8, devices=devices, whole_dims=True)
  assert axis_rings(mesh, "data") == ((2, 4), (2, 2), (2, 1))


def test_an_axis_off_the_torus_is_one_ring():
  assert axis_rings(make_mesh(data=8, model=1), "data") == ((8, 1),)
