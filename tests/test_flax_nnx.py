import jax
import jax.numpy as jnp
import pytest
from layer_cases import (
  Auto,
  Explicit,
  assert_equal,
  jit,
  mesh_of,
  whole,
  whole_init,
  with_gradients,
)

nnx = pytest.importorskip("flax.nnx")
from collective_mm.flax.nnx import ColumnDense, RowDense  # noqa: E402

P = jax.P
WHOLE = {"kernel_init": whole_init, "bias_init": whole_init}

# Sizes, our layer and its options.
LAYERS = {
  "column": (6, 8, ColumnDense, {}),
  "features": (8, 8, ColumnDense, {"gather_dim": -1, "use_bias": False}),
  "row": (8, 6, RowDense, {"wire_dtype": "float32"}),
  "row_features": (8, 8, RowDense, {"scatter_dim": -1}),
}


def original(d_in, d_out, options, **changes):
  use_bias = options.get("use_bias", True)
  how = {"use_bias": use_bias, **WHOLE, **changes}
  return nnx.Linear(d_in, d_out, rngs=nnx.Rngs(0), **how)


def applied(layer):
  """The layer as a function of its state and `x`, and the state."""
  graph, state = nnx.split(layer)
  return lambda state, x: nnx.merge(graph, state)(x), nnx.to_pure_dict(state)


@pytest.mark.parametrize("name", LAYERS)
def test_tree_draws_values_and_gradients_are_the_originals(name):
  d_in, d_out, kind, options = LAYERS[name]
  x, mesh = whole(2, 4, d_in), mesh_of()
  want = original(d_in, d_out, options)
  layer = kind(d_in, d_out, mesh=mesh, rngs=nnx.Rngs(0), **WHOLE, **options)
  assert isinstance(layer, nnx.Linear)
  state = nnx.state(layer)
  named = nnx.get_named_sharding(state, mesh)
  for leaf, sharding in zip(
    jax.tree.leaves(state), jax.tree.leaves(named), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
  assert "model" in layer.kernel.get_metadata("out_sharding")
  f, drawn = applied(layer)
  g, given = applied(want)
  assert_equal(drawn, given)

  def loaded(f, layer):
    def run(params, x):
      graph, state = nnx.split(layer)
      nnx.replace_by_pure_dict(state, params)
      return nnx.merge(graph, state)(x)

    return with_gradients(run)

  # The original's arrays, as a checkpoint has them.
  assert_equal(jit(loaded(f, layer))(given, x), loaded(g, want)(given, x))


@pytest.mark.parametrize("kinds", [(Explicit, Explicit), (Auto, Explicit)])
def test_explicit_axes_and_a_fused_pair(kinds):
  mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=kinds)
  x = whole(2, 4, 6)

  class Pair(nnx.Module):
    def __init__(self, layer):
      self.gate = layer(6, 8, rngs=nnx.Rngs(0), **WHOLE)
      self.up = layer(6, 8, rngs=nnx.Rngs(1), **WHOLE)

    def __call__(self, x):
      if isinstance(self.gate, ColumnDense):
        return ColumnDense.fused(x, self.gate, self.up, epilogue=jnp.multiply)
      return self.gate(x) * self.up(x)

  want, state = applied(Pair(nnx.Linear))
  expected = with_gradients(want)(state, x)
  with jax.set_mesh(mesh):
    pair = nnx.jit(Pair, static_argnums=0)(ColumnDense)
    graph, own = nnx.split(pair)
    run = with_gradients(lambda state, x: nnx.merge(graph, state)(x))
    if kinds[0] == Auto:  # Flax does not place arrays on such a mesh
      own = jax.tree.map(
        lambda a: jax.reshard(a, P(*[None] * (a.ndim - 1), "model")), own
      )
      x = jax.reshard(x, P(None, "model"))
    else:
      x = jax.reshard(x, P("data", "model"))
    got = jit(run)(own, x)
  y, (dstate, dx) = got
  assert_equal((y, (nnx.to_pure_dict(dstate), dx)), expected)


def test_manual_axes():
  mesh, x = mesh_of(), whole(2, 4, 8)
  want = original(8, 8, {})
  layer = RowDense(8, 8, rngs=nnx.Rngs(0), **WHOLE)
  graph, state = nnx.split(layer)
  specs = jax.tree.map(
    lambda a: P("model") if a.ndim == 2 else P(), nnx.to_pure_dict(state)
  )

  def per_device(params, x):
    own = jax.tree.map(lambda a: a, state)
    nnx.replace_by_pure_dict(own, params)
    return nnx.merge(graph, own)(x)

  f = jax.shard_map(
    per_device,
    mesh=mesh,
    in_specs=(specs, P("data", None, "model")),
    out_specs=P("data", "model"),
  )
  assert_equal(jit(f)(nnx.to_pure_dict(state), x), want(x))


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_dtypes_are_the_originals(dtype, param_dtype):
  how = {"dtype": dtype, "param_dtype": param_dtype}
  layers = (
    original(8, 8, {}, **how),
    ColumnDense(8, 8, mesh=mesh_of(), rngs=nnx.Rngs(0), **how),
  )
  for x_dtype in ("float32", "bfloat16"):
    x = jax.ShapeDtypeStruct((4, 8), x_dtype)
    found = [
      jax.tree.map(
        lambda a: a.dtype,
        jax.eval_shape(with_gradients(f), state, x),
      )
      for f, state in map(_of_params, layers)
    ]
    assert found[0] == found[1]


def _of_params(layer):
  graph, state = nnx.split(layer)

  def run(params, x):
    own = jax.tree.map(lambda a: a, state)
    nnx.replace_by_pure_dict(own, params)
    return nnx.merge(graph, own)(x)

  return run, nnx.to_pure_dict(state)


class Block(nnx.Module):
  def __init__(self, kind, d_in, d_out, **how):
    self.up = kind(d_in, d_out, rngs=nnx.Rngs(0), **how)

  def __call__(self, x):
    return self.up(x)


class Model(nnx.Module):
  def __init__(self, *arguments, **how):
    self.blocks = nnx.List([Block(*arguments, **how) for _ in range(2)])

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
  alone = Model(RowDense, 8, 8)
  with pytest.raises(
    ValueError,
    match=r"^Model\.blocks\[0\]\.up \(RowDense\): .*manual here: \(\), got 'mo",
  ):
    alone(whole(4, 8))
  pair = (
    ColumnDense(8, 8, rngs=nnx.Rngs(0)),
    (ColumnDense(8, 8, use_bias=False, rngs=nnx.Rngs(0))),
  )
  with pytest.raises(ValueError, match=r"^ColumnDense: .* a bias, or none"):
    ColumnDense.fused(whole(4, 8), *pair)
