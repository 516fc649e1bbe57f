import functools

import jax
import jax.numpy as jnp
import pytest
from layer_cases import (
  Explicit,
  assert_equal,
  jit,
  mesh_of,
  whole,
  whole_init,
  with_gradients,
)

nn = pytest.importorskip("flax.linen")
from collective_mm.flax.linen import ColumnDense, RowDense  # noqa: E402

P = jax.P
WHOLE = {"kernel_init": whole_init, "bias_init": whole_init}

# The original, ours, and the shape of `x`.
LAYERS = {
  "column": (nn.Dense(8, **WHOLE), ColumnDense(8, **WHOLE), (2, 4, 6)),
  "features": (
    nn.Dense(8, use_bias=False, **WHOLE),
    ColumnDense(8, use_bias=False, gather_dim=-1, **WHOLE),
    (2, 3, 8),
  ),
  "heads": (
    nn.DenseGeneral((4, 3), **WHOLE),
    ColumnDense((4, 3), gather_dim=1, **WHOLE),
    (2, 4, 6),
  ),
  "qkv": (
    nn.DenseGeneral((3, 4, 2), **WHOLE),
    ColumnDense((3, 4, 2), sharded_feature=1, **WHOLE),
    (2, 4, 6),
  ),
  "row": (nn.Dense(6, **WHOLE), RowDense(6, **WHOLE), (2, 4, 8)),
  "row_features": (
    nn.Dense(8, **WHOLE),
    RowDense(8, scatter_dim=-1, **WHOLE),
    (2, 3, 8),
  ),
  "out": (
    nn.DenseGeneral(6, axis=(-2, -1), **WHOLE),
    RowDense(6, axis=(-2, -1), **WHOLE),
    (2, 4, 4, 3),
  ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_tree_draws_values_and_gradients_are_the_originals(name):
  original, layer, shape = LAYERS[name]
  x, mesh = whole(*shape), mesh_of()
  want = original.init(jax.random.key(0), x)
  layer = layer.clone(mesh=mesh)
  boxed = jit(layer.init)(jax.random.key(0), x[:1, :1])
  assert_equal(nn.unbox(boxed), want)  # of a smaller `x`: init needs no ring
  for path, leaf in jax.tree.leaves_with_path(nn.unbox(boxed)):
    spec = nn.get_partition_spec(boxed)["params"][path[-1].key]
    assert "model" in spec or (path[-1].key, name[:3]) in (
      ("bias", "row"), ("bias", "out")
    )  # fmt: skip
    sharding = jax.NamedSharding(mesh, spec)
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
  # The original's variables, as a checkpoint has them.
  assert_equal(
    jit(with_gradients(layer.apply))(want, x),
    with_gradients(original.apply)(want, x),
  )


def test_several_layers_share_one_gather_and_an_epilogue():
  class Original(nn.Module):
    @nn.compact
    def __call__(self, x):
      gate, up = nn.Dense(8, **WHOLE)(x), nn.Dense(8, **WHOLE)(x)
      return gate * up

  class Fused(nn.Module):
    @nn.compact
    def __call__(self, x):
      gate, up = ColumnDense(8, **WHOLE), ColumnDense(8, **WHOLE)
      return ColumnDense.fused(x, gate, up, epilogue=jnp.multiply)

  x = whole(2, 4, 6)
  variables = Original().init(jax.random.key(0), x)
  mesh = mesh_of()
  with jax.set_mesh(mesh):
    assert_equal(nn.unbox(Fused().init(jax.random.key(0), x)), variables)
    run = jit(with_gradients(Fused().apply))
    assert_equal(
      run(variables, x), with_gradients(Original().apply)(variables, x)
    )
    jaxpr = str(jax.make_jaxpr(Fused().apply)(variables, x))
  # One ring of three sends; in two lanes there would be two of each.
  assert jaxpr.count(" = ppermute") == 3


@pytest.mark.parametrize("name", ["heads", "out"])
def test_explicit_axes(name):
  original, layer, shape = LAYERS[name]
  mesh, x = mesh_of(Explicit), whole(*shape)
  want = original.init(jax.random.key(0), x)
  spec = P("data", "model") if name == "heads" else P("data", None, "model")
  with jax.set_mesh(mesh):
    variables = nn.unbox(jit(layer.init)(jax.random.key(0), x))
    typed = jit(layer.init)(jax.random.key(0), jax.reshard(x, spec))
    assert_equal(nn.unbox(typed), variables)
    kernel = jax.typeof(variables["params"]["kernel"])
    dim = 1 if name == "heads" else 0
    assert kernel.sharding.spec[dim] == "model"
    got = jit(with_gradients(layer.apply))(variables, jax.reshard(x, spec))
    assert got[0].sharding.spec[0] == "data"
    with pytest.raises(
      ValueError,
      match=r"Dense: x must be sharded over 'model', which is Explicit, in dim "
      r"\d alone: use jax.reshard before, got float32\[2,4,",
    ):
      layer.apply(variables, x)
  assert_equal(got, with_gradients(original.apply)(want, x))


def in_shard_map(mesh, f, variables, x, specs, x_spec, y_spec, axes):
  return jax.shard_map(
    f, mesh=mesh, in_specs=(specs, x_spec), out_specs=y_spec, axis_names=axes
  )(variables, x)


@pytest.mark.parametrize("axes", [{"model"}, {"data", "model"}, {"data"}])
@pytest.mark.parametrize("name", ["qkv", "out"])
def test_manual_axes(name, axes):
  original, layer, shape = LAYERS[name]
  mesh, x = mesh_of(), whole(*shape)
  variables = original.init(jax.random.key(0), x)
  model, data = (a if a in axes else None for a in ("model", "data"))
  if name == "qkv":
    kernel, bias = P(None, None, model), P(None, model)
    x_spec, y_spec = P(data, model), P(data, None, None, model)
  else:
    kernel, bias = P(model), P()
    x_spec, y_spec = P(data, None, model), P(data, model)
  specs = {"params": {"kernel": kernel, "bias": bias}}
  if "model" not in axes:
    layer = layer.clone(mesh=mesh)
  f = functools.partial(
    in_shard_map, mesh, layer.apply, specs=specs, x_spec=x_spec,
    y_spec=y_spec, axes=axes,
  )  # fmt: skip
  assert_equal(
    jit(with_gradients(f))(variables, x),
    with_gradients(original.apply)(variables, x),
  )


@pytest.mark.parametrize("layer", [ColumnDense, RowDense])
@pytest.mark.parametrize(
  ("dtype", "param_dtype", "x_dtype"),
  [
    (None, "float32", "float32"),
    (None, "float32", "bfloat16"),
    (None, "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "float32"),
    ("float32", "bfloat16", "bfloat16"),
  ],
)
def test_dtypes_are_the_originals(layer, dtype, param_dtype, x_dtype):
  x = jax.ShapeDtypeStruct((2, 4, 8), x_dtype)

  def types(layer):
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    variables = nn.unbox(variables)
    run = with_gradients(layer.apply)
    return jax.tree.map(lambda a: a.dtype, jax.eval_shape(run, variables, x))

  how = {"dtype": dtype, "param_dtype": param_dtype}
  assert types(layer(8, mesh=mesh_of(), **how)) == types(nn.Dense(8, **how))


def test_the_callers_partitioning_stays():
  init = nn.with_partitioning(whole_init, ("data", "model"))
  layer = ColumnDense((4, 2), mesh=mesh_of(), kernel_init=init)
  variables = jax.eval_shape(layer.init, jax.random.key(0), whole(2, 4, 6))
  kernel = variables["params"]["kernel"]
  assert type(kernel) is nn.Partitioned
  assert kernel.names == ("data", "model")
  assert kernel.value.shape == (6, 4, 2)


class Inner(nn.Module):
  layer: nn.Module

  @nn.compact
  def __call__(self, x):
    return self.layer.clone(name="up", parent=self)(x)


@pytest.mark.parametrize(
  ("layer", "shape", "message"),
  [
    (ColumnDense(6), (4, 8), "must divide features: 6 is not a multiple of 4"),
    (ColumnDense(8), (6, 8), "divide dim -2 of x: 6 is not a multiple of 4"),
    (
      ColumnDense(8, axis_name="tensor"), (4, 8),
      r"must be an axis of mesh, \('data', 'model'\), got 'tensor'",
    ),
    (
      ColumnDense((2, 4), sharded_feature=2), (4, 8),
      r"sharded_feature must be an index of features, \(2, 4\), got 2",
    ),
    (RowDense(8), (4, 6), "must divide dim -1 of x: 6 is not a multiple of 4"),
    (RowDense(8), (6, 8), "must divide dim -2 of y: 6 is not a multiple of 4"),
    (
      RowDense(6, scatter_dim=-1), (4, 8),
      "must divide features: 6 is not a multiple of 4",
    ),
    (
      RowDense(8, axis=(0, -1)), (4, 2, 8),
      r"axis must be the last dims of x, of 3 dims, got \(0, -1\)",
    ),
  ],
)  # fmt: skip
def test_errors_name_the_path(layer, shape, message):
  kind = type(layer).__qualname__
  model = Inner(layer.clone(mesh=mesh_of()))
  with pytest.raises(ValueError, match=f"^up/{kind}: .*{message}"):
    x = whole(*shape)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    jax.eval_shape(model.apply, nn.unbox(variables), x)


def test_wrong_manual_axes_name_the_path():
  mesh, x = mesh_of(), whole(2, 4, 8)
  model = Inner(ColumnDense(8))
  variables = nn.unbox(model.init(jax.random.key(0), x))

  def inside(f, axes):
    run = jax.shard_map(
      f, mesh=mesh, in_specs=P(), out_specs=P(), axis_names=axes
    )
    jax.eval_shape(run, x)

  with pytest.raises(ValueError, match=r"^up/Col.*manual here: \(\), got 'mod"):
    model.apply(variables, x)
  with pytest.raises(ValueError, match=r"^up/.*manual here: \('data',\)"):
    jax.eval_shape(
      jax.shard_map(
        lambda x: model.apply(variables, x),
        mesh=jax.make_mesh((8,), ("data",)),
        in_specs=P(),
        out_specs=P(),
      ),
      x,
    )
  given = Inner(ColumnDense(8, mesh=mesh))
  with pytest.raises(ValueError, match=r"^up/.*mesh must be None inside a jax"):
    inside(lambda x: given.apply(variables, x), {"model"})
  with pytest.raises(ValueError, match=r"^up/.*init must be called outside"):
    inside(lambda x: model.init(jax.random.key(0), x), {"model"})


def test_fused_layers_all_have_a_bias_or_none():
  class Mixed(nn.Module):
    @nn.compact
    def __call__(self, x):
      layers = ColumnDense(8), ColumnDense(8, use_bias=False)
      return ColumnDense.fused(x, *layers)

  with pytest.raises(ValueError, match=r"^Dense_0/.* all have a bias, or none"):
    Mixed().init(jax.random.key(0), whole(4, 8))
