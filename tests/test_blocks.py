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

from collective_mm.blocks import (
  tp_attend,
  tp_attention_projections,
  tp_mlp,
)

P = jax.P


def layer(*shape, bias=None, seed=0):
  params = {"kernel": whole(*shape, seed=seed)}
  return params if bias is None else params | {"bias": whole(*bias, seed=9)}


def dense(params, x, contract=1):
  y = jnp.tensordot(x, params["kernel"], contract)
  return y + params["bias"] if "bias" in params else y


def square(x):  # exact, unlike a GELU
  return x * x


MLPS = {
  "plain": {"up": layer(6, 8, bias=(8,)), "down": layer(8, 6, bias=(6,))},
  "gated": {
    "gate": layer(6, 8, seed=1), "up": layer(6, 8, bias=(8,), seed=2),
    "down": layer(8, 6, seed=3),
  },
}  # fmt: skip


def plain_mlp(params, x):
  h = dense(params["up"], x)
  gated = "gate" in params
  h = square(dense(params["gate"], x)) * h if gated else square(h)
  return dense(params["down"], h)


def halved(tree):
  return jax.tree.map(lambda a: jnp.clip(a, -1, 1), tree)


@pytest.mark.parametrize("name", MLPS)
def test_mlp(name):
  # Numbers of at most 1: fourth powers of sums stay exact.
  params, x = halved(MLPS[name]), halved(whole(2, 4, 6))
  f = functools.partial(tp_mlp, activation=square, mesh=mesh_of())
  assert_equal(
    jit(with_gradients(f))(params, x), with_gradients(plain_mlp)(params, x)
  )


def test_mlp_on_explicit_axes_and_inside_shard_map():
  params, x = halved(MLPS["gated"]), halved(whole(2, 4, 6))
  columns = {"kernel": P(None, "model"), "bias": P("model")}
  specs = {
    name: {
      leaf: P("model") if name == "down" else columns[leaf] for leaf in layer
    }
    for name, layer in params.items()
  }
  f = functools.partial(tp_mlp, activation=square)
  mesh = mesh_of(Explicit)
  with jax.set_mesh(mesh):
    got = jit(f)(
      jax.tree.map(jax.reshard, params, specs),
      jax.reshard(x, P("data", "model")),
    )
    assert got.sharding.spec == P("data", "model", None)
  assert_equal(got, plain_mlp(params, x))
  rows = P("data", "model")
  f = jax.shard_map(f, mesh=mesh_of(), in_specs=(specs, rows), out_specs=rows)
  assert_equal(jit(f)(params, x), plain_mlp(params, x))


def attention(kv_heads):
  return {
    "query": layer(6, 8, 2, bias=(8, 2)),
    "key": layer(6, kv_heads, 2, seed=1),
    "value": layer(6, kv_heads, 2, bias=(kv_heads, 2), seed=2),
    "out": layer(8, 2, 6, bias=(6,), seed=3),
  }


def attend(q, k, v):
  """Of each query with its own position's key; exact, and of its own head."""
  times = q.shape[-2] // k.shape[-2]
  k, v = (jnp.repeat(a, times, axis=-2) for a in (k, v))
  return q * k + v


def plain_attention(params, x):
  qkv = (dense(params[name], x) for name in ("query", "key", "value"))
  return dense(params["out"], attend(*qkv), contract=2)


