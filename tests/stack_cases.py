"""A small stack for the tests of `prefetch_scan`, and what it must equal.

All numbers are small integers, whose sums float32 holds exactly in any order:
equal means equal bit for bit.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from collective_mm import make_mesh, prefetch_scan

P = jax.P
WIDTH, ROWS = 16, 16


def draw(rng, *shape):
  return rng.choice([-1, 0, 0, 0, 0, 0, 0, 1], size=shape).astype(np.float32)


@functools.cache
def some_x(*lead):
  return draw(np.random.default_rng(1), *lead, ROWS, WIDTH)


# On eight devices of the data axis.
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


def loss_of(out):
  return jnp.sum(out * (jnp.arange(out.size) % 3 - 1.0).reshape(out.shape))


def assert_equal(got, want):
  def compare(path, a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b, err_msg=keystr(path))

  jax.tree_util.tree_map_with_path(compare, got, want)


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
