"""Values and gradients of the prefetched stack, what it sends and keeps.

All numbers are small integers, whose sums float32 holds exactly in any order:
equal means equal bit for bit.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import Partial, keystr
from jaxpr_walk import equations, kept_by_forward

from collective_mm import (
  all_gather_matmul,
  make_mesh,
  matmul_reduce_scatter,
  prefetch_scan,
)

P = jax.P
WIDTH, HIDDEN, ROWS = 16, 32, 16
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


def draw(rng, *shape):
  return rng.choice([-1, 0, 0, 0, 0, 0, 0, 1], size=shape).astype(np.float32)


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


@functools.cache
def some_x(*lead):
  return draw(np.random.default_rng(1), *lead, ROWS, WIDTH)


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


def loss_of(out):
  return jnp.sum(out * (jnp.arange(out.size) % 3 - 1.0).reshape(out.shape))


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


def assert_equal(got, want):
  def compare(path, a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b, err_msg=keystr(path))

  jax.tree_util.tree_map_with_path(compare, got, want)


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


# A stack without rings, on eight devices of the data axis.
LENGTH = 3
DENSE_SPECS = {
  "w": P(None, "data", None),
  "b": P(None, "data"),
  "c": P(None, "data"),
  "scale": P(),
}


def dense_params(length=LENGTH):
  rng = np.random.default_rng(2)
  return {
    "w": draw(rng, length, WIDTH, WIDTH),
    "b": draw(rng, length, WIDTH),
    "c": draw(rng, length, WIDTH),
    "scale": draw(rng, length, WIDTH),
  }


def dense(params, x):
  w = jax.tree.map(lambda w: w.astype(x.dtype), params)
  return jax.nn.relu(x @ w["w"] + w["b"]) * w["scale"] + w["c"]


def on_data(run, *, out_specs=None, check_vma=True, x_spec=None):
  """`run(params, x)` over eight devices of the data axis."""
  x_spec = P("data") if x_spec is None else x_spec
  return jax.shard_map(
    run,
    mesh=make_mesh(data=8, model=1),
    in_specs=(DENSE_SPECS, x_spec),
    out_specs=x_spec if out_specs is None else out_specs,
    check_vma=check_vma,
  )


def dense_scan(params, x, of=dense, **options):
  return prefetch_scan(of, x, params, specs=DENSE_SPECS, **options)


def gradient_of(scan):
  return jax.grad(lambda params, x: loss_of(scan(params, x)))


def jaxpr_of_gradient(**options):
  run = gradient_of(functools.partial(dense_scan, **options))
  mapped = on_data(run, out_specs=DENSE_SPECS)
  return jax.make_jaxpr(mapped)(dense_params(), some_x())


@pytest.fixture
def w_is_large(monkeypatch):
  monkeypatch.setattr("collective_mm.weights.SMALL", 2 * WIDTH * 2)


def sends(jaxpr, *kinds):
  return [e for e in equations(jaxpr) if e.primitive.name in kinds]


def test_what_travels_in_what_dtype(w_is_large):
  jaxpr = jaxpr_of_gradient()
  gathers = sends(jaxpr, "all_gather")
  # The small b and c share one; before the loop and in it, and the same in
  # backward.
  assert len(gathers) == 2 * 2 * 2
  assert {e.invars[0].aval.dtype for e in gathers} == {jnp.dtype(jnp.bfloat16)}
  scatters = sends(jaxpr, "reduce_scatter")
  assert len(scatters) == 2 * 2
  assert {e.invars[0].aval.dtype for e in scatters} == {np.dtype("float32")}
  # What lies whole is summed once, after the loop: the whole stack of it.
  (total,) = sends(jaxpr, "psum_invariant")
  assert [v.aval.shape for v in total.invars] == [(LENGTH, WIDTH)]
  scans = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
  assert len(scans) == 2
  assert not any(sends(e.params["jaxpr"], "psum_invariant") for e in scans)


def test_a_ring_is_permutes_alone(w_is_large):
  jaxpr = jaxpr_of_gradient(backend="ring")
  assert not sends(jaxpr, "all_gather", "reduce_scatter")
  permutes = sends(jaxpr, "ppermute")
  # Seven steps both ways, of two arrays, in 4 gathers and 2 reductions.
  assert len(permutes) == 7 * 2 * 2 * (4 + 2)
  dtypes = [str(e.invars[0].aval.dtype) for e in permutes]
  assert dtypes.count("bfloat16") == 7 * 2 * 2 * 4
  assert dtypes.count("float32") == 7 * 2 * 2 * 2


def test_keeps_the_carry_of_each_layer_alone():
  assert kept_by_forward(jaxpr_of_gradient()) == [(ROWS // 8, WIDTH)]

  def body(x, params):  # jax's own keeps the gathered weights
    whole = lax.all_gather(params["w"], "data", axis=0, tiled=True)
    return jax.nn.relu(x @ whole), None

  plain = gradient_of(lambda params, x: lax.scan(body, x, params)[0])
  mapped = on_data(plain, out_specs=DENSE_SPECS)
  jaxpr = jax.make_jaxpr(mapped)(dense_params(), some_x())
  assert (WIDTH, WIDTH) in kept_by_forward(jaxpr)


def both(stack, plain, *args, in_specs, out_specs, check_vma=True):
  """Outputs and gradients of `stack` on eight devices and of `plain` on one."""
  mapped = jax.shard_map(
    stack,
    mesh=make_mesh(data=8, model=1),
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=check_vma,
  )

  def run(of):
    @functools.partial(jax.jit, static_argnums=0)
    def grad(of, args):
      def loss(args):
        out = of(*args)
        floats = [x for x in jax.tree.leaves(out) if x.dtype == np.float32]
        return sum(loss_of(x) for x in floats), out

      return jax.grad(loss, has_aux=True)(args)

    return grad(of, args)

  got, want = run(mapped), run(plain)
  assert any(np.any(leaf) for leaf in jax.tree.leaves(want[0]))
  assert_equal(got, want)


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


def test_microbatches_share_gathers_and_reductions(w_is_large):
  def run(params, x):
    return dense_scan(params, x, hold_across_microbatches=True)

  mapped = on_data(
    gradient_of(run), out_specs=DENSE_SPECS, x_spec=P(None, "data")
  )
  jaxpr = jax.make_jaxpr(mapped)(dense_params(), some_x(4))
  assert len(sends(jaxpr, "all_gather")) == 2 * 2 * 2
  assert len(sends(jaxpr, "reduce_scatter")) == 2 * 2


def test_a_layer_may_keep_what_its_policy_names():
  policy = jax.checkpoint_policies.nothing_saveable
  of = jax.checkpoint(dense, policy=policy)
  both(
    functools.partial(dense_scan, of=of, gather_dtype=None),
    lambda params, x: lax.scan(lambda x, p: (dense(p, x), None), x, params)[0],
    dense_params(),
    some_x(),
    in_specs=(DENSE_SPECS, P("data")),
    out_specs=P("data"),
  )


def run_with(params=None, specs=None, x=None, axis_name="data", **options):
  params = dense_params() if params is None else params
  specs = DENSE_SPECS if specs is None else specs

  def run(params, x):
    return prefetch_scan(
      dense, x, params, specs=specs, axis_name=axis_name, **options
    )

  return jax.eval_shape(
    jax.shard_map(
      run,
      mesh=make_mesh(data=2, model=4),
      in_specs=P(),
      out_specs=P(),
      check_vma=False,
    ),
    params,
    some_x() if x is None else x,
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"params": dense_params() | {"w": np.ones((4, 8, 8))}},
      r"stacked_params\['w'\] must have a leading dim of 3 layers as "
      r"stacked_params\['b'\] has, got shape \(4, 8, 8\)",
    ),
    (
      {"params": dense_params() | {"b": np.float32(1)}},
      r"stacked_params\['b'\] must have a leading dim of at least one layer, "
      r"got shape \(\)",
    ),
    (
      {"params": dense_params(length=0)},
      r"at least one layer, got shape \(0, 16\)",
    ),
    ({"params": {}, "specs": {}}, "at least one leaf, got none"),
    (
      {"xs": {"rate": np.ones(4)}},
      r"xs\['rate'\] must have a leading dim of 3 layers",
    ),
    (
      {"specs": {"w": P(), "b": P(), "c": P()}},
      r"stacked_params\['scale'\] is not in specs",
    ),
    (
      {"specs": DENSE_SPECS | {"v": P()}},
      r"specs\['v'\] is not in stacked_params",
    ),
    (
      {"specs": DENSE_SPECS | {"w": None}},
      r"specs\['w'\] must be a PartitionSpec of at most 3 dims, got None",
    ),
    (
      {"specs": DENSE_SPECS | {"b": P(None, None, "data")}},
      r"specs\['b'\] must be a PartitionSpec of at most 2 dims",
    ),
    (
      {"specs": DENSE_SPECS | {"w": P("data")}},
      r"specs\['w'\] must name data in one dim after that of layers",
    ),
    (
      {"specs": DENSE_SPECS | {"w": P(None, ("data", "model"))}},
      r"specs\['w'\] must name data in one dim .* last of its axes there",
    ),
    (
      {
        "specs": DENSE_SPECS | {"w": P(None, "model"), "b": P(), "c": P()},
        "axis_name": ("data", "model"),
      },
      r"specs\['w'\] must name data, model in one dim",
    ),
    ({"axis_name": "rows"}, "axis_name must be an axis of the jax.shard_map"),
    ({"distance": -1}, "distance must be a whole number from 0, got -1"),
    ({"distance": 1.0}, "distance must be a whole number from 0, got 1.0"),
    ({"backend": "fast"}, "backend must be one of auto, native, ring"),
    ({"backend": ("ring",)}, r"or a pair \(gathers, reductions\)"),
    (
      {
        "hold_across_microbatches": True,
        "x": {"a": np.ones((2, 3)), "b": np.ones(3)},
      },
      r"carry\['b'\] must have a leading dim of 2 microbatches, got shape "
      r"\(3,\)",
    ),
    (
      {"hold_across_microbatches": True, "x": np.float32(1)},
      "carry must have a leading dim of at least one microbatches",
    ),
  ],
)
def test_says_what_does_not_fit(changes, message):
  with pytest.raises(ValueError, match=message):
    run_with(**changes)


def test_an_axis_that_does_not_divide_a_leaf_is_named():
  # jax.shard_map's own message: inside, a shard is whatever came.
  params = dense_params() | {"w": np.ones((LENGTH, WIDTH + 1, WIDTH))}
  with pytest.raises(ValueError, match=r"not evenly divisible[\s\S]*\['w'\]"):
    on_data(dense_scan)(params, some_x())


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
