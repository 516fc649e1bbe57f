import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_cases import tolerance

from collective_mm import ColumnDense, RowDense, make_mesh

P = jax.P
IN, OUT = 8, 16  # features
initializers = jax.nn.initializers
# A bias of zeros would hide itself.
noisy = {"bias_init": initializers.normal(1.0)}


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(data=2, model=4)


def draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def plain(params, x):
  y = jnp.matmul(x, params["kernel"], precision="highest")
  return y + params["bias"] if "bias" in params else y


def with_gradients(f, params, x, dy):
  """Returns `(y, (dparams, dx))`."""
  y, gradient = jax.vjp(f, params, x)
  return y, gradient(dy)


def assert_near(got, want, terms):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=tolerance("float32", terms)
    ),
    got,
    want,
  )


def communicates(text, name):
  return re.search(rf"\b{name}(-start)?\(", text) is not None


# `x` and `y` of each layer with the data axis on a row dim that neither
# travels nor is halved, as the docstring asks.
@pytest.mark.parametrize(
  ("layer", "rows", "x_spec", "y_spec"),
  [
    (
      ColumnDense(OUT, gather_dim=0, **noisy), (4, 2, 2),
      ("model", "data", None, None), (None, "data", None, "model"),
    ),
    (
      ColumnDense(OUT, gather_dim=1, **noisy), (2, 8),
      ("data", "model", None), ("data", None, "model"),
    ),
    (
      ColumnDense(OUT, gather_dim=-1, use_bias=False), (2, 4),
      ("data", None, "model"), ("data", None, "model"),
    ),
    (
      RowDense(OUT, scatter_dim=0, **noisy), (4, 2, 2),
      (None, "data", None, "model"), ("model", "data", None, None),
    ),
    (
      RowDense(OUT, scatter_dim=1, use_bias=False), (2, 8),
      ("data", None, "model"), ("data", "model", None),
    ),
    (
      RowDense(OUT, scatter_dim=-1, **noisy), (2, 4),
      ("data", None, "model"), ("data", None, "model"),
    ),
  ],
)  # fmt: skip
def test_global_view_leaves_the_data_axis_alone(
  mesh, layer, rows, x_spec, y_spec
):
  layer = _on(mesh, layer)
  x_sharding, y_sharding = (
    jax.NamedSharding(mesh, P(*spec)) for spec in (x_spec, y_spec)
  )
  params = layer.init(jax.random.key(0), IN)
  x = jax.device_put(draw(1, *rows, IN), x_sharding)
  dy = jax.device_put(draw(2, *rows, OUT), y_sharding)

  step = jax.jit(functools.partial(with_gradients, layer))
  compiled = step.lower(params, x, dy).compile()
  text = compiled.as_text()
  assert communicates(text, "collective-permute")
  assert not communicates(text, "all-gather")
  assert not communicates(text, "all-to-all")

  y, (dparams, dx) = compiled(params, x, dy)
  assert y.sharding.is_equivalent_to(y_sharding, y.ndim)
  assert dx.sharding.is_equivalent_to(x_sharding, x.ndim)
  for name, leaf in dparams.items():
    assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)
  want = jax.jit(functools.partial(with_gradients, plain))(params, x, dy)
  assert_near((y, (dparams, dx)), want, terms=dy.size)


def _on(mesh, layer):
  fields = {name: getattr(layer, name) for name in layer.__dataclass_fields__}
  return type(layer)(fields.pop("features"), **fields | {"mesh": mesh})


def test_global_view_is_right_where_it_must_reshard(mesh):
  layer = ColumnDense(OUT, mesh=mesh, **noisy)  # the first dim travels
  params, x = layer.init(jax.random.key(0), IN), draw(1, 8, IN)
  dy = draw(2, 8, OUT)
  spec = P(("data", "model"))
  x, dy = jax.device_put((x, dy), jax.NamedSharding(mesh, spec))
  got = jax.jit(functools.partial(with_gradients, layer))(params, x, dy)
  want = jax.jit(functools.partial(with_gradients, plain))(params, x, dy)
  assert_near(got, want, terms=dy.size)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_both_layers_inside_shard_map(mesh, dim):
  first = ColumnDense(OUT, gather_dim=dim, **noisy)
  second = RowDense(IN, scatter_dim=dim, **noisy)
  specs = {"first": first.specs, "second": second.specs}
  x_spec = [None, None, None]
  x_spec[dim] = "model"
  x_spec[0] = ("data", "model") if dim == 0 else "data"
  params = {
    "first": first.init(jax.random.key(0), IN),
    "second": second.init(jax.random.key(1), OUT),
  }
  x, dy = draw(2, 8, 4, IN), draw(3, 8, 4, IN)

  def mlp(first, second, params, x):
    return second(params["second"], jnp.tanh(first(params["first"], x)))

  sharded = jax.shard_map(
    functools.partial(mlp, first, second),
    mesh=mesh,
    in_specs=(specs, P(*x_spec)),
    out_specs=P(*x_spec),
  )
  got = jax.jit(functools.partial(with_gradients, sharded))(params, x, dy)
  want = with_gradients(functools.partial(mlp, plain, plain), params, x, dy)
  assert_near(got, want, terms=x.size)


