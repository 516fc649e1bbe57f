"""Trees are split into what has gradients and what has not."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxpr_walk import equations

from collective_mm import float_trees, make_mesh

P = jax.P


def test_what_is_split_can_be_merged():
  tree = {
    "w": np.float32(1),
    "b": jnp.bfloat16(2),
    "key": np.int32(3),
    "no": None,
  }
  floats, rest = float_trees.split(tree)
  assert floats == {"w": 1, "b": 2, "key": None, "no": None}
  assert rest == {"w": None, "b": None, "key": 3, "no": None}
  assert float_trees.merge(floats, rest) == tree


def traced(run, **x):
  mesh = make_mesh(data=4, model=2, devices=jax.devices())
  return jax.make_jaxpr(
    jax.shard_map(
      run, mesh=mesh, in_specs=P("data", "model"), out_specs=P("data", "model")
    )
  )(jnp.ones((8, 8)), **x)


def test_a_barrier_ties_what_varies_alike_and_changes_no_type():
  def run(x):
    tree = {"x": x, "y": 2 * x, "sum": lax.psum(x, "model"), "i": jnp.int32(1)}
    tied = float_trees.barrier(tree)
    assert jax.tree.map(jax.typeof, tied) == jax.tree.map(jax.typeof, tree)
    return tied["x"]

  barriers = [
    len(e.invars)
    for e in equations(traced(run))
    if e.primitive.name == "optimization_barrier"
  ]
  assert sorted(barriers) == [1, 1, 2]


def test_the_axes_that_all_floating_leaves_share():
  def run(x):
    carry = (x, lax.psum(x, "model"), jnp.int32(1))
    assert float_trees.varying_everywhere(carry) == {"data"}
    assert float_trees.varying_everywhere(carry[2]) == frozenset()
    return x

  traced(run)
