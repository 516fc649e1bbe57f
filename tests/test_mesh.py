import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collective_mm.mesh import (
  axis_size,
  empty_like_varying,
  make_mesh,
  vary_alike,
  varying_axes,
)
from profiling import topology


def shard_map(f, mesh, in_specs, out_specs, **options):
  return jax.shard_map(
    f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **options
  )


def test_make_mesh_keeps_the_order_of_cpu_devices():
  devices = jax.devices()
  for given in (devices, devices[::-1]):
    mesh = make_mesh(data=2, model=4, devices=given)
    assert mesh.devices.tolist() == [given[:4], given[4:]]
  assert make_mesh(data=2, model=4).devices.tolist() == [
    devices[:4],
    devices[4:],
  ]


@pytest.mark.tpu_compiler
def test_make_mesh_of_whole_dims():
  assert make_mesh(data=2, model=4, whole_dims=True) == make_mesh(
    data=2, model=4
  )
  devices = topology.devices("v5e:8x8")
  with pytest.raises(
    ValueError,
    match=r"model must be the chips of whole dims of every slice, times their "
    r"cores, for whole_dims; slice 0 has 8x8x1 chips, got model=4$",
  ):
    make_mesh(data=16, model=4, devices=devices, whole_dims=True)


def test_make_mesh_axes():
  mesh = make_mesh(data=4, model=2)
  assert dict(mesh.shape) == {"data": 4, "model": 2}
  assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 2


@pytest.mark.parametrize(("data", "model"), [(2, 3), (0, 8), (-2, -4), (8, 8)])
def test_make_mesh_needs_every_device(data, model):
  with pytest.raises(
    ValueError,
    match=rf"the number of devices, 8, got data={data}, model={model} \(",
  ):
    make_mesh(data=data, model=model)


def test_axis_size_inside_shard_map():
  mesh = make_mesh(data=2, model=4)
  seen = []

  def f(x):
    for name in ("data", "model", ("data", "model")):
      seen.append(axis_size(name))
    return x

  x = jnp.zeros((2, 4))
  shard_map(f, mesh, jax.P("data", "model"), jax.P("data", "model"))(x)
  assert seen == [2, 4, 8]


def test_axis_size_outside_shard_map():
  with pytest.raises(ValueError, match=r"manual here: \(\), got 'model'"):
    axis_size("model")


def test_axis_size_names_the_axes_that_are_manual():
  mesh = make_mesh(data=2, model=4)

  def f(x):
    with pytest.raises(
      ValueError, match=r"manual here: \('model',\), got 'modle'"
    ):
      axis_size("modle")
    return x

  jax.jit(
    shard_map(f, mesh, jax.P("model"), jax.P("model"), axis_names={"model"})
  )(jnp.zeros(8))


@pytest.mark.parametrize("check_vma", [True, False])
def test_varying_axes(check_vma):
  mesh = make_mesh(data=2, model=4)
  seen = []

  def f(x, w):
    seen.extend([varying_axes(x), varying_axes(w)])
    buffer = empty_like_varying((3, 5), jnp.bfloat16, x)
    assert buffer.shape == (3, 5) and buffer.dtype == jnp.bfloat16
    seen.append(varying_axes(buffer))
    seen.append(varying_axes(empty_like_varying((2,), jnp.float32, w)))
    return x

  shard_map(
    f,
    mesh,
    (jax.P("data", "model"), jax.P()),
    jax.P("data", "model"),
    check_vma=check_vma,
  )(jnp.zeros((2, 4)), jnp.zeros(3))
  both = frozenset({"data", "model"} if check_vma else ())
  assert seen == [both, frozenset(), both, frozenset()]


@jax.custom_vjp
def product(x, w):
  return x * w


# As in the ops of the library, the cotangents vary as `dy` and the other
# argument do: jax refuses them for an argument that varies less.
product.defvjp(
  lambda x, w: (x * w, (x, w)), lambda saved, dy: (dy * saved[1], dy * saved[0])
)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("axis_name", ["model", ("data", "model")])
@pytest.mark.parametrize(
  ("x_spec", "w_spec"),
  [
    (("data", "model"), (None, None)),
    (("data", "model"), (None, "model")),
    (("data", None), (None, "model")),
    ((None, None), ("data", None)),
    (("data", "model"), ("data", "model")),
  ],
)
def test_vary_alike_adds_up_the_gradients_of_a_shared_argument(
  x_spec, w_spec, axis_name, check_vma
):
  mesh = make_mesh(data=2, model=4)
  # x[data, model, 3]: a device holds [1, 1, 3], its own or a shared one, and
  # broadcasting says which devices share.
  sizes = {"data": 2, "model": 4, None: 1}
  x, w = (
    jax.random.normal(jax.random.key(i), (*(sizes[a] for a in spec), 3))
    for i, spec in enumerate((x_spec, w_spec))
  )

  def f(x, w):
    x, w = vary_alike(axis_name, x, w)
    if check_vma:
      assert varying_axes(x) == varying_axes(w) >= {"model"}
    return product(x, w)

  def loss(x, w):
    specs = jax.P(*x_spec), jax.P(*w_spec)
    out_spec = jax.P("data", "model")
    y = shard_map(f, mesh, specs, out_spec, check_vma=check_vma)(x, w)
    return jnp.sin(y).sum()

  def expected_loss(x, w):
    return jnp.sin(jnp.broadcast_to(x * w, (2, 4, 3))).sum()

  got = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, w)
  expected = jax.value_and_grad(expected_loss, argnums=(0, 1))(x, w)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    got,
    expected,
  )


def test_vary_alike_adds_nothing_for_arguments_that_vary_already():
  mesh = make_mesh(data=2, model=4)

  def f(x, w):
    return vary_alike("model", x, w)

  spec = jax.P("data", "model")
  x = jnp.zeros((2, 4))
  jaxpr = jax.make_jaxpr(shard_map(f, mesh, (spec, spec), (spec, spec)))(x, x)
  (body,) = jaxpr.jaxpr.eqns
  assert not body.params["jaxpr"].eqns
