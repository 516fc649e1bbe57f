"""An epilogue is what is done to the product afterwards, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_cases import quick_compilation, tolerance

from collective_mm import all_gather_matmul, make_mesh

Partial = jax.tree_util.Partial
SIZE, ROWS, INNER, OUTER = 4, (3, 8), 8, 8
SPECS = {
  0: jax.P("model"),
  1: jax.P(None, "model"),
  -1: jax.P(None, None, "model"),
}
COLUMNS = jax.P(None, "model")


def drawn(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def inputs(dim, weights=1):
  rows = (SIZE, *ROWS[1:]) if dim == 0 else ROWS
  x = drawn(*rows, INNER)
  return x, tuple(drawn(INNER, OUTER, seed=i + 1) for i in range(weights))


def sharded(per_device, dim, *, weights=1, extra=(), out, check_vma=True):
  """`per_device(x, ws, *extra)` on the ring, compiled."""
  mesh = make_mesh(data=1, model=SIZE, devices=jax.devices()[:SIZE])
  return jax.jit(
    jax.shard_map(
      per_device,
      mesh=mesh,
      in_specs=(SPECS[dim], (COLUMNS,) * weights, *extra),
      out_specs=out,
      check_vma=check_vma,
    ),
    compiler_options=quick_compilation(),
  )


def silu_gate(gate, up):
  return jax.nn.silu(gate) * up


def split_heads(y):
  return y.reshape(*y.shape[:-1], -1, 2)


def norm_and_mask(y):
  """A pytree of three: one leaf keeps `y`, one has no features, one is bool."""
  mean = y.mean(axis=-1)
  return {"y": y - mean[..., None], "mean": mean, "mask": y > 0}


LAST = jax.P(None, None, "model")
EPILOGUES = {
  "gelu": (jax.nn.gelu, 1, LAST),
  "gate": (silu_gate, 2, LAST),
  "heads": (split_heads, 1, LAST),
  "pytree": (
    norm_and_mask,
    1,
    # Every device has a mean of its own: `[None]` features would not add up.
    {"y": LAST, "mean": jax.P("model"), "mask": LAST},
  ),
}


@pytest.mark.parametrize("schedule", ["unoverlapped", "async", "two_way"])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("name", EPILOGUES)
def test_equals_the_same_after_the_op(name, dim, schedule):
  epilogue, weights, out = EPILOGUES[name]
  op = functools.partial(
    all_gather_matmul, axis_name="model", gather_dim=dim, schedule=schedule
  )

  def both(x, ws):
    return op(x, ws, epilogue=epilogue), epilogue(*op(x, ws))

  run = sharded(both, dim, weights=weights, out=(out, out))
  inside, after = run(*inputs(dim, weights))
  jax.tree.map(np.testing.assert_array_equal, inside, after)
  assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(after))


def scaled(scale, bias, y, z):
  return jnp.tanh(y * scale) + z, split_heads(z * bias["z"])


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("dw", ["regather", "save"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gradients_equal_those_after_the_op(dim, dw, check_vma):
  x, ws = inputs(dim, weights=2)
  scale, bias = drawn(OUTER, seed=7), {"z": drawn(OUTER, seed=8)}
  spec = jax.P("model")
  op = functools.partial(
    all_gather_matmul, axis_name="model", gather_dim=dim, dw=dw
  )

  def inside(x, ws, scale, bias):
    return op(x, ws, epilogue=Partial(scaled, scale, bias))

  def after(x, ws, scale, bias):
    return scaled(scale, bias, *op(x, ws))

  def gradients(f):
    def per_device(*arguments):
      out, gradient = jax.vjp(f, *arguments)
      return gradient(jax.tree.map(jnp.cos, out))

    return sharded(
      per_device,
      dim,
      weights=2,
      extra=(spec, {"z": spec}),
      out=(SPECS[dim], (COLUMNS,) * 2, spec, {"z": spec}),
      check_vma=check_vma,
    )(x, ws, scale, bias)

  got, want = gradients(inside), gradients(after)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=4 * tolerance("float32", 32)
    ),
    got,
    want,
  )
  assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(want))


def test_operand_that_devices_share_gets_the_sum_of_its_gradients():
  x, ws = inputs(0)
  scale = jnp.float32(2.0)

  def per_device(x, ws, scale):
    def loss(scale):
      y = all_gather_matmul(
        x, ws, axis_name="model", gather_dim=0,
        epilogue=Partial(jnp.multiply, scale),
      )  # fmt: skip
      return jax.lax.psum((y**2).sum(), "model")

    return jax.grad(loss)(scale)

  run = sharded(per_device, 0, extra=(jax.P(),), out=jax.P())
  want = 2 * scale * ((x @ ws[0]) ** 2).sum()
  np.testing.assert_allclose(run(x, ws, scale), want, rtol=1e-5)


def test_one_row():
  # A lone row has no row dims for its caller, one for the epilogue.
  mesh = make_mesh(data=1, model=SIZE, devices=jax.devices()[:SIZE])
  x, w = drawn(INNER), drawn(INNER, OUTER, seed=1)
  run = jax.shard_map(
    lambda x, w: all_gather_matmul(
      x, w, axis_name="model", gather_dim=-1, epilogue=split_heads
    ),
    mesh=mesh,
    in_specs=(jax.P("model"), COLUMNS),
    out_specs=jax.P("model"),
  )
  got = jax.jit(run)(x, w)
  np.testing.assert_allclose(got, split_heads(x @ w), rtol=1e-5, atol=1e-5)


def kept(epilogue):
  """Shapes that one device keeps for backward, a shard of 24 features."""
  found = []

  def per_device(x, w):
    _, gradient = jax.vjp(
      lambda x, w: all_gather_matmul(
        x, w, axis_name="model", gather_dim=0, epilogue=epilogue
      ),
      x,
      w,
    )
    found.extend(leaf.shape for leaf in jax.tree.leaves(gradient))
    return jnp.sum(x)

  mesh = make_mesh(data=1, model=SIZE, devices=jax.devices()[:SIZE])
  jax.eval_shape(
    jax.shard_map(
      per_device,
      mesh=mesh,
      in_specs=(jax.P("model"), COLUMNS),
      out_specs=jax.P(),
      check_vma=False,
    ),
    jnp.ones((32, 16)),
    jnp.ones((16, 96)),
  )
  return sorted(found)


def test_backward_keeps_the_product_beside_the_shards():
  shards = [(8, 16), (16, 24)]
  assert kept(None) == shards
  assert kept(jax.nn.gelu) == [*shards, (32, 24)]


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize(
  ("epilogue", "leaf"),
  [
    (jnp.sum, r"\(\)"),
    (lambda y: y.sum(axis=0), r"\(4, 2\)"),
    (lambda y: y.swapaxes(0, -1), r"\(2, 4, \d\)"),
    (lambda y: (y, 1.0), r"\(\)"),
    (lambda y: y.reshape(-1, y.shape[-1]), r"\(\d+, 2\)"),
  ],
  ids=["sum", "column_sums", "transpose", "scalar", "merged_rows"],
)
def test_epilogue_that_is_not_by_rows_is_refused(dim, epilogue, leaf):
  op = functools.partial(
    all_gather_matmul, axis_name="model", gather_dim=dim, epilogue=epilogue
  )
  run = sharded(lambda x, ws: op(x, ws), dim, out=jax.P(), check_vma=False)
  with pytest.raises(
    ValueError,
    match=r"epilogue must map rows to rows: of a piece of shape \(\d, \d, 2\) "
    rf"every leaf must begin with \(\d, \d\), got a leaf of shape {leaf}",
  ):
    run(*inputs(dim))
