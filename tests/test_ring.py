"""The ring on paper: who holds what, without any product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collective_mm import make_mesh, ring


@given(
  rows=st.integers(1, 50),
  size=st.integers(1, 8),
  two_way=st.booleans(),
  chunks=st.integers(1, 6),
)
def test_lanes_deal_every_row_once(rows, size, two_way, chunks):
  lanes = ring.split_lanes(rows, size=size, two_way=two_way, chunks=chunks)
  dealt = [row for lane in lanes for row in range(lane.start, lane.stop)]
  assert dealt == list(range(rows))
  directions = {lane.direction for lane in lanes}
  assert directions == ({1, -1} if two_way and size > 2 and rows > 1 else {1})
  assert max(lane.stop - lane.start for lane in lanes) <= -(
    -rows // (chunks * len(directions))
  )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("two_way", [False, True])
def test_every_device_sees_every_piece_once(size, two_way):
  mesh = make_mesh(data=1, model=size, devices=jax.devices()[:size])
  lanes = ring.split_lanes(4, size=size, two_way=two_way, chunks=1)

  def seen(x):
    full = jnp.full((size, 4), -1)
    for owner, lane, piece in ring.gathered(x, lanes, "model"):
      full = full.at[owner, lane.start : lane.stop].set(piece)
    return full[None]

  run = jax.jit(
    jax.shard_map(
      seen,
      mesh=mesh,
      in_specs=jax.P("model"),
      out_specs=jax.P("model"),
      check_vma=False,
    )
  )
  pieces = jnp.arange(size * 4)
  want = np.broadcast_to(pieces.reshape(size, 4), (size, size, 4))
  np.testing.assert_array_equal(run(pieces), want)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("two_way", [False, True])
def test_sums_end_on_their_owners(size, two_way):
  mesh = make_mesh(data=1, model=size, devices=jax.devices()[:size])
  lanes = ring.split_lanes(4, size=size, two_way=two_way, chunks=1)

  def reduced(x):  # x[size * 4]: a share of every device's four rows
    def add_share(owner, lane, arrived):
      rows = jax.lax.dynamic_slice_in_dim(x, owner * 4, 4)
      mine = rows[lane.start : lane.stop]
      return mine if arrived is None else mine + arrived

    sums = ring.scattered(add_share, lanes, "model", wire_dtype=x.dtype)
    return jnp.concatenate(sums)

  run = jax.jit(
    jax.shard_map(
      lambda x: reduced(x[0]),
      mesh=mesh,
      in_specs=jax.P("model"),
      out_specs=jax.P("model"),
    )
  )
  shares = jnp.arange(size * size * 4).reshape(size, size * 4)
  np.testing.assert_array_equal(run(shares), shares.sum(axis=0))