@pytest.mark.parametrize(
  ("layer", "kernel", "bias"),
  [
    (ColumnDense(OUT), P(None, "model"), P("model")),
    (ColumnDense(OUT, gather_dim=-1), P(None, "model"), P("model")),
    (RowDense(OUT), P("model", None), P(None)),
    (RowDense(OUT, scatter_dim=-1), P("model", None), P("model")),
    (ColumnDense(OUT, use_bias=False), P(None, "model"), None),
    (RowDense(OUT, use_bias=False), P("model", None), None),
  ],
)
def test_init_shards_as_specs_say_what_one_device_draws(
  mesh, layer, kernel, bias
):
  specs = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
  assert layer.specs == specs
  alone = layer.init(jax.random.key(3), IN)
  params = _on(mesh, layer).init(jax.random.key(3), IN)
  shapes = {"kernel": (IN, OUT), "bias": (OUT,)}
  for name, spec in specs.items():
    assert params[name].shape == shapes[name]
    sharding = jax.NamedSharding(mesh, spec)
    assert params[name].sharding.is_equivalent_to(sharding, len(shapes[name]))
    # The same draw, scaled by another compiled program.
    np.testing.assert_allclose(params[name], alone[name], rtol=1e-6)
  assert params.keys() == alone.keys() == specs.keys()
  assert np.unique(params["kernel"]).size == IN * OUT  # no device repeats one


def test_init_uses_its_initialisers_and_dtype():
  layer = ColumnDense(
    OUT,
    param_dtype=jnp.bfloat16,
    kernel_init=initializers.constant(2),
    bias_init=initializers.constant(3),
  )
  params = layer.init(jax.random.key(0), IN)
  assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("bfloat16")}
  np.testing.assert_array_equal(params["kernel"], jnp.full((IN, OUT), 2.0))
  np.testing.assert_array_equal(params["bias"], jnp.full((OUT,), 3.0))


