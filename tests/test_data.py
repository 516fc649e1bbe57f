import itertools

import numpy as np
import pytest

from examples import data
from models.vit_config import get_config

CFG = get_config("vit_tiny")


@pytest.fixture(scope="module")
def splits():
  return data.load("digits")


def batches(splits, *, seed=0, batch=16):
  return data.train_batches(splits[0], CFG, batch=batch, seed=seed)


def assert_same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def test_a_fifth_of_every_class_is_held_out(splits):
  train, test = splits
  assert (len(train), len(test)) == (1437, 360)
  held = np.bincount(test.labels, minlength=10)
  every = held + np.bincount(train.labels, minlength=10)
  assert np.all(np.abs(held - every / 5) <= 1)


def test_no_scan_is_in_both_parts(splits):
  seen = {scan.tobytes() for scan in splits[0].scans}
  assert not any(scan.tobytes() in seen for scan in splits[1].scans)


def test_the_split_is_always_the_same(splits):
  for once, again in zip(splits, data.load("digits"), strict=True):
    np.testing.assert_array_equal(once.scans, again.scans)
    np.testing.assert_array_equal(once.labels, again.labels)


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
  one = data.Split(scans=data.load("digits")[0].scans[:1], labels=np.array([3]))
  items = data.train_batches(one, CFG, batch=1, seed=0)
  pairs = itertools.combinations((items[i]["image"] for i in range(4)), 2)
  assert not any(np.array_equal(a, b) for a, b in pairs)


def test_prefetching_changes_nothing_and_starts_anywhere(splits):
  items = batches(splits)
  ahead = list(data.prefetched(items, 1000, 1004))
  assert len(ahead) == 4
  for step, batch in enumerate(ahead, start=1000):
    assert_same(batch, items[step])


def test_evaluation_covers_the_split_in_order_and_masks_the_rest(splits):
  test = splits[1]
  parts = data.eval_batches(test, CFG, batch=128)
  assert [len(part["mask"]) for part in parts] == [128] * 3
  whole = {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }
  np.testing.assert_array_equal(whole["mask"], [1] * 360 + [0] * 24)
  np.testing.assert_array_equal(whole["label"].argmax(-1)[:360], test.labels)
  np.testing.assert_array_equal(
    whole["image"][7], data.render(test.scans[7], CFG.image)
  )


def test_evaluation_needs_no_padding_where_the_batch_divides(splits):
  parts = data.eval_batches(splits[1], CFG, batch=120)
  assert sum(part["mask"].sum() for part in parts) == 360
  assert len(parts) == 3


def test_render_at_the_scans_own_size_is_the_scan(splits):
  scan = splits[0].scans[0]
  np.testing.assert_array_equal(data.render(scan, 8)[..., 0], scan)


def test_render_interpolates_between_pixel_centres():
  ramp = np.tile(np.linspace(-0.7, 0.7, 8, dtype=np.float32), (8, 1))
  image = data.render(ramp, 32)[..., 0]
  # Pixel u of the image lies at (u + 0.5) / 4 - 0.5 of the scan; outermost
  # pixels lie beyond the scan's outermost centres.
  inside = slice(2, 30)
  expected = -0.7 + 0.2 * ((np.arange(32) + 0.5) / 4 - 0.5)
  np.testing.assert_allclose(image[5, inside], expected[inside], atol=1e-6)


def test_render_turns_scales_and_shifts(splits):
  scan = splits[0].scans[0]
  shifted = data.render(scan, 8, shift=(2, -1))[..., 0]
  np.testing.assert_array_equal(shifted[1:, :6], scan[:-1, 2:])
  np.testing.assert_array_equal(shifted[0], -1)  # no ink from outside

  turned = data.render(scan, 8, angle=np.pi / 2)[..., 0]
  np.testing.assert_allclose(turned, np.rot90(scan, -1), atol=1e-5)

  # Twice the size shows the middle half.
  np.testing.assert_allclose(
    data.render(scan, 16, scale=2.0),
    data.render(scan, 32)[8:24, 8:24],
    atol=1e-6,
  )


def test_other_data_sets_are_not_built():
  with pytest.raises(NotImplementedError, match="'jft_4b' cannot be read"):
    data.load("jft_4b")


def test_other_models_are_refused(splits):
  with pytest.raises(ValueError, match="channels=3 and classes=29593"):
    data.train_batches(splits[0], get_config("vit_22b"), batch=8, seed=0)
  with pytest.raises(ValueError, match="channels=3 and classes=29593"):
    data.eval_batches(splits[1], get_config("vit_22b"), batch=8)
