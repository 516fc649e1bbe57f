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
  with_gradients,
)

eqx = pytest.importorskip("equinox")
from collective_mm.equinox import ColumnDense, RowDense  # noqa: E402

P = jax.P

# Sizes, our layer and its options.
LAYERS = {
  "column": (6, 8, ColumnDense, {}),
  "features": (8, 8, ColumnDense, {"gather_dim": -1, "use_bias": False}),
  "row": (8, 6, RowDense, {}),
  "row_features": (8, 8, RowDense, {"scatter_dim": -1}),
}


def wholes(layer):
  """The layer with small whole numbers for its draws."""
  return jax.tree.map(
    lambda a: jnp.round(6 * a) if eqx.is_array(a) else a, layer
  )


def applied(layer, wrap=lambda layer: layer):
  """The layer as a function of its arrays and `x`, and the arrays."""
  arrays, rest = eqx.partition(layer, eqx.is_array)
  return lambda arrays, x: wrap(eqx.combine(arrays, rest))(x), arrays


def on_tokens(layer):
  return jax.vmap(jax.vmap(layer))


@pytest.mark.parametrize("name", LAYERS)
def test_tree_draws_values_and_gradients_are_the_originals(name):
  d_in, d_out, kind, options = LAYERS[name]
  x, mesh, key = whole(2, 4, d_in), mesh_of(), jax.random.key(0)
  use_bias = options.get("use_bias", True)
  want = eqx.nn.Linear(d_in, d_out, use_bias, key=key)
  layer = kind(d_in, d_out, mesh=mesh, key=key, **options)
  assert isinstance(layer, eqx.nn.Linear)
  assert_equal(jax.tree.leaves(layer), jax.tree.leaves(want))
  for name_, spec in layer.specs.items():
    leaf = getattr(layer, name_)
    if leaf is not None:
      sharding = jax.NamedSharding(mesh, spec)
      assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
  f, arrays = applied(wholes(layer))
  g, given = applied(wholes(want), on_tokens)
  got = jit(with_gradients(f))(arrays, x)
  assert_equal(
    jax.tree.leaves(got), jax.tree.leaves(with_gradients(g)(given, x))
  )


def test_a_checkpoint_of_the_original_loads(tmp_path):
  want = eqx.nn.Linear(6, 8, key=jax.random.key(1))
  eqx.tree_serialise_leaves(tmp_path / "layer.eqx", want)
  like = eqx.filter_eval_shape(
    ColumnDense, 6, 8, mesh=mesh_of(), key=jax.random.key(0)
  )
  found = eqx.tree_deserialise_leaves(tmp_path / "layer.eqx", like)
  assert_equal(jax.tree.leaves(found), jax.tree.leaves(want))


def test_under_the_vmap_of_the_original():
  # Over tokens, where features can travel, and over layers, both at once.
  keys = jax.random.split(jax.random.key(0), 3)
  x = whole(3, 4, 8)

  def stacked(kind, **how):
    layers = eqx.filter_vmap(lambda key: kind(8, 8, key=key, **how))(keys)
    each = eqx.filter_vmap(lambda layer, x: jax.vmap(layer)(x))
    return applied(
      wholes(layers), lambda layers: functools.partial(each, layers)
    )

  with jax.set_mesh(mesh_of()):
    f, arrays = stacked(ColumnDense, gather_dim=-1)
    got = jit(with_gradients(f))(arrays, x)
  g, given = stacked(eqx.nn.Linear)
  want = with_gradients(g)(given, x)
  assert_equal(jax.tree.leaves(got), jax.tree.leaves(want))


def test_explicit_axes_and_a_fused_pair():
  keys = jax.random.split(jax.random.key(0))
  x = whole(2, 4, 6)

  def gated(layers, x):
    return ColumnDense.fused(x, *layers, epilogue=jnp.multiply)

  def dense(layers, x):
    gate, up = map(on_tokens, layers)
    return gate(x) * up(x)

  with jax.set_mesh(mesh_of(Explicit)):
    layers = [ColumnDense(6, 8, key=key) for key in keys]
    assert jax.typeof(layers[0].weight).sharding.spec[0] == "model"
    got = jit(with_gradients(gated))(
      wholes(layers), jax.reshard(x, P("data", "model"))
    )
  layers = wholes([eqx.nn.Linear(6, 8, key=key) for key in keys])
  want = with_gradients(dense)(layers, x)
  assert_equal(jax.tree.leaves(got), jax.tree.leaves(want))


