"""Values and gradients of the prefetched stack, and what it keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
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
# The model axis is a ring inside the layer; `scale` and `step` lie whole, and
# `bias`, a small leaf, is cut over data alone.
SPECS = {
  "norm": {"scale": P()},
  "up": P(None, "data", "model"),
  "bias": P(None, "data"),
  "down": P(None, ("model", "data"), None),
  "wide": P(None, None, "data"),  # a minor dim
  "shift": P(None, "data"),
  "step": P(),
}


@functools.cache
def mesh():
  return make_mesh(data=2, model=4)


def some_params(length, seed=0):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return (rng.normal(size=shape) / 4).astype(np.float32)

  return {
    "norm": {"scale": 1 + draw(length, WIDTH)},
    "up": draw(length, WIDTH, HIDDEN),
    "bias": draw(length, WIDTH),
    "down": draw(length, HIDDEN, WIDTH),
    "wide": draw(length, WIDTH, WIDTH),
    "shift": draw(length, WIDTH),
    "step": np.arange(length, dtype=np.int32),
  }


def some_x(*lead):
  x = np.random.default_rng(1).normal(size=(*lead, ROWS, WIDTH))
  return x.astype(np.float32)


def ring_layer(params, x):
  """A layer with rings over the model axis: x[B_dm, D] -> x[B_dm, D]."""
  dtype = x.dtype
  y = x * params["norm"]["scale"] + params["bias"].astype(dtype)
  y = y + (params["step"] % 2).astype(dtype)
  gather = functools.partial(
    all_gather_matmul, axis_name="model", gather_dim=0, schedule="two_way"
  )
  scatter = functools.partial(
    matmul_reduce_scatter, axis_name="model", scatter_dim=0, schedule="two_way"
  )
  hidden = jnp.tanh(gather(y.astype(params["up"].dtype), params["up"]))
  out = scatter(hidden, params["down"])
  x = x + out.astype(dtype) + jnp.tanh(x @ params["wide"].astype(dtype))
  return x + params["shift"].astype(dtype)


def plain_scan(layer, x, params, gather_dtype=None):
  """What `prefetch_scan` must equal: a scan, jax's gathers and its autodiff."""

  def body(x, params):
    def whole(shard, spec):
      cut = [
        i for i, axes in enumerate(spec) if axes and "data" in (axes, axes[-1])
      ]
      if not cut:
        return shard
      shard = shard.astype(gather_dtype or shard.dtype)
      return lax.all_gather(shard, "data", axis=cut[0] - 1, tiled=True)

    return layer(jax.tree.map(whole, params, SPECS), x), None

  return lax.scan(body, x, params)[0]


def value_and_grads(stack, params, x, check_vma=True):
  """The output, its loss's gradients and the loss, over the mesh."""

  def loss_of(params, x):
    out = jax.shard_map(
      lambda x, params: stack(x, params),
      mesh=mesh(),
      in_specs=(X, SPECS),
      out_specs=X,
      check_vma=check_vma,
    )(x, params)
    return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

  grad = jax.value_and_grad(
    loss_of, argnums=(0, 1), has_aux=True, allow_int=True
  )
  (loss, out), (dparams, dx) = jax.jit(grad)(params, x)
  dparams.pop("step")
  return {"out": out, "params": dparams, "x": dx}


def assert_same(got, want, tol=0.0):
  def compare(path, a, b):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(
      a, b, rtol=tol, atol=tol, err_msg=jax.tree_util.keystr(path)
    )

  jax.tree_util.tree_map_with_path(compare, got, want)


def prefetched(layer=ring_layer, **options):
  options = {"gather_dtype": None, "specs": SPECS} | options
  return lambda x, params: prefetch_scan(layer, x, params, **options)


@functools.cache
def want(length, check_vma=True, gather_dtype=None):
  stack = functools.partial(plain_scan, ring_layer, gather_dtype=gather_dtype)
  return value_and_grads(stack, some_params(length), some_x(), check_vma)


@pytest.mark.parametrize(
  "length, distance",
  [(1, 0), (1, 1), (2, 1), (3, 0), (3, 1), (3, 2), (5, 2), (2, 5)],
)
def test_equals_a_scan_that_gathers(length, distance):
  got = value_and_grads(
    prefetched(distance=distance), some_params(length), some_x()
  )
  assert_same(got, want(length), 1e-6)
