import itertools

import numpy as np
import pytest

from examples.data import digits, pipeline
from examples.data.feed import prefetched
from models.vit_config import get_config

CFG = get_config("vit_tiny")


@pytest.fixture(scope="module")
def splits():
  return [digits.load(name) for name in ("train", "val")]


def batches(splits, *, seed=0, batch=16):
  return pipeline.train_batches(splits[0], CFG, batch=batch, seed=seed)


def assert_same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def test_shapes_and_ranges_of_a_batch(splits):
  batch = batches(splits)[0]
  assert {name: x.shape for name, x in batch.items()} == {
    "image": (16, 32, 32, 1),
    "label": (16, 10),
    "mask": (16,),
  }
  assert {x.dtype for x in batch.values()} == {np.dtype("float32")}
  assert -1 <= batch["image"].min() < -0.9
  assert 0.9 < batch["image"].max() <= 1
  np.testing.assert_array_equal(batch["label"].sum(axis=1), 1)
  np.testing.assert_array_equal(batch["mask"], 1)


def test_a_batch_depends_on_seed_and_step_alone(splits):
  assert_same(batches(splits)[5], batches(splits)[5])
  other = batches(splits, seed=1)[5]
  assert not np.array_equal(batches(splits)[5]["image"], other["image"])


def test_an_epoch_shows_every_scan_once_and_the_next_in_another_order(splits):
  # 1,437 is 3 * 479, so that three batches are exactly one epoch.
  items = batches(splits, batch=479)
  first, second = (
    np.concatenate([items[i]["label"].argmax(-1) for i in epoch])
    for epoch in (range(3), range(3, 6))
  )
  counts = np.bincount(splits[0].labels)
  np.testing.assert_array_equal(np.bincount(first), counts)
  np.testing.assert_array_equal(np.bincount(second), counts)
  assert not np.array_equal(first, second)


def test_each_epoch_augments_anew():
  one = digits.Digits(
    scans=digits.load("train").scans[:1], labels=np.array([3])
  )
  items = pipeline.train_batches(one, CFG, batch=1, seed=0)
  pairs = itertools.combinations((items[i]["image"] for i in range(4)), 2)
  assert not any(np.array_equal(a, b) for a, b in pairs)


def test_prefetching_changes_nothing_and_starts_anywhere(splits):
  items = batches(splits)
  ahead = list(prefetched(items, 1000, 1004))
  assert len(ahead) == 4
  for step, batch in enumerate(ahead, start=1000):
    assert_same(batch, items[step])


def test_evaluation_covers_the_split_in_order_and_masks_the_rest(splits):
  test = splits[1]
  parts = pipeline.eval_batches(test, CFG, batch=128)
  assert [len(part["mask"]) for part in parts] == [128] * 3
  whole = {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }
  np.testing.assert_array_equal(whole["mask"], [1] * 360 + [0] * 24)
  np.testing.assert_array_equal(whole["label"].argmax(-1)[:360], test.labels)
  np.testing.assert_array_equal(
    whole["image"][7], digits.render(test.scans[7], CFG.image)
  )


def test_evaluation_needs_no_padding_where_the_batch_divides(splits):
  parts = pipeline.eval_batches(splits[1], CFG, batch=120)
  assert sum(part["mask"].sum() for part in parts) == 360
  assert len(parts) == 3


def test_other_models_are_refused(splits):
  with pytest.raises(ValueError, match=r"classes=10 .*, got classes=29593"):
    pipeline.train_batches(splits[0], get_config("vit_22b"), batch=8, seed=0)
  with pytest.raises(ValueError, match=r"classes=10 .*, got classes=29593"):
    pipeline.eval_batches(splits[1], get_config("vit_22b"), batch=8)
