"""The ops and layers where Explicit mesh axes shard what the ring does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from op_cases import quick_compilation

from collective_mm import (
  ColumnDense,
  RowDense,
  all_gather_matmul,
  matmul_all_reduce,
  matmul_reduce_scatter,
)
from collective_mm.collective import SAVED_NAME

P = jax.P
Auto, Explicit = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
jit = functools.partial(jax.jit, compiler_options=quick_compilation())
policies = jax.checkpoint_policies

# name: the op, the specs of `x[B, S, D]`, `w` and `y` over the ring.
OPS = {
  "all_gather_matmul": (
    functools.partial(all_gather_matmul, gather_dim=1),
    P(None, "model"), P(None, "model"), P(None, None, "model"),
  ),
  "features_gathered": (
    functools.partial(all_gather_matmul, gather_dim=-1),
    P(None, None, "model"), P(None, "model"), P(None, None, "model"),
  ),
  "matmul_reduce_scatter": (
    functools.partial(matmul_reduce_scatter, scatter_dim=1),
    P(None, None, "model"), P("model", None), P(None, "model"),
  ),
  "features_scattered": (
    functools.partial(matmul_reduce_scatter, scatter_dim=-1),
    P(None, None, "model"), P("model", None), P(None, None, "model"),
  ),
  "first_dim_gathered": (
    functools.partial(all_gather_matmul, gather_dim=0),
    P("model"), P(None, "model"), P(None, None, "model"),
  ),
  "first_dim_scattered": (
    functools.partial(matmul_reduce_scatter, scatter_dim=0),
    P(None, None, "model"), P("model", None), P("model"),
  ),
  "matmul_all_reduce": (
    matmul_all_reduce, P(None, None, "model"), P("model", None), P(),
  ),
}  # fmt: skip
THREE = ("all_gather_matmul", "matmul_reduce_scatter", "matmul_all_reduce")


def mesh_of(kinds=(Explicit, Explicit), shape=(2, 4), names=("data", "model")):
  return jax.make_mesh(shape, names, axis_types=kinds)


def whole(*shape, seed=0):
  # Sums of small whole numbers are exact, however they are added.
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(-2, 3, shape), jnp.float32)


def over(spec, dim, axis="data", ndim=3):
  """`spec` with `axis` added in `dim`."""
  entries = [*spec, *[None] * (ndim - len(spec))]
  entries[dim] = axis if entries[dim] is None else (entries[dim], axis)
  return P(*entries)


def on_ring(name, mesh, *, wrap=lambda f: f, check_vma=True, **options):
  op, x_spec, w_spec, y_spec = OPS[name]
  return jax.shard_map(
    wrap(functools.partial(op, **{"axis_name": "model"} | options)),
    mesh=mesh,
    in_specs=(x_spec, w_spec),
    out_specs=y_spec,
    axis_names={"model"},
    check_vma=check_vma,
  )


def with_gradients(f):
  def run(*arguments):
    y, gradient = jax.vjp(f, *arguments)
    return y, gradient(y)

  return run


def assert_equal(f, dense, mesh, arguments, specs, atol=0):
  """`f` of sharded arguments is `dense` of whole ones."""
  put = [
    jax.device_put(array, jax.NamedSharding(mesh, spec))
    for array, spec in zip(arguments, specs, strict=True)
  ]
  with jax.set_mesh(mesh):
    got = jit(f)(*put)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol),
    got,
    dense(*arguments),
  )
  return got


def assert_dense(name, mesh, f, *, data_dim=0, x=None, w=None):
  """`f` and its gradients are those of `x @ w`, and sharded as jax would."""
  x = whole(4, 8, 8) if x is None else x
  w = whole(8, 8, seed=1) if w is None else w
  _, x_spec, w_spec, y_spec = OPS[name]
  specs = over(x_spec, data_dim), w_spec
  y, gradients = assert_equal(
    with_gradients(f), with_gradients(jnp.matmul), mesh, (x, w), specs
  )
  specs = over(y_spec, data_dim), *specs
  for array, spec in zip((y, *gradients), specs, strict=True):
    assert array.sharding.is_equivalent_to(
      jax.NamedSharding(mesh, spec), array.ndim
    )


@pytest.mark.parametrize(
  ("schedule", "check_vma"),
  [
    ("unoverlapped", False), ("unoverlapped", True), ("async", True),
    ("one_way", True), ("two_way", False), ("two_way", True),
  ],
)  # fmt: skip
@pytest.mark.parametrize("name", OPS)
def test_values_and_both_gradients(name, schedule, check_vma):
  mesh = mesh_of()
  f = on_ring(name, mesh, schedule=schedule, check_vma=check_vma)
  assert_dense(name, mesh, f, data_dim=1 if "first" in name else 0)


@pytest.mark.parametrize("kinds", [(Auto, Explicit), (Explicit, Auto)])
@pytest.mark.parametrize("name", THREE)
def test_one_axis_of_each_kind_beside_the_ring(name, kinds):
  # `data` and `slice` shard rows and columns, one of them Explicit.
  names = ("slice", "data", "model")
  mesh = mesh_of((*kinds, Explicit), (2, 2, 2), names)
  _, x_spec, w_spec, _ = OPS[name]
  assert_equal(
    with_gradients(on_ring(name, mesh)),
    with_gradients(jnp.matmul),
    mesh,
    (whole(4, 8, 8), whole(8, 8, seed=1)),
    (over(x_spec, 0), over(w_spec, 1, "slice", ndim=2)),
  )


@pytest.mark.parametrize("name", ["features_gathered", "matmul_all_reduce"])
@pytest.mark.parametrize("schedule", ["unoverlapped", "two_way"])
def test_lanes_leave_sharded_rows_alone(name, schedule):
  # The innermost row dim, which lanes would divide, has two rows a device.
  mesh = mesh_of()
  f = on_ring(name, mesh, schedule=schedule)
  assert_dense(name, mesh, f, data_dim=1, x=whole(3, 4, 8))


@pytest.mark.parametrize("schedule", ["unoverlapped", "two_way"])
@pytest.mark.parametrize("name", THREE)
def test_columns_of_the_weight_may_be_sharded(name, schedule):
  mesh = mesh_of()
  _, x_spec, w_spec, _ = OPS[name]
  assert_equal(
    with_gradients(on_ring(name, mesh, schedule=schedule)),
    with_gradients(jnp.matmul),
    mesh,
    (whole(4, 8, 8), whole(8, 8, seed=1)),
    (x_spec, over(w_spec, 1, ndim=2)),
  )


@pytest.mark.parametrize("schedule", ["unoverlapped", "two_way"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", THREE)
def test_vmap_over_a_sharded_batch(name, inside, schedule):
  mesh = mesh_of()
  options = {"schedule": schedule}
  if name != "matmul_all_reduce":
    options["gather_dim" if "gather" in name else "scatter_dim"] = 0
  op, x_spec, w_spec, y_spec = OPS[name]
  f = functools.partial(op, axis_name="model", **options)
  rows = slice(0 if inside else 1, None)
  f = jax.shard_map(
    jax.vmap(f, (0, None)) if inside else f,
    mesh=mesh,
    in_specs=(P(*x_spec[rows]), w_spec),
    out_specs=P(*y_spec[rows]),
    axis_names={"model"},
  )
  assert_dense(name, mesh, f if inside else jax.vmap(f, (0, None)))


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
def test_scan_and_checkpoint(policy, dw):
  mesh = mesh_of()

  def layer(x, ws):
    h = all_gather_matmul(x, ws[0], axis_name="model", gather_dim=1, dw=dw)
    return matmul_reduce_scatter(
      h, ws[1], axis_name="model", scatter_dim=1
    ), None

  if policy:
    layer = jax.checkpoint(layer, policy=policy)
  specs = P(None, "model"), P(None, None, "model"), P(None, "model")
  f = jax.shard_map(
    lambda x, *ws: lax.scan(layer, x, ws)[0],
    mesh=mesh,
    in_specs=specs,
    out_specs=specs[0],
    axis_names={"model"},
  )

  def dense(x, w_in, w_out):
    for w in zip(w_in, w_out, strict=True):
      x = x @ w[0] @ w[1]
    return x

  def run(f, *arguments):
    y, gradient = jax.vjp(f, *arguments)
    return y, gradient(jnp.ones_like(y))

  arrays = whole(4, 8, 4), whole(2, 4, 4, seed=1), whole(2, 4, 4, seed=2)
  specs = P("data", "model"), *specs[1:]
  assert_equal(
    functools.partial(run, f), functools.partial(run, dense), mesh, arrays,
    specs,
  )  # fmt: skip


@pytest.mark.parametrize("schedule", ["unoverlapped", "two_way"])
@pytest.mark.parametrize("name", THREE)
def test_gradient_of_a_gradient(name, schedule):
  # The loss of `tanh` makes the second derivative depend on both factors.
  mesh = mesh_of()

  def curvature(f):
    def loss(x, w):
      return jnp.tanh(f(x, w)).sum()

    return jax.grad(lambda x, w: (jax.grad(loss)(x, w) ** 2).sum())

  _, x_spec, w_spec, _ = OPS[name]
  assert_equal(
    curvature(on_ring(name, mesh, schedule=schedule)),
    curvature(jnp.matmul),
    mesh,
    (whole(2, 4, 4) / 4, whole(4, 4, seed=1) / 4),
    (over(x_spec, 0), w_spec),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  ("name", "missing"),
  [("matmul_reduce_scatter", (1, 0)), ("features_scattered", (0, 2))],
)
def test_sizes_that_do_not_divide(name, missing):
  mesh = mesh_of()
  _, x_spec, w_spec, _ = OPS[name]
  rows, columns = missing

  def padded(x, w):
    return jnp.pad(x @ w, [(0, 0), (0, rows), (0, columns)])

  assert_equal(
    with_gradients(on_ring(name, mesh)),
    with_gradients(padded),
    mesh,
    (whole(2, 8 - rows, 8), whole(8, 8 - columns, seed=1)),
    (over(x_spec, 0), w_spec),
  )


def test_epilogue_and_tuple_of_weights():
  mesh = mesh_of()

  def heads(bias, y, z):
    return (y + bias).reshape(*y.shape[:-1], 2, 1) * z[..., None]

  def per_device(x, w, v, bias):
    epilogue = jax.tree_util.Partial(heads, bias)
    return all_gather_matmul(
      x, (w, v), axis_name="model", gather_dim=1, epilogue=epilogue, dw="save"
    )

  specs = P(None, "model"), P(None, "model"), P(None, "model"), P("model")
  f = jax.shard_map(
    per_device,
    mesh=mesh,
    in_specs=specs,
    out_specs=P(None, None, "model"),
    axis_names={"model"},
  )

  def dense(x, w, v, bias):
    y, z = x @ w + bias, x @ v
    return (y.reshape(4, 8, 4, 2, 1) * z.reshape(4, 8, 4, 2, 1)).reshape(
      4, 8, 8, 1
    )

  assert_equal(
    f, dense, mesh,
    (whole(4, 8, 8), whole(8, 8, seed=1), whole(8, 8, seed=2), whole(8)),
    (P("data", "model"), *specs[1:]),
  )  # fmt: skip


@pytest.mark.parametrize("is_set", [False, True])
@pytest.mark.parametrize(
  ("layer", "x_spec"),
  [
    (functools.partial(ColumnDense, gather_dim=1), P("data", "model")),
    (functools.partial(ColumnDense, gather_dim=-1), P("data", None, "model")),
    (functools.partial(RowDense, scatter_dim=1), P("data", None, "model")),
    (functools.partial(RowDense, scatter_dim=-1), P("data", None, "model")),
  ],
)
def test_layers(layer, x_spec, is_set):
  mesh = mesh_of()
  bias_init = jax.nn.initializers.normal(1.0)
  layer = layer(8, mesh=mesh, bias_init=bias_init)
  params = layer.init(jax.random.key(0), 8)
  assert params["kernel"].sharding.spec == layer.specs["kernel"]
  x = whole(4, 8, 8)

  def dense(params, x):
    return x @ params["kernel"] + params["bias"]

  put = jax.device_put(x, jax.NamedSharding(mesh, x_spec))
  run = jit(with_gradients(layer))
  if is_set:
    with jax.set_mesh(mesh):
      got = run(params, put)
  else:
    got = run(params, put)
  want = with_gradients(dense)(jax.tree.map(np.asarray, params), x)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4),
    got,
    want,
  )


@pytest.mark.parametrize(
  ("name", "x_dim", "w_dim", "message"),
  [
    (
      "all_gather_matmul", 1, None,
      r"must not shard dims of x that are contracted or travel, \[1, 2\]: use "
      r"jax.reshard before, got x: .*\[4,2@data,8\]",
    ),
    ("all_gather_matmul", 2, None, r"dims of x .*, got x: .*\[4,2,8@data\]"),
    ("matmul_reduce_scatter", 1, None, r"dims of x .*\[4,8@data,2\]"),
    (
      "features_scattered", None, 1,
      r"dims of w that are contracted or travel, \[0, 1\]: .*\[2,8@data\]",
    ),
    ("matmul_all_reduce", None, 0, r"dims of w .*, \[0\]: .*\[2@data,8\]"),
    (
      "all_gather_matmul", 0, 1,
      r"must not shard rows of x and columns of w alike: use jax.reshard "
      r"before, got x: .*\[4@data,2,8\].*, w: .*\[8,2@data\]",
    ),
  ],
)  # fmt: skip
def test_what_needs_a_reshard_is_refused(name, x_dim, w_dim, message):
  mesh = mesh_of()
  _, x_spec, w_spec, _ = OPS[name]
  x_spec = x_spec if x_dim is None else over(x_spec, x_dim)
  w_spec = w_spec if w_dim is None else over(w_spec, w_dim, ndim=2)
  x, w = (
    jax.device_put(array, jax.NamedSharding(mesh, spec))
    for array, spec in ((whole(4, 8, 8), x_spec), (whole(8, 8), w_spec))
  )
  with jax.set_mesh(mesh), pytest.raises(ValueError, match=message):
    jit(on_ring(name, mesh))(x, w)