def test_manual_axes():
  x, key = whole(2, 4, 8), jax.random.key(0)
  f, arrays = applied(wholes(RowDense(8, 8, key=key)))
  columns = P(None, "model")
  specs = jax.tree.map(lambda a: columns if a.ndim == 2 else P(), arrays)
  g, given = applied(wholes(eqx.nn.Linear(8, 8, key=key)), on_tokens)
  f = jax.shard_map(
    f,
    mesh=mesh_of(),
    in_specs=(specs, P("data", None, "model")),
    out_specs=P("data", "model"),
  )
  got = jit(with_gradients(f))(arrays, x)
  assert_equal(
    jax.tree.leaves(got), jax.tree.leaves(with_gradients(g)(given, x))
  )


@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
def test_dtypes_are_the_originals(dtype, x_dtype):
  x = jax.ShapeDtypeStruct((4, 8), x_dtype)
  want = eqx.nn.Linear(8, 8, True, dtype, key=jax.random.key(0))
  layer = ColumnDense(8, 8, True, dtype, mesh=mesh_of(), key=jax.random.key(0))
  found = [
    [a.dtype for a in jax.tree.leaves(jax.eval_shape(with_gradients(f), *args))]
    for f, *args in (
      (*applied(layer), x),
      (*applied(want, jax.vmap), x),
    )
  ]
  assert found[0] == found[1]


class Block(eqx.Module):
  up: eqx.Module

  def __init__(self, kind, *arguments, **how):
    self.up = kind(*arguments, key=jax.random.key(0), **how)

  def __call__(self, x):
    return self.up(x)


class Model(eqx.Module):
  blocks: list

  def __init__(self, *arguments, **how):
    self.blocks = [Block(*arguments, **how) for _ in range(2)]

  def __call__(self, x):
    return [block(x) for block in self.blocks]


@pytest.mark.parametrize(
  ("arguments", "how", "message"),
  [
    ((ColumnDense, 8, 6), {}, "must divide out_features: 6 is not a multiple"),
    ((RowDense, 6, 8), {}, "must divide in_features: 6 is not a multiple of 4"),
    (
      (RowDense, 8, 6), {"scatter_dim": -1},
      "must divide out_features: 6 is not a multiple of 4",
    ),
    (
      (ColumnDense, 8, 8), {"axis_name": "tensor"},
      r"axis of mesh, \('data', 'model'\), got 'tensor'",
    ),
    (
      (ColumnDense, "scalar", 8), {},
      "features must be a number, got 'scalar' and 8",
    ),
  ],
)  # fmt: skip
def test_errors_while_made_name_the_makers(arguments, how, message):
  kind = arguments[0].__name__
  with pytest.raises(ValueError, match=rf"^Model\.Block\.{kind}: .*{message}"):
    Model(*arguments, mesh=mesh_of(), **how)


def test_errors_of_a_call_name_the_path():
  made = Model(ColumnDense, 8, 8, mesh=mesh_of())
  with pytest.raises(
    ValueError,
    match=r"^Model\.blocks\[0\]\.up \(ColumnDense\): .*must divide dim -2 of x",
  ):
    made(whole(6, 8))
  with pytest.raises(
    ValueError,
    match=r"^Model\.blocks\[0\]\.up \(ColumnDense\): x must have a dim before "
    r"its features, .* or gather_dim=-1, got x.shape=\(8,\)",
  ):
    jax.vmap(made)(whole(4, 8))
  alone = Model(RowDense, 8, 8)
  with pytest.raises(
    ValueError,
    match=r"^Model\.blocks\[0\]\.up \(RowDense\): .*manual here: \(\), got 'mo",
  ):
    alone(whole(4, 8))