@pytest.mark.parametrize("layer", [ColumnDense, RowDense])
@pytest.mark.parametrize(
  ("dtype", "param_dtype", "x_dtype", "y_dtype"),
  [
    (None, "float32", "float32", "float32"),
    (None, "float32", "bfloat16", "float32"),
    (None, "bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "float32", "bfloat16"),
    ("float32", "bfloat16", "bfloat16", "float32"),
  ],
)
def test_dtypes(mesh, layer, dtype, param_dtype, x_dtype, y_dtype):
  layer = layer(OUT, mesh=mesh, dtype=dtype, param_dtype=param_dtype)
  params = jax.eval_shape(lambda: layer.init(jax.random.key(0), IN))
  x = jax.ShapeDtypeStruct((4, IN), x_dtype)
  y = jax.eval_shape(layer, params, x)
  assert y.dtype == y_dtype
  _, (dparams, dx) = jax.eval_shape(
    functools.partial(with_gradients, layer), params, x, y
  )
  assert {leaf.dtype for leaf in dparams.values()} == {jnp.dtype(param_dtype)}
  assert dx.dtype == x_dtype


@pytest.mark.parametrize(
  ("layer", "primitive", "count"),
  [
    (ColumnDense(OUT, schedule="one_way"), "ppermute", 3),
    (ColumnDense(OUT, schedule="one_way", chunks=2), "ppermute", 6),
    (ColumnDense(OUT, schedule="unoverlapped"), "ppermute", 0),
    (RowDense(OUT, schedule="one_way"), "ppermute", 3),
    (RowDense(OUT, schedule="one_way", chunks=2), "ppermute", 6),
    (RowDense(OUT, schedule="unoverlapped"), "ppermute", 0),
    (ColumnDense(OUT, dw="save"), "name=all_gather_matmul_x", 1),
    (ColumnDense(OUT, dw="regather"), "name=all_gather_matmul_x", 0),
  ],
)
def test_options_reach_the_ops(mesh, layer, primitive, count):
  layer = _on(mesh, layer)
  params = jax.eval_shape(lambda: layer.init(jax.random.key(0), IN))

  def forward(params, x):
    return jax.vjp(layer, params, x)[0]

  jaxpr = jax.make_jaxpr(forward)(params, jnp.ones((8, IN)))
  assert len(re.findall(rf"\b{primitive}\b", str(jaxpr))) == count


def test_sums_travel_and_accumulate_in_the_given_dtypes(mesh):
  def row(**options):
    layer = RowDense(
      OUT, mesh=mesh, dtype="bfloat16", schedule="one_way", **options
    )
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), IN))
    return str(jax.make_jaxpr(layer)(params, jnp.ones((8, IN))))

  assert "preferred_element_type=float32" in row()
  assert "preferred_element_type=bfloat16" in row(accum_dtype="bfloat16")
  sends = re.compile(r"(\w+)\[2,16\](?:\{[^}]*\})? = ppermute")
  assert set(sends.findall(row())) == {"bf16"}
  assert set(sends.findall(row(wire_dtype="float32"))) == {"f32"}


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda mesh: ColumnDense(0), "features must be at least 1, got 0"),
    (
      lambda mesh: RowDense(OUT, mesh=mesh, axis_name="tensor"),
      r"an axis of mesh, \('data', 'model'\), got 'tensor'",
    ),
    (
      lambda mesh: ColumnDense(18, mesh=mesh).init(jax.random.key(0), IN),
      "'model' must divide features: 18 is not a multiple of 4",
    ),
    (
      lambda mesh: RowDense(OUT, mesh=mesh).init(jax.random.key(0), 10),
      "'model' must divide in_features: 10 is not a multiple of 4",
    ),
    (
      lambda mesh: RowDense(18, scatter_dim=-1, mesh=mesh).init(
        jax.random.key(0), IN
      ),
      "'model' must divide features: 18 is not a multiple of 4",
    ),
  ],
)
def test_bad_layers_are_named(mesh, make, message):
  with pytest.raises(ValueError, match=message):
    make(mesh)


@pytest.mark.parametrize(
  ("layer", "x", "message"),
  [
    (
      ColumnDense(OUT), (6, IN),
      "'model' must divide dim 0 of x: 6 is not a multiple of 4",
    ),
    (
      ColumnDense(OUT, gather_dim=-1), (4, 10),
      "divide dim -1 of x: 10 is not a multiple of 4",
    ),
    (
      ColumnDense(OUT, gather_dim=2), (4, IN),
      "sharded dim must be from -2 to 1, got 2",
    ),
    (
      ColumnDense(OUT), (4, 12),
      r"w must be a matrix of 12 rows .* got w.shape=\(8, 4\)",
    ),
    (
      ColumnDense(OUT, schedule="ring"), (4, IN),
      "schedule must be one of .* got 'ring'",
    ),
    (
      RowDense(OUT), (4, 10),
      "divide dim -1 of x: 10 is not a multiple of 4",
    ),
    (
      RowDense(OUT), (6, IN),
      "divide dim 0 of y: 6 is not a multiple of 4",
    ),
    (
      RowDense(OUT, scatter_dim=-3), (4, IN),
      "sharded dim must be from -2 to 1, got -3",
    ),
    (
      RowDense(OUT, scatter_dim=1), (4, IN),
      "scatter_dim must be -1 for the features of y, got 1",
    ),
    (
      RowDense(OUT), (4, 12),
      r"w must be a matrix with a row for each of the 3 features of x, got "
      r"w.shape=\(2, 16\)",
    ),
  ],
)  # fmt: skip
def test_bad_calls_are_named(mesh, layer, x, message):
  layer = _on(mesh, layer)
  params = jax.eval_shape(lambda: layer.init(jax.random.key(0), IN))
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(layer, params, jnp.ones(x))


def test_a_layer_without_a_mesh_is_refused_outside_shard_map():
  layer = ColumnDense(OUT)
  with pytest.raises(ValueError, match=r"manual here: \(\), got 'model'"):
    layer(layer.init(jax.random.key(0), IN), jnp.ones((4, IN)))