@pytest.mark.parametrize("kv_heads", [8, 4, 2, 1])
def test_attention_projections(kv_heads):
  params, x = halved(attention(kv_heads)), halved(whole(2, 4, 6))
  seen = []

  def attend_and_see(q, k, v):
    seen.append((q.shape[-2], k.shape[-2], v.shape[-2]))
    return attend(q, k, v)

  f = functools.partial(
    tp_attention_projections, attend=attend_and_see, mesh=mesh_of()
  )
  assert_equal(
    jit(with_gradients(lambda params, x: f(params, x)))(params, x),
    with_gradients(plain_attention)(params, x),
  )
  # Fewer heads than devices are replicated: one on each.
  assert set(seen) == {(2, max(kv_heads // 4, 1), max(kv_heads // 4, 1))}


def attend_flat(q, k):
  """Of heads of two features; a query adds what its head of keys holds."""
  q, k = (y.reshape(*y.shape[:-1], -1, 2) for y in (q, k))
  times = q.shape[-2] // k.shape[-2]
  y = q * jnp.repeat(k, times, axis=-2)
  return y.reshape(*y.shape[:-2], -1)


def test_attend_sees_the_heads_of_one_device():
  q, k, seen = whole(2, 3, 16), whole(2, 3, 8, seed=1), []

  def attend_and_see(q, k):
    seen.append((q.shape, k.shape))
    return attend_flat(q, k)

  mesh = mesh_of()
  f = with_gradients(lambda q, k: tp_attend(attend_and_see, q, k, mesh=mesh))
  want = with_gradients(attend_flat)(q, k)
  assert_equal(jit(f)(q, k), want)
  # The batch is sharded over the data axis, as in the layers.
  assert set(seen) == {((1, 3, 4), (1, 3, 2))}
  with jax.set_mesh(mesh_of(Explicit)):
    spec = P("data", None, "model")
    got = jit(lambda q, k: tp_attend(attend_flat, q, k))(
      jax.reshard(q, spec), jax.reshard(k, spec)
    )
    assert got.sharding.spec == spec
  assert_equal(got, want[0])


@pytest.mark.parametrize("axis", ["model", "data"])
def test_attend_inside_shard_map(axis):
  q, k, mesh = whole(2, 3, 16), whole(2, 3, 8, seed=1), mesh_of()
  spec = P("data") if axis == "data" else P(None, None, "model")
  f = jax.shard_map(
    functools.partial(
      tp_attend, attend_flat, mesh=mesh if axis == "data" else None
    ),
    mesh=mesh,
    axis_names={axis},
    in_specs=spec,
    out_specs=spec,
  )
  want = with_gradients(attend_flat)(q, k)
  assert_equal(jit(with_gradients(f))(q, k), want)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_inside_shard_map_over_the_data_alone(kv_heads):
  params = {"attention": attention(kv_heads), "mlp": MLPS["gated"]}
  params, x = halved(params), halved(whole(2, 4, 6))
  mesh = mesh_of()

  def ours(params, x):
    y = tp_attention_projections(params["attention"], x, attend, mesh=mesh)
    z = tp_mlp(params["mlp"], x, activation=square, mesh=mesh)
    return y, z

  def plain(params, x):
    return plain_attention(params["attention"], x), plain_mlp(params["mlp"], x)

  f = jax.shard_map(
    ours,
    mesh=mesh,
    axis_names={"data"},
    in_specs=(P(), P("data")),
    out_specs=P("data"),
  )
  assert_equal(
    jit(with_gradients(f))(params, x), with_gradients(plain)(params, x)
  )


def test_attention_projections_inside_shard_map():
  params, x = halved(attention(4)), halved(whole(2, 4, 6))
  specs = {
    name: {
      "kernel": P("model") if name == "out" else P(None, "model"),
      "bias": P() if name == "out" else P("model"),
    }
    for name in params
  }
  specs = {n: {leaf: specs[n][leaf] for leaf in params[n]} for n in params}
  rows = P("data", "model")
  f = jax.shard_map(
    functools.partial(tp_attention_projections, attend=attend),
    mesh=mesh_of(),
    in_specs=(specs, rows),
    out_specs=rows,
  )
  assert_equal(jit(f)(params, x), plain_attention(params, x))


@pytest.mark.parametrize(
  ("heads", "kv_heads", "tokens", "message"),
  [
    (6, 2, 4, "'model' must divide the heads of query: 6 heads, 4 devices"),
    (8, 3, 4, "divide, or be a multiple of, the heads of key: 3 heads, 4 dev"),
    (8, 2, 6, "'model' must divide dim -2 of x: 6 is not a multiple of 4"),
  ],
)
def test_bad_sizes_are_named(heads, kv_heads, tokens, message):
  params = attention(kv_heads) | {"query": layer(6, heads, 2)}
  with pytest.raises(ValueError, match=message):
    tp_attention_projections(
      params, whole(2, tokens, 6), attend, mesh=mesh_of()
    )


def test_bad_axes_are_named():
  with pytest.raises(ValueError, match="must divide features: 6 is not a mul"):
    tp_attend(attend_flat, whole(2, 3, 6), whole(2, 3, 8), mesh=mesh_of())
  with pytest.raises(ValueError, match=r"mesh, \('data', 'model'\), got 't'"):
    tp_mlp(
      MLPS["plain"], whole(4, 6), activation=square, mesh=mesh_of(),
      axis_name="t",
    )  # fmt: skip
  with pytest.raises(ValueError, match=r"manual here: \(\), got 'model'"):
    tp_mlp(MLPS["plain"], whole(4, 6), activation=square)
