"""Values and gradients of the prefetched stack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import Partial, keystr
from stack_cases import (
  DENSE_SPECS,
  LENGTH,
  WIDTH,
  assert_equal,
  both,
  dense,
  dense_params,
  dense_scan,
  draw,
  loss_of,
  some_x,
)

from collective_mm import (
  all_gather_matmul,
  make_mesh,
  matmul_reduce_scatter,
  prefetch_scan,
)

P = jax.P
HIDDEN = 32
X = P(("data", "model"))  # rows of x[B_dm, D]
SPECS = {
  "norm": {"scale": P()},  # whole on every device
  "up": P(None, "data", "model"),
  "down": P(None, ("model", "data"), None),
  "wide": P(None, None, "data"),  # cut in a minor dim
  "bias": P(None, "data"),
  "step": P(),  # has no gradient
}


@functools.cache
def mesh():
  return make_mesh(data=2, model=4)


@functools.cache
def some_params(length):
  rng = np.random.default_rng(0)
  return {
    "norm": {"scale": rng.choice([1, 1, 2], size=(length, WIDTH)) * 1.0},
    "up": draw(rng, length, WIDTH, HIDDEN),
    "down": draw(rng, length, HIDDEN, WIDTH),
    "wide": draw(rng, length, WIDTH, WIDTH),
    "bias": draw(rng, length, WIDTH),
    "step": np.arange(length, dtype=np.int32),
  }


def layer(params, x, *, ring=True):
  """x[B_dm, D] -> x[B_dm, D], by rings over the model axis if asked."""
  w = jax.tree.map(
    lambda w: w.astype(x.dtype) if jnp.isdtype(w.dtype, "real floating") else w,
    params,
  )
  y = x * w["norm"]["scale"] + w["bias"] + (w["step"] % 2).astype(x.dtype)
  if ring:
    hidden = all_gather_matmul(
      y, w["up"], axis_name="model", gather_dim=0, schedule="two_way"
    )
    out = matmul_reduce_scatter(
      jax.nn.relu(hidden),
      w["down"],
      axis_name="model",
      scatter_dim=0,
      schedule="two_way",
    )
  else:
    out = jax.nn.relu(y @ w["up"]) @ w["down"]
  return out + jax.nn.relu(x @ w["wide"])


plain_layer = functools.partial(layer, ring=False)


def prefetched(**options):
  return lambda x, params: prefetch_scan(
    layer, x, params, specs=SPECS, **options
  )


def gathering_scan(x, params, dtype=jnp.bfloat16):
  """What one would write without the library."""

  def body(x, params):
    def whole(shard, spec):
      cut = [i for i, axes in enumerate(spec) if axes and "data" in axes]
      if not cut:
        return shard
      return lax.all_gather(
        shard.astype(dtype), "data", axis=cut[0] - 1, tiled=True
      )

    return layer(jax.tree.map(whole, params, SPECS), x), None

  return lax.scan(body, x, params)[0]


def results(stack, length, *, x=None, on_mesh=True, check_vma=True, specs=X):
  """The output, and the gradients of a loss, of `stack(x, params)`."""
  if on_mesh:
    stack = jax.shard_map(
      stack,
      mesh=mesh(),
      in_specs=(specs, SPECS),
      out_specs=specs,
      check_vma=check_vma,
    )

  @jax.jit
  @functools.partial(
    jax.value_and_grad, argnums=(0, 1), has_aux=True, allow_int=True
  )
  def run(params, x):
    out = stack(x, params)
    return loss_of(out), out

  (loss, out), (dparams, dx) = run(
    some_params(length), some_x() if x is None else x
  )
  del dparams["step"]
  got = {"loss": loss, "out": out, "params": dparams, "x": dx}
  for path, leaf in jax.tree_util.tree_leaves_with_path(got):
    assert 0 < np.abs(leaf).max() < 2**24, (keystr(path), np.abs(leaf).max())
  return got


@functools.cache
def wanted(length):
  """Those of a plain scan over whole weights, on one device."""

  def stack(x, params):
    return lax.scan(lambda x, p: (plain_layer(p, x), None), x, params)[0]

  return results(stack, length, on_mesh=False)


@pytest.mark.parametrize(
  ("length", "options"),
  [
    (1, {"distance": 1}),
    (2, {"distance": 1, "backend": "ring"}),
    (3, {"distance": 0, "gather_dtype": None}),
    (3, {"distance": 1, "gather_dtype": None, "backend": "native"}),
    (3, {"distance": 2, "gather_dtype": None, "backend": ("native", "ring")}),
    (5, {"distance": 1, "gather_dtype": jnp.float32}),
  ],
)
@pytest.mark.parametrize("check_vma", [True, False])
def test_equals_a_plain_scan_over_whole_weights(length, options, check_vma):
  got = results(prefetched(**options), length, check_vma=check_vma)
  assert_equal(got, wanted(length))


@pytest.mark.parametrize("backend", ["native", "ring"])
def test_rounds_weights_before_they_travel_and_sums_in_float32(backend):
  got = results(prefetched(backend=backend, distance=1), 5)
  assert_equal(got, results(prefetched(backend="native", distance=0), 5))
  want = results(gathering_scan, 5)
  assert_equal([got["out"], got["x"]], [want["out"], want["x"]])
  for name in ("up", "down"):  # autodiff rounds the sums too
    rounded = got["params"][name].astype(jnp.bfloat16).astype(jnp.float32)
    assert np.any(rounded != got["params"][name])
    np.testing.assert_array_equal(rounded, want["params"][name])


def plain(params, x):
  """The stack over whole weights, on one device."""
  return lax.scan(lambda x, p: (dense(p, x), None), x, params)[0]


@pytest.mark.parametrize(
  ("rings", "backend", "length", "distance"),
  [
    ((2, 2, 2), "ring", 5, 1),
    ((4, 2), "ring", 2, 1),  # fewer layers than stages
    ((2, 2, 2), ("native", "ring"), 1, 1),
    ((2, 4), "ring", 3, 2),
    ((8,), "ring", 3, 0),
    # Stages that do not go from the outermost ring inwards.
    (((2, 4), (2, 1), (2, 2)), "ring", 3, 1),
    (((4, 2), (2, 1)), ("native", "ring"), 2, 1),
  ],
)
@pytest.mark.parametrize("exchange", [1, 8])
def test_rings_within_rings(
  monkeypatch, rings, backend, length, distance, exchange
):
  monkeypatch.setattr("collective_mm.weights.EXCHANGE", exchange)
  both(
    functools.partial(
      dense_scan,
      rings=rings,
      backend=backend,
      distance=distance,
      gather_dtype=None,
    ),
    plain,
    dense_params(length),
    some_x(),
    in_specs=(DENSE_SPECS, P("data")),
    out_specs=P("data"),
  )


@pytest.mark.parametrize("distance", [0, 1, 2])
def test_aux_and_xs_go_layer_by_layer(distance):
  keys = jax.random.split(jax.random.key(3), LENGTH)

  def noisy(params, carry, x, axes=()):
    y, count = carry
    key, rate = x
    y = dense(params, y) * rate + jax.random.randint(key, (WIDTH,), 0, 3)
    return (y, count + 1), {"sum": lax.psum(y.sum(), axes), "count": count}

  def stack(params, x, rates):
    return prefetch_scan(
      functools.partial(noisy, axes="data"),
      (x, jnp.int32(5)),
      params,
      specs=DENSE_SPECS,
      xs=(keys, rates),
      has_aux=True,
      distance=distance,
      gather_dtype=None,
    )

  def plain(params, x, rates):
    def body(carry, each):
      return noisy(each[0], carry, each[1])

    return lax.scan(body, (x, jnp.int32(5)), (params, (keys, rates)))

  both(
    stack,
    plain,
    dense_params(),
    some_x(),
    np.array([1.0, 2.0, 3.0], np.float32),
    in_specs=(DENSE_SPECS, P("data"), P()),
    out_specs=((P("data"), P()), P()),
  )


@pytest.mark.parametrize("check_vma", [True, False])
def test_layers_may_share_arrays(check_vma):
  def shifted(shift, params, x, *, factor):
    return dense(params, x) * factor + shift

  def stack(params, x, shift, factor):
    of = Partial(shifted, shift, factor=factor)
    return dense_scan(params, x, of=of, gather_dtype=None)

  def plain(params, x, shift, factor):
    def body(x, params):
      return shifted(shift, params, x, factor=factor), None

    return lax.scan(body, x, params)[0]

  both(
    stack,
    plain,
    dense_params(),
    some_x(),
    np.arange(WIDTH, dtype=np.float32),
    np.float32(2),
    in_specs=(DENSE_SPECS, P("data"), P(), P()),
    out_specs=P("data"),
    check_vma=check_vma,
  )


@pytest.mark.parametrize("distance", [0, 1])
def test_holds_weights_across_microbatches(distance):
  def scaled(params, carry, rate):
    y = dense(params, carry["y"]) * rate
    return {"y": y, "count": carry["count"] + 1}, 2 * y

  def stack(params, x, rates):
    carry = {"y": x, "count": jnp.zeros(len(x), jnp.int32)}
    return prefetch_scan(
      scaled,
      carry,
      params,
      specs=DENSE_SPECS,
      xs=rates,
      has_aux=True,
      distance=distance,
      gather_dtype=None,
      hold_across_microbatches=True,
    )

  def plain(params, x, rates):
    def one(x):
      def body(carry, each):
        return scaled(each[0], carry, each[1])

      carry = {"y": x, "count": jnp.int32(0)}
      return lax.scan(body, carry, (params, rates))

    return jax.vmap(one, out_axes=(0, 1))(x)

  x = some_x(2)
  carry = {"y": P(None, "data"), "count": P()}
  both(
    stack,
    lambda *args: plain(*args),
    dense_params(),
    x,
    np.array([1.0, 2.0, 1.0], np.float32),
    in_specs=(DENSE_SPECS, P(None, "data"), P()),
    out_specs=(carry, P(None, None, "data")),
  )


def test_a_layer_may_keep_what_its_policy_names():
  policy = jax.checkpoint_policies.nothing_saveable
  of = jax.checkpoint(dense, policy=policy)
  both(
    functools.partial(dense_scan, of=of, gather_dtype=None),
    plain,
    dense_params(),
    some_x(),
    in_specs=(DENSE_SPECS, P("data")),
    out_specs=P("data"),
  )


def test_an_axis_may_be_two():
  specs = DENSE_SPECS | {"w": P(None, ("data", "model")), "b": P(), "c": P()}

  def mapped(axis_name, distance):
    def run(params, x):
      return prefetch_scan(
        dense,
        x,
        params,
        specs=specs,
        axis_name=axis_name,
        distance=distance,
        gather_dtype=None,
        backend="ring",
      )

    return jax.shard_map(run, mesh=mesh(), in_specs=(specs, X), out_specs=X)

  got = jax.jit(mapped(("data", "model"), 1))(dense_params(), some_x())
  want = some_x()
  for params in zip(*(dense_params()[name] for name in specs), strict=True):
    want = dense(dict(zip(specs, params, strict=True)), want)
  assert_equal(got, want)


def test_a_layer_may_draw_again_in_backward():
  @jax.checkpoint  # keeps the key, which is no number
  def layer(params, y, key):
    kept = jax.random.bernoulli(key, 0.5, y.shape)
    return jnp.where(kept, dense(params, y), y)

  def gradients(distance):
    def loss(params, x):
      y = prefetch_scan(
        layer,
        x,
        params,
        specs=DENSE_SPECS,
        xs=jax.random.split(jax.random.key(3), LENGTH),
        distance=distance,
        gather_dtype=None,
        backend="ring",
      )
      return lax.psum((y**2).sum(), "data")

    mapped = jax.shard_map(
      jax.grad(loss),
      mesh=mesh(),
      in_specs=(DENSE_SPECS, P("data")),
      out_specs=DENSE_SPECS,
    )
    return jax.jit(mapped)(dense_params(), some_x())

  jax.tree.map(assert_equal, gradients(1), gradients(0))
