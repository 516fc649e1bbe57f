"""What a stack sends, in what dtype, and what it keeps for backward."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxpr_walk import equations, kept_by_forward
from stack_cases import (
  DENSE_SPECS,
  LENGTH,
  ROWS,
  WIDTH,
  assert_equal,
  dense_params,
  dense_scan,
  gradient_of,
  on_data,
  some_x,
)

from collective_mm.axis_rings import AxisRing

P = jax.P


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
  # The small b and c share one; before forward's loop, in it, and in that of
  # backward, which begins with what forward's last trip has gathered.
  assert len(gathers) == 2 * 3
  assert {e.invars[0].aval.dtype for e in gathers} == {jnp.dtype(jnp.bfloat16)}
  scatters = sends(jaxpr, "reduce_scatter")
  # In backward's loop, and after it for the first layer and the one before.
  assert len(scatters) == 2 * 3
  assert {e.invars[0].aval.dtype for e in scatters} == {np.dtype("float32")}
  # What lies whole is summed once, after the loop: the whole stack of it.
  (total,) = sends(jaxpr, "psum_invariant")
  assert [v.aval.shape for v in total.invars] == [(LENGTH, WIDTH)]
  scans = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
  assert len(scans) == 2
  assert not any(sends(e.params["jaxpr"], "psum_invariant") for e in scans)


@pytest.mark.parametrize(
  ("exchange", "sums"), [(8, 7), (1, 7 * 2)], ids=["exchanged", "passed_on"]
)
def test_a_ring_is_permutes_alone(w_is_large, monkeypatch, exchange, sums):
  monkeypatch.setattr("collective_mm.weights.EXCHANGE", exchange)
  jaxpr = jaxpr_of_gradient(backend="ring")
  assert not sends(jaxpr, "all_gather", "reduce_scatter")
  dtypes = [str(e.invars[0].aval.dtype) for e in sends(jaxpr, "ppermute")]
  # Of two arrays: 3 gathers of seven steps both ways, and 3 reductions. Shares
  # travel as they are, sums in float32.
  gathers, reductions = 7 * 2 * 2 * 3, sums * 2 * 3
  rounded = gathers + (reductions if exchange == 8 else 0)
  assert dtypes.count("bfloat16") == rounded
  assert len(dtypes) == gathers + reductions


def test_shares_load_both_directions_of_a_ring_of_four_alike(w_is_large):
  jaxpr = jaxpr_of_gradient(backend=("native", "ring"), rings=(2, 4))
  hops = collections.Counter()
  for e in sends(jaxpr, "ppermute"):
    (source, target), *_ = e.params["perm"]
    hops[target - source] += e.invars[0].aval.size
  # Zero sends to 1 and 3, one step each way, and to 4, across the ring of two:
  # none goes to 2, which a router could send either way.
  assert set(hops) == {1, 3, 4}
  # The two arrays go opposite ways, with shares of 2 x 16 and 1 x 4 numbers,
  # each two steps; backward has the stage four times.
  assert hops[3] - hops[1] == 4 * 2 * (2 * 16 - 1 * 4)


def test_what_is_sent_far_is_least(w_is_large):
  """Of a line that does not close, pairs: the short ways come first."""
  line = (AxisRing(2, 4), AxisRing(2, 2), AxisRing(2, 1))
  jaxpr = jaxpr_of_gradient(backend=("native", "ring"), rings=line)
  largest = collections.Counter()
  for e in sends(jaxpr, "ppermute"):
    (source, target), *_ = e.params["perm"]
    way, size = target - source, e.invars[0].aval.size
    largest[way] = max(largest[way], size)
  assert largest[1] == 2 * largest[2] == 4 * largest[4] > 0


def test_large_weights_are_gathered_first(w_is_large):
  sizes = [
    e.outvars[0].aval.size for e in sends(jaxpr_of_gradient(), "all_gather")
  ]
  assert sizes[0] > sizes[1]
  assert sizes == sizes[:2] * 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, None])
@pytest.mark.parametrize("distance", [0, 1])
def test_what_a_layer_sees_is_rounded_as_by_a_cast(dtype, distance):
  """The first layer's weights are rounded apart from those of the others."""
  rng = np.random.default_rng(3)
  params = {
    k: (rng.normal(size=x.shape) * 10.0 ** rng.integers(-7, 5, x.shape)).astype(
      np.float32
    )
    for k, x in dense_params().items()
  }

  def seen(params, x):
    options = {"gather_dtype": dtype, "distance": distance, "has_aux": True}
    return dense_scan(params, x, of=lambda p, x: (x, p), **options)[1]

  got = on_data(seen, out_specs=P(), check_vma=False)(params, some_x())
  want = {
    k: x if k == "scale" or dtype is None else x.astype(dtype)
    for k, x in params.items()
  }
  assert_equal(got, want)


@pytest.mark.parametrize(
  ("distance", "dtype"), [(0, np.float32), (1, jnp.bfloat16)]
)
def test_stacks_are_rounded_once_beside_the_first_gathers(distance, dtype):
  jaxpr = jaxpr_of_gradient(distance=distance)
  forward = next(e for e in equations(jaxpr) if e.primitive.name == "scan")
  shape = (LENGTH, WIDTH // 8, WIDTH)
  stacks = {v.aval.dtype for v in forward.invars if v.aval.shape == shape}
  assert stacks == {jnp.dtype(dtype)}


def test_keeps_the_carry_of_each_layer_alone():
  assert kept_by_forward(jaxpr_of_gradient()) == [(ROWS // 8, WIDTH)]

  def body(x, params):  # jax's own keeps the gathered weights
    whole = lax.all_gather(params["w"], "data", axis=0, tiled=True)
    return jax.nn.relu(x @ whole), None

  plain = gradient_of(lambda params, x: lax.scan(body, x, params)[0])
  mapped = on_data(plain, out_specs=DENSE_SPECS)
  jaxpr = jax.make_jaxpr(mapped)(dense_params(), some_x())
  assert (WIDTH, WIDTH) in kept_by_forward(jaxpr)


def test_microbatches_share_gathers_and_reductions(w_is_large):
  def run(params, x):
    return dense_scan(params, x, hold_across_microbatches=True)

  mapped = on_data(
    gradient_of(run), out_specs=DENSE_SPECS, x_spec=P(None, "data")
  )
  jaxpr = jax.make_jaxpr(mapped)(dense_params(), some_x(4))
  assert len(sends(jaxpr, "all_gather")) == 2 * 3
  assert len(sends(jaxpr, "reduce_scatter")) == 2 * 3
