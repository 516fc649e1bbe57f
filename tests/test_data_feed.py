import jax
import numpy as np
import pytest

from collective_mm import make_mesh
from examples.data import digits, feed
from examples.data.pipeline import train_batches
from models.vit_config import get_config


@pytest.fixture(scope="module")
def batches():
  cfg = get_config("vit_tiny")
  return train_batches(digits.load("train"), cfg, batch=16, seed=0)


def assert_same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_prefetching_changes_nothing_and_starts_anywhere(batches, threads):
  ahead = list(feed.prefetched(batches, 1000, 1005, threads=threads))
  assert len(ahead) == 5
  for step, batch in enumerate(ahead, start=1000):
    assert_same(batch, batches[step])


def test_a_saved_iterator_goes_on_where_it_was(batches):
  ahead = feed.prefetched(batches, 10, 20)
  next(ahead), next(ahead)
  state = ahead.get_state()
  again = feed.prefetched(batches, 10, 20)
  again.set_state(state)
  assert_same(next(again), batches[12])


@pytest.mark.parametrize("ahead", [0, 1, 3, 9])
def test_batches_come_onto_the_mesh_in_order(batches, ahead):
  mesh = make_mesh(data=2, model=4)
  sharding = jax.NamedSharding(mesh, jax.P(("data", "model")))
  made = [batches[i] for i in range(5)]
  placed = list(feed.on_device(iter(made), sharding, 16, ahead=ahead))
  assert len(placed) == 5
  for here, there in zip(made, placed, strict=True):
    assert all(x.sharding == sharding for x in there.values())
    assert_same(here, there)


def test_copies_begin_early(batches):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  asked = []

  def source():
    for i in range(4):
      asked.append(i)
      yield batches[i]

  placed = feed.on_device(source(), sharding, 16, ahead=2)
  next(placed)
  assert asked == [0, 1, 2]


def test_one_process_reads_every_row():
  mesh = make_mesh(data=4, model=2)
  for spec in (jax.P("data"), jax.P(("data", "model")), jax.P()):
    rows = feed.host_rows(jax.NamedSharding(mesh, spec), 16)
    assert rows == tuple(range(16))
