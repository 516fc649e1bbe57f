import itertools
import json
import re

import jax
import numpy as np
import pytest

from collective_mm import make_mesh
from examples.data import digits, feed, pipeline
from examples.data.crops import central_box, cut
from examples.data.feed import prefetched
from examples.data.pipeline import Augment
from examples.data.skipped import Skipped
from examples.data.sources import open_source
from examples.usage import UsageError
from models.vit_config import get_config
from tests.image_files import encode, folder_of, write

CFG = get_config("vit_tiny")
COLOUR = get_config("vit_tiny", classes=2, channels=3)


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


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return folder_of(tmp_path_factory.mktemp("images"))


def coloured(root, *, skipped=None, **options):
  source = open_source(f"folder:{root}", "train")
  return pipeline.train_batches(
    source, COLOUR, batch=8, seed=3, skipped=skipped, **options
  )


def test_images_are_cropped_to_the_model(images):
  batch = coloured(images)[2]
  assert batch["image"].shape == (8, 32, 32, 3)
  assert batch["image"].dtype == np.float32
  assert -1 <= batch["image"].min() < -0.2 < 0.2 < batch["image"].max() <= 1
  np.testing.assert_array_equal(batch["label"].sum(axis=1), 1)


def test_black_and_white_are_the_ends_of_the_range(tmp_path):
  for level in (0, 255):
    pixels = np.full((9, 9), level, np.uint8)
    for i in range(2):
      write(tmp_path, f"{level}/{i}.png", encode(pixels, "PNG"))
  batch = coloured(tmp_path)[0]
  assert set(np.unique(batch["image"])) == {-1.0, 1.0}
  np.testing.assert_array_equal(
    batch["label"].argmax(axis=1), batch["image"][:, 0, 0, 0] > 0
  )


def test_levels_are_the_values_until_they_are_on_the_mesh(images, splits):
  mesh = make_mesh(data=2, model=4)
  sharding = jax.NamedSharding(mesh, jax.P(("data", "model")))
  source = open_source(f"folder:{images}", "val")
  pairs = [
    [coloured(images, levels=levels)[3] for levels in (True, False)],
    [
      pipeline.eval_batches(source, COLOUR, batch=8, levels=levels)[0]
      for levels in (True, False)
    ],
  ]
  for ours, theirs in pairs:
    assert ours["image"].dtype == np.uint8
    (placed,) = feed.on_device(iter([ours]), sharding, 8)
    assert placed["image"].sharding == sharding
    for name, x in theirs.items():
      # One rounding where the device multiplies and adds at once.
      np.testing.assert_allclose(placed[name], x, rtol=0, atol=1e-7)
      assert placed[name].dtype == x.dtype
  for batch in (
    coloured(images, levels=True, augment=Augment(mixup=1.0))[3],
    pipeline.train_batches(splits[0], CFG, batch=8, seed=0, levels=True)[0],
  ):
    assert batch["image"].dtype == np.float32


def test_half_of_the_images_are_seen_from_behind(tmp_path):
  # Brighter to the right: what is seen from behind is brighter to the left.
  ramp = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (50, 1))
  for i in range(50):
    write(tmp_path, f"{i % 2}/{i}.png", encode(ramp, "PNG"))
  for flip, low, high in ((True, 40, 88), (False, 0, 0)):
    data = coloured(tmp_path, augment=Augment(flip=flip, area=(0.5, 1)))
    seen = np.concatenate([data[i]["image"] for i in range(16)])
    behind = np.sum(seen[:, 16, 0, 0] > seen[:, 16, -1, 0])
    assert low <= behind <= high


@pytest.mark.parametrize(
  "augment", [Augment(), Augment(mixup=0.5, mixup_per="example")]
)
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_what_one_reads(images, augment, hosts):
  whole = coloured(images, augment=augment)[5]
  each = 8 // hosts
  parts = [
    coloured(images, augment=augment, rows=range(h * each, (h + 1) * each))[5]
    for h in range(hosts)
  ]
  for name, x in whole.items():
    np.testing.assert_array_equal(x, np.concatenate([p[name] for p in parts]))


def test_hosts_together_evaluate_what_one_does(splits):
  whole = pipeline.eval_batches(splits[1], CFG, batch=128)[2]
  parts = [
    pipeline.eval_batches(splits[1], CFG, batch=128, rows=rows)[2]
    for rows in (range(64), range(64, 128))
  ]
  for name, x in whole.items():
    np.testing.assert_array_equal(x, np.concatenate([p[name] for p in parts]))


def test_mixup_blends_labels_and_keeps_their_sum(images):
  plain = coloured(images)[1]
  mixed = coloured(images, augment=Augment(mixup=1.0))[1]
  np.testing.assert_allclose(mixed["label"].sum(axis=1), 1, rtol=1e-6)
  weight = mixed["label"].max()
  np.testing.assert_allclose(
    mixed["image"][0],
    weight * plain["image"][0] + (1 - weight) * plain["image"][1],
    atol=1e-6,
  )


def test_an_image_has_all_labels_above_its_own(tmp_path):
  folder_of(tmp_path, count=1)
  (tmp_path / "hierarchy.json").write_text(json.dumps({"cat": "animal"}))
  source = open_source(f"folder:{tmp_path}", "val")
  cfg = get_config("vit_tiny", classes=3, channels=3)
  (batch,) = pipeline.eval_batches(source, cfg, batch=2)
  assert batch["label"].tolist() == [[1, 0, 1], [0, 1, 0]]


