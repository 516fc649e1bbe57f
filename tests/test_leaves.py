import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collective_mm import make_mesh
from examples.leaves import differences, matching, named, nested, sums_of_bits


def test_a_long_difference_is_cut():
  there = {f"leaf_{i}": i for i in range(9)}
  said = differences(there, {})
  assert said.count(";") == 4
  assert said.endswith("leaf_3 is missing here; and 5 more")


def test_a_regex_must_match_the_whole_path():
  leaves = named({"params": {"head": 1, "head_norm": 2}})
  assert matching(leaves, "params/head") == {"params/head": 1}
  assert nested(leaves) == {"params": {"head": 1, "head_norm": 2}}


@pytest.mark.parametrize(
  "dtype", ["float32", "bfloat16", "int32", "int16", "uint8", "bool"]
)
def test_one_flipped_bit_changes_the_sum(dtype):
  raw = np.random.default_rng(0).integers(0, 2, 64, np.uint8)
  flipped = raw.copy()
  flipped[37] ^= 1
  before, after = (
    sums_of_bits({"x": jnp.asarray(x.view(jnp.dtype(dtype)))})
    for x in (raw, flipped)
  )
  assert before != after


def test_the_sum_does_not_depend_on_where_the_array_lies():
  x = np.random.default_rng(0).normal(size=(8, 8)).astype(jnp.bfloat16)
  spec = jax.P("data", "model")
  mesh = make_mesh(data=2, model=4)
  sums = sums_of_bits({"one": jax.device_put(x, jax.devices()[0])})
  cut = sums_of_bits({"one": jax.device_put(x, jax.NamedSharding(mesh, spec))})
  by_hand = int(x.view(np.uint16).astype(np.uint64).sum() % 2**32)
  assert sums == cut == {"one": by_hand}
