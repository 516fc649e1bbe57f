"""Batches ahead of their use: made on threads, then placed on the mesh."""

import collections
import functools
import itertools
import os
from collections.abc import Iterator

import grain
import jax
import jax.numpy as jnp


def host_rows(sharding: jax.sharding.Sharding, batch: int) -> tuple[int, ...]:
  """Returns the rows of a batch that this process's devices need, in order.

  Example:
    >>> mesh = make_mesh(data=2, model=4)
    >>> host_rows(jax.NamedSharding(mesh, jax.P(("data", "model"))), 16)
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
  """
  parts = sharding.addressable_devices_indices_map((batch,)).values()
  every = range(batch)
  return tuple(sorted({row for (part,) in parts for row in every[part]}))


def prefetched(
  data: grain.MapDataset, start: int, stop: int, *, threads: int | None = None
) -> grain.DatasetIterator:
  """Returns items `start` to `stop` in order, made on threads ahead of use.

  Pillow and numpy let go of Python's lock in all that takes time, so that
  threads do what processes would and share their memory.

  Args:
    data: batches.
    start: the first item.
    stop: the one after the last.
    threads: None for one a core, 16 at most. Each makes a batch of its own, and
      twice as many batches are held.
  """
  threads = threads or min(os.cpu_count() or 1, 16)
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=2 * threads
  )
  return iter(data.slice(slice(start, stop)).to_iter_dataset(options))


def on_device(
  batches: Iterator[dict],
  sharding: jax.sharding.Sharding,
  batch: int,
  *,
  ahead: int = 1,
) -> Iterator[dict]:
  """Yields batches on the mesh, their copies begun `ahead` batches early.

  Images that come as uint8 levels become float32 in [-1, 1] on the devices.

  Args:
    batches: of the rows `host_rows(sharding, batch)`.
    sharding: of the leading dim of every array.
    batch: `B`, images of one batch, over all hosts.
    ahead: batches that lie on the mesh beside the one in use.
  """

  def place(rows: dict) -> dict:
    placed = {
      name: jax.make_array_from_process_local_data(
        sharding, x, (batch, *x.shape[1:])
      )
      for name, x in rows.items()
    }
    return {
      name: _values(sharding)(x) if x.dtype == jnp.uint8 else x
      for name, x in placed.items()
    }

  batches = iter(batches)
  placed = collections.deque(map(place, itertools.islice(batches, ahead)))
  for rows in batches:
    placed.append(place(rows))
    yield placed.popleft()
  yield from placed


@functools.cache
def _values(sharding):
  """Compiles what makes values of levels."""
  return jax.jit(
    lambda levels: levels.astype(jnp.float32) * (1 / 127.5) - 1,
    out_shardings=sharding,
  )