def test_names_are_those_of_the_batch(splits):
  names = pipeline.train_names(splits[0], batch=16, seed=0)[91]
  shown = [splits[0].labels[int(n.removeprefix("digit "))] for n in names]
  np.testing.assert_array_equal(
    batches(splits)[91]["label"].argmax(axis=1), shown
  )


@pytest.fixture
def broken(tmp_path):
  root = folder_of(tmp_path)
  path = root / "train/cat/3.jpg"
  path.write_bytes(path.read_bytes()[:-200])
  return root


def test_a_broken_image_empties_its_own_row_alone(images, broken, caplog):
  good, bad = coloured(images), coloured(broken)
  source = open_source(f"folder:{broken}", "train")
  names = pipeline.train_names(source, batch=8, seed=3)
  emptied = 0
  for step in range(6):
    ours, theirs = bad[step], good[step]
    for row, name in enumerate(names[step]):
      if name == "train/cat/3.jpg":
        assert not any(x[row].any() for x in ours.values())
        emptied += 1
      else:
        for part, x in ours.items():
          np.testing.assert_array_equal(x[row], theirs[part][row])
  assert emptied == 4  # 48 rows are four epochs of 12 images
  assert caplog.text.count("train/cat/3.jpg: cannot be decoded") == 1


@pytest.mark.parametrize("kind", ["train", "val"])
def test_too_many_broken_images_stop_the_run(broken, kind):
  source = open_source(f"folder:{broken}", "train")
  options = {"batch": 8, "skipped": Skipped(0)}
  data = (
    pipeline.train_batches(source, COLOUR, seed=0, **options)
    if kind == "train"
    else pipeline.eval_batches(source, COLOUR, **options)
  )
  with pytest.raises(
    UsageError, match=r"more than max_bad=0 .*: train/cat/3.jpg: cannot be"
  ):
    list(prefetched(data, 0, 2))


def test_what_is_no_image_is_found_before_training(images, tmp_path, caplog):
  root = folder_of(tmp_path)
  write(root, "train/dog/2.jpg", b"<html>")
  skipped = Skipped()
  coloured(root, skipped=skipped)
  line = "train/dog/2.jpg: not a JPEG or PNG file"
  assert skipped.reasons == {"train/dog/2.jpg": line}
  assert line in caplog.text
  with pytest.raises(UsageError, match=re.escape(line)):
    coloured(root, skipped=Skipped(0))


class Labelled(digits.Digits):
  """Digits of which one has a label that does not exist."""

  def __getitem__(self, index):
    return super().__getitem__(index) | {"label": 10 if index == 7 else 0}


def test_labels_out_of_range_are_found_before_training(splits):
  source = Labelled(scans=splits[1].scans[:9], labels=splits[1].labels[:9])
  with pytest.raises(ValueError, match="from 0 to 9, got 10 of digit 7"):
    pipeline.train_batches(source, CFG, batch=8, seed=0)


def test_evaluation_shows_the_middle(images):
  source = open_source(f"folder:{images}", "val")
  for keep_aspect, share in ((True, 0.75), (False, 0.875)):
    data = pipeline.eval_batches(
      source, COLOUR, batch=8, share=share, keep_aspect=keep_aspect
    )
    assert len(data) == 2
    image = source[9]["image"]
    box = central_box(image.shape[1::-1], share=share, keep_aspect=keep_aspect)
    np.testing.assert_allclose(
      data[1]["image"][1], cut(image, box, 32, 3) / 127.5 - 1, atol=1e-6
    )


def test_gray_models_see_gray(images):
  source = open_source(f"folder:{images}", "val")
  cfg = get_config("vit_tiny", classes=2)
  assert pipeline.eval_batches(source, cfg, batch=4)[0]["image"].shape == (
    4,
    32,
    32,
    1,
  )


def test_digits_fill_three_channels(splits):
  cfg = get_config("vit_tiny", channels=3)
  image = pipeline.eval_batches(splits[1], cfg, batch=4)[0]["image"]
  np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_an_empty_source_is_refused(splits):
  none = digits.Digits(scans=splits[0].scans[:0], labels=splits[0].labels[:0])
  with pytest.raises(ValueError, match="no examples"):
    pipeline.eval_batches(none, CFG, batch=8)
  cfg = get_config("vit_tiny", channels=2)
  with pytest.raises(ValueError, match="channels=1 or channels=3, got chan"):
    pipeline.eval_batches(splits[1], cfg, batch=8)


@pytest.mark.parametrize(
  ("field", "message"),
  [
    ({"area": (0, 1)}, r"area must rise in \(0, 1\], got \(0, 1\)"),
    ({"area": (0.5, 0.1)}, "area must rise"),
    ({"ratio": (2, 1)}, "ratio must be positive and rise"),
    ({"mixup": -1}, "mixup must be at least 0, got -1"),
    ({"mixup_per": "row"}, "must be batch or example, got 'row'"),
  ],
)
def test_augmentation_that_cannot_be_is_refused(field, message):
  with pytest.raises(ValueError, match=message):
    Augment(**field)


def test_half_pairs_cannot_be_mixed(splits):
  with pytest.raises(ValueError, match="must read both"):
    pipeline.train_batches(
      splits[0], CFG, batch=8, seed=0, augment=Augment(mixup=1), rows=[0, 1, 2]
    )
