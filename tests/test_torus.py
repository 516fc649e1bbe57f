import itertools

import numpy as np
import pytest

from collective_mm.chips import CHIPS
from profiling.torus import Torus, torus_of


def links_used(torus, source, target):
  """`{(chip, dim, direction): routes}` of one route."""
  loads = torus.loads(np.array([source]), np.array([target]))
  found = {}
  for link in np.flatnonzero(loads):
    chip, rest = divmod(int(link), 2 * len(torus.shape))
    place = tuple(map(int, np.unravel_index(chip, torus.shape)))
    found[place, rest // 2, rest % 2] = int(loads[link])
  return found


def test_a_route_goes_dim_by_dim():
  torus = Torus((4, 4), (False, False))
  assert links_used(torus, (0, 1), (2, 0)) == {
    ((0, 1), 0, 0): 1,
    ((1, 1), 0, 0): 1,
    ((2, 1), 1, 1): 1,
  }


@pytest.mark.parametrize(
  "wraps, used",
  [
    (True, {((0,), 0, 1): 1}),  # down, from the first to the last
    (False, {((i,), 0, 0): 1 for i in range(4)}),
  ],
)
def test_the_shorter_way_round_is_taken_where_there_is_one(wraps, used):
  assert links_used(Torus((5,), (wraps,)), (0,), (4,)) == used


def test_half_way_round_goes_up():
  used = links_used(Torus((4,), (True,)), (3,), (1,))
  assert used == {((3,), 0, 0): 1, ((0,), 0, 0): 1}


@pytest.mark.parametrize(
  "wraps", list(itertools.product([True, False], repeat=3))
)
def test_routes_are_as_long_as_the_distance(wraps):
  shape = (4, 3, 2)
  torus = Torus(shape, wraps)
  places = np.array(list(itertools.product(*map(range, shape))))
  for source, target in itertools.product(places, places):
    way = np.abs(source - target)
    around = np.where(wraps, np.array(shape) - way, way)
    loads = torus.loads(source[None], target[None])
    assert loads.sum() == np.minimum(way, around).sum()


def test_a_ring_of_four_on_a_square_and_on_a_line():
  # On a line of an 8-long dim that wraps, the closing hop comes back over the
  # links of the other three; both ways together load them twice.
  torus = Torus((8, 8), (True, True))
  line = [(0, 0), (1, 0), (2, 0), (3, 0)]
  square = [(0, 0), (1, 0), (1, 1), (0, 1)]
  for ring, most in ((line, 2), (square, 1)):
    places = np.array(ring)
    after = np.roll(places, -1, axis=0)
    both = torus.loads(places, after) + torus.loads(after, places)
    assert both.max() == most


def test_rings_side_by_side_do_not_meet():
  torus = Torus((4, 4, 4), (True,) * 3)
  sources, targets = [], []
  for x, y, z in itertools.product((0, 2), (0, 2), range(4)):
    square = [(x, y, z), (x + 1, y, z), (x + 1, y + 1, z), (x, y + 1, z)]
    sources += square
    targets += square[1:] + square[:1]
  assert torus.loads(np.array(sources), np.array(targets)).max() == 1


def test_no_routes_load_nothing():
  torus = Torus((2, 2), (False, False))
  nothing = np.zeros((0, 2), int)
  assert torus.loads(nothing, nothing).sum() == 0
  assert torus.loads(np.array([[1, 1]]), np.array([[1, 1]])).sum() == 0


@pytest.mark.parametrize(
  "chip, shape, wraps",
  [
    ("v4", (2, 4, 8), (False, False, False)),
    ("v4", (4, 4, 8), (True, True, True)),
    ("v5p", (4, 4, 6), (False, False, False)),
    ("v5e", (16, 8), (True, False)),
    ("v6e", (2, 4), (False, False)),
    ("v3", (32, 16), (True, False)),
    ("tpu7x", (4, 4, 4), (True, True, True)),
  ],
)
def test_which_dims_wrap(chip, shape, wraps):
  assert torus_of(CHIPS[chip], shape).wraps == wraps
