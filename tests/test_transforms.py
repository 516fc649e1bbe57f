"""The ops under jax's transformations, on every kind of mesh."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxpr_walk import equations
from op_cases import quick_compilation

from collective_mm import (
  all_gather_matmul,
  make_mesh,
  matmul_all_reduce,
  matmul_reduce_scatter,
)
from collective_mm.collective import SAVED_NAME

P = jax.P
jit = functools.partial(jax.jit, compiler_options=quick_compilation())
SIZES = (1, 2, 3, 4, 5, 6, 8)
policies = jax.checkpoint_policies


def specs_of(name, axis="model"):
  """`(in_specs, out_specs)` of arrays with one row dim."""
  if name == "all_gather_matmul":
    return (P(axis), P(None, axis)), P(None, axis)
  return (P(None, axis), P(axis)), P(axis if "scatter" in name else None)


OPS = {
  "all_gather_matmul": functools.partial(all_gather_matmul, gather_dim=0),
  "matmul_reduce_scatter": functools.partial(
    matmul_reduce_scatter, scatter_dim=0
  ),
  "matmul_all_reduce": matmul_all_reduce,
}


def whole(*shape, seed=0):
  # Sums of small whole numbers are exact, however they are added.
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(-2, 3, shape), jnp.float32)


def on_ring(name, size, *, check_vma=True, **options):
  in_specs, out_specs = specs_of(name)
  return jax.shard_map(
    functools.partial(OPS[name], axis_name="model", **options),
    mesh=make_mesh(data=1, model=size, devices=jax.devices()[:size]),
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=check_vma,
  )


def with_gradients(f):
  def run(x, w):
    y, gradient = jax.vjp(f, x, w)
    return y, gradient(y)

  return run


def assert_dense(f, x, w, put=lambda x, w: (x, w)):
  """`f` and its gradients are those of `x @ w`."""
  got = jit(with_gradients(f))(*put(x, w))
  want = with_gradients(jnp.matmul)(x, w)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  return got


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("size", SIZES)
def test_jit_and_gradient_on_every_ring(name, size):
  assert_dense(
    on_ring(name, size), whole(2 * size, 2 * size), whole(2 * size, size)
  )


@pytest.mark.parametrize("name", OPS)
def test_gradient_of_a_gradient(name):
  # The loss of `tanh` makes the second derivative depend on both factors.
  x, w = whole(4, 4) / 4, whole(4, 4, seed=1) / 4

  def curvature(f):
    def loss(x):
      return jnp.tanh(f(x, w)).sum()

    return jax.grad(lambda x: (jax.grad(loss)(x) ** 2).sum())

  np.testing.assert_allclose(
    jit(curvature(on_ring(name, 4)))(x), curvature(jnp.matmul)(x), atol=1e-5
  )


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_vmap_over_a_batch(name, inside, check_vma):
  x, w = whole(3, 8, 8), whole(8, 4, seed=1)
  if inside:
    (x_spec, w_spec), out_specs = specs_of(name)
    f = jax.shard_map(
      jax.vmap(functools.partial(OPS[name], axis_name="model"), (0, None)),
      mesh=make_mesh(data=1, model=4, devices=jax.devices()[:4]),
      in_specs=(P(None, *x_spec), w_spec),
      out_specs=P(None, *out_specs),
      check_vma=check_vma,
    )
  else:
    f = jax.vmap(on_ring(name, 4, check_vma=check_vma), (0, None))
  assert_dense(f, x, w)


@pytest.mark.parametrize("name", OPS)
def test_vmap_over_weights(name):
  x, w = whole(8, 8), whole(3, 8, 4, seed=1)
  assert_dense(jax.vmap(on_ring(name, 4), (None, 0)), x, w)


def layers(x, w_in, w_out, *, dw="regather", wrap=lambda f: f):
  """Three layers of a gather and a scatter, on one device."""

  def layer(x, ws):
    h = all_gather_matmul(x, ws[0], axis_name="model", gather_dim=0, dw=dw)
    y = matmul_reduce_scatter(h, ws[1], axis_name="model", scatter_dim=0)
    return y, None

  return lax.scan(wrap(layer), x, (w_in, w_out))[0]


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("dw", ["regather", "save"])
@pytest.mark.parametrize(
  "policy",
  [
    None,
    policies.nothing_saveable,
    policies.save_only_these_names(SAVED_NAME),
    policies.dots_saveable,
  ],
  ids=["no_checkpoint", "nothing", "names", "dots"],
)
def test_scan_and_checkpoint(policy, dw, check_vma):
  x = whole(8, 8)
  ws = whole(3, 8, 4, seed=1), whole(3, 4, 8, seed=2)
  wrap = functools.partial(jax.checkpoint, policy=policy) if policy else None
  options = {"dw": dw} | ({"wrap": wrap} if wrap else {})
  f = jax.shard_map(
    functools.partial(layers, **options),
    mesh=make_mesh(data=1, model=4, devices=jax.devices()[:4]),
    in_specs=(P("model"), P(None, None, "model"), P(None, "model")),
    out_specs=P("model"),
    check_vma=check_vma,
  )

  def dense(x, w_in, w_out):
    for w in zip(w_in, w_out, strict=True):
      x = x @ w[0] @ w[1]
    return x

  def run(f, *arguments):
    y, gradient = jax.vjp(f, *arguments)
    return y, gradient(jnp.ones_like(y))

  got = jit(functools.partial(run, f))(x, *ws)
  jax.tree.map(np.testing.assert_array_equal, got, run(dense, x, *ws))


def linear(y):
  return y


@pytest.mark.parametrize(
  ("policy", "dw", "after", "rings"),
  [
    # Forward, `dx`, and `x` gathered again for `dw`.
    (None, "regather", linear, 3),
    (None, "save", linear, 2),
    (policies.nothing_saveable, "regather", linear, 3),
    (policies.nothing_saveable, "save", linear, 3),
    (policies.save_only_these_names(SAVED_NAME), "save", linear, 2),
    (policies.dots_saveable, "save", linear, 3),
    # The gradient of what follows needs `y`: one more ring makes it again.
    (None, "regather", jnp.tanh, 3),
    (policies.nothing_saveable, "regather", jnp.tanh, 4),
    (policies.nothing_saveable, "save", jnp.tanh, 3),
    (policies.save_only_these_names(SAVED_NAME), "save", jnp.tanh, 3),
    (policies.dots_saveable, "regather", jnp.tanh, 3),
  ],
)
def test_policies_save_what_they_name(policy, dw, after, rings):
  f = on_ring("all_gather_matmul", 4, dw=dw)

  def used(x, w):
    return after(f(x, w))

  if policy:
    used = jax.checkpoint(used, policy=policy)
  x, w = whole(8, 8), whole(8, 4)
  # Before compilation: the CPU's compiler drops the barriers, then finds that
  # two rings gather the same `x`.
  traced = jax.make_jaxpr(with_gradients(used))(x, w)
  sends = [e for e in equations(traced) if e.primitive.name == "ppermute"]
  assert len(sends) == 6 * rings


AXIS_TYPES = jax.sharding.AxisType


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
  "kind", [AXIS_TYPES.Auto, AXIS_TYPES.Explicit], ids=lambda kind: kind.name
)
def test_whole_mesh_is_manual(name, kind):
  mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
  in_specs, out_specs = specs_of(name)
  f = jax.shard_map(
    functools.partial(OPS[name], axis_name="model"),
    mesh=mesh,
    in_specs=in_specs,
    out_specs=out_specs,
  )
  shardings = tuple(jax.NamedSharding(mesh, spec) for spec in in_specs)
  with jax.set_mesh(mesh):
    _, gradients = assert_dense(
      f,
      whole(8, 8),
      whole(8, 4, seed=1),
      put=lambda *arrays: jax.device_put(arrays, shardings),
    )
  for gradient, sharding in zip(gradients, shardings, strict=True):
    assert gradient.sharding.is_equivalent_to(sharding, gradient.ndim)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("is_set", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_data_axis_is_left_to_the_compiler(name, is_set, check_vma):
  mesh = make_mesh(data=2, model=4)
  (x_spec, w_spec), out_spec = specs_of(name)
  op = OPS[name]
  if name == "all_gather_matmul":
    op = functools.partial(all_gather_matmul, gather_dim=1)
  elif name == "matmul_reduce_scatter":
    op = functools.partial(matmul_reduce_scatter, scatter_dim=1)
  f = jax.shard_map(
    functools.partial(op, axis_name="model"),
    mesh=mesh,
    in_specs=(P(None, *x_spec), w_spec),
    out_specs=P(None, *out_spec),
    axis_names={"model"},
    check_vma=check_vma,
  )
  shardings = (
    jax.NamedSharding(mesh, P("data", *x_spec)),
    jax.NamedSharding(mesh, w_spec),
  )
  with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
    y, _ = assert_dense(
      f,
      whole(4, 8, 8),
      whole(8, 4, seed=1),
      put=lambda *arrays: jax.device_put(arrays, shardings),
    )
  want = jax.NamedSharding(mesh, P("data", *out_spec))
  assert y.sharding.is_equivalent_to(want, y.ndim)


@pytest.mark.parametrize("names", [("data", "model"), ("z", "a")])
@pytest.mark.parametrize("schedule", ["unoverlapped", "one_way", "two_way"])
@pytest.mark.parametrize("name", OPS)
def test_ring_over_two_axes(name, schedule, names):
  # In mesh order, whether that is the order of the names or not.
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(2, 4), names)
  in_specs, out_specs = specs_of(name, names)
  f = jax.shard_map(
    functools.partial(OPS[name], axis_name=names, schedule=schedule),
    mesh=mesh,
    in_specs=in_specs,
    out_specs=out_specs,
  )
  assert_dense(f, whole(16, 8), whole(8, 16, seed=1))


@pytest.mark.parametrize("name", OPS)
def test_axes_out_of_mesh_order_are_refused(name):
  names = ("model", "data")
  in_specs, out_specs = specs_of(name, names)
  f = jax.shard_map(
    functools.partial(OPS[name], axis_name=names),
    mesh=make_mesh(data=2, model=4),
    in_specs=in_specs,
    out_specs=out_specs,
  )
  with pytest.raises(
    ValueError,
    match=r"tuple in mesh order, \('data', 'model'\), got \('model', 'data'\)",
  ):
    jax.eval_shape(f, jnp.ones((16, 8)), jnp.ones((8, 16)))
