"""Loaders of public layouts, and the images that demos draw."""

import io

import numpy as np
import pytest
from PIL import Image

from examples.eval import perceptual_pairs, plex_sets
from examples.eval.arrays import read_npz
from examples.eval.celeba import read_attributes
from examples.eval.draw_corruptions import CORRUPTIONS, corrupt
from examples.eval.metrics.corruptions import ALEXNET_ERRORS
from examples.eval.perceptual import adapt
from examples.eval.predict import Images, open_classes, open_files
from examples.usage import UsageError
from models.params import init_params
from models.vit_config import get_config


def png(path, shade=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (12, 10), (shade, shade, shade)).save(path)


def test_corruptions_are_imagenet_cs_and_grow():
  assert list(CORRUPTIONS) == list(ALEXNET_ERRORS)
  rng = np.random.default_rng(0)
  image = rng.uniform(-0.6, 0.6, (32, 32, 3)).astype(np.float32)
  for name in CORRUPTIONS:
    gaps = []
    for severity in range(1, 6):
      drawn = corrupt(image, name, severity, np.random.default_rng(1))
      assert drawn.shape == image.shape and drawn.dtype == np.float32, name
      assert np.abs(drawn).max() <= 1, name
      gaps.append(np.abs(drawn - image).mean())
    assert gaps[0] > 0 and gaps[4] > gaps[0], name
    grey = corrupt(image[..., :1], name, 3, np.random.default_rng(1))
    assert grey.shape == (32, 32, 1)
  with pytest.raises(ValueError, match="at 1 to 5, got 'fog' at 6"):
    corrupt(image, "fog", 6, rng)


@pytest.fixture
def celeba(tmp_path):
  (tmp_path / "list_attr_celeba.txt").write_text(
    "3\nMale Smiling\n1.jpg -1 1\n2.jpg 1  1\n3.jpg 1 -1\n"
  )
  (tmp_path / "list_eval_partition.txt").write_text(
    "1.jpg 0\n2.jpg 1\n3.jpg 2\n"
  )
  return tmp_path


def test_celebas_lists(celeba):
  found = read_attributes(celeba, ["Smiling", "Male"])
  assert found["train"][0] == ["img_align_celeba/1.jpg"]
  assert [values.tolist() for _, values in found.values()] == [
    [[1, 0]],
    [[1, 1]],
    [[0, 1]],
  ]


@pytest.mark.parametrize(
  ("file", "text", "message"),
  [
    ("list_attr_celeba.txt", "0\nMale\n", "Smiling missing, it has Male"),
    (
      "list_attr_celeba.txt",
      "1\nMale Smiling\n1.jpg 0 1\n",
      "line 3 must have -1 or 1: '1.jpg 0 1'",
    ),
    (
      "list_eval_partition.txt",
      "1.jpg 0\n4.jpg 1\n",
      "3 are in one alone, the first 2.jpg",
    ),
  ],
)
def test_bad_lists_are_named(celeba, file, text, message):
  (celeba / file).write_text(text)
  with pytest.raises(ValueError, match=message):
    read_attributes(celeba, ["Male", "Smiling"])


def test_folders_of_classes(tmp_path):
  for name in ("b/2.png", "a/1.png", "a/0.JPEG"):
    png(tmp_path / name)
  (tmp_path / "a" / "notes.txt").write_text("")
  source = open_classes(tmp_path)
  assert source.classes == ("a", "b")
  assert [source.name(i) for i in range(3)] == [
    "a/0.JPEG",
    "a/1.png",
    "b/2.png",
  ]
  assert [source[i]["label"] for i in range(3)] == [[0], [0], [1]]
  files = open_files(tmp_path, ["b/2.png"])
  assert len(files) == 1
  with pytest.raises(UsageError, match=r"1 of 2 are not .* the first c\.png"):
    open_files(tmp_path, ["b/2.png", "c.png"])
  with pytest.raises(UsageError, match="must hold a folder of images for each"):
    open_classes(tmp_path / "a")
  with pytest.raises(UsageError, match="is not a folder"):
    open_classes(tmp_path / "c")


def test_images_of_imagenet_c_are_read_in_order(tmp_path):
  with pytest.raises(UsageError, match=r"75 of 75 .* first gaussian_noise/1"):
    plex_sets._check_corrupted(tmp_path)
  for i, name in enumerate(ALEXNET_ERRORS):
    for severity in range(1, 6):
      for label in ("a", "b"):
        png(tmp_path / name / str(severity) / label / "0.png", 10 * i)
  plex_sets._check_corrupted(tmp_path)
  cfg = get_config("vit_tiny", image=8, classes=2)
  found = list(plex_sets._read_corrupted(tmp_path, cfg, None))
  assert [(name, severity) for name, severity, *_ in found] == [
    (name, severity) for name in ALEXNET_ERRORS for severity in range(1, 6)
  ]
  (few,) = {len(x[2]) for x in plex_sets._read_corrupted(tmp_path, cfg, 1)}
  assert few == 1
  for i, (_, _, images, labels) in enumerate(found):
    assert images.shape == (2, 8, 8, 1) and labels.tolist() == [0, 1]
    np.testing.assert_allclose(images, 10 * (i // 5) / 127.5 - 1, atol=1e-6)


def test_everything_is_asked_of_a_classifier():
  rng = np.random.default_rng(0)
  labels = np.arange(60) % 3
  images = rng.normal(size=(60, 2, 2, 1)) * 0.1
  images[:, 0, 0, 0] = labels / 2  # what the classifier reads

  def predict(images):
    gap = np.abs(images[:, 0, 0, :] - np.arange(3) / 2)
    weights = np.exp(-10 * gap)
    return weights / weights.sum(axis=1, keepdims=True)

  def corrupted():
    for name in ALEXNET_ERRORS:
      for severity in range(1, 6):
        moved = images + (0.5 if name == "fog" else 0.0)
        yield name, severity, moved, labels

  soft = np.full((60, 3), 1 / 3)
  sets = plex_sets.Sets(
    images=images,
    labels=labels,
    corrupted=corrupted,
    outside=np.full((20, 2, 2, 1), 0.25),
    soft=(images, soft),
  )
  found = plex_sets.score(predict, sets)
  assert found["accuracy"] == 1
  # In fog two of three classes are taken for the next one.
  assert found["corrupted_accuracy"] == pytest.approx(1 - (2 / 3) / 15)
  assert found["corrupted_mce"] == pytest.approx(2 / 3 / 0.819 / 15)
  assert found["outside_auroc"] == 1
  assert found["soft_nll"] > np.log(3)
  assert found["oc_auc_class_indices"] == 1


def bapps(root, parts=("ref", "p0", "p1")):
  for name, shares in (("0", [0.2]), ("1", [1.0])):
    for shade, part in enumerate(parts):
      png(root / "cnn" / part / f"{name}.png", 50 * shade)
    (root / "cnn" / "judge").mkdir(exist_ok=True)
    np.save(root / "cnn" / "judge" / f"{name}.npy", np.array(shares))


def test_bapps(tmp_path):
  bapps(tmp_path)
  (found,) = perceptual_pairs.read_bapps(tmp_path, 8)
  assert (found.kind, found.ref.shape) == ("cnn", (2, 8, 8, 3))
  assert found.preference.tolist() == [0.2, 1.0]
  assert found.p1.mean() == pytest.approx(100 / 127.5 - 1, abs=1e-6)
  (tmp_path / "cnn" / "p1" / "1.png").unlink()
  with pytest.raises(ValueError, match="1 are not, the first 1"):
    list(perceptual_pairs.read_bapps(tmp_path, 8))
  with pytest.raises(ValueError, match="must hold KIND/judge folders"):
    list(perceptual_pairs.read_bapps(tmp_path / "cnn", 8))


def test_drawn_pairs_are_judged_by_their_strength():
  kinds = list(perceptual_pairs.draw_pairs(16, 40, seed=0))
  assert [found.kind for found in kinds][-1] == "mixed"
  for found in kinds:
    d0, d1 = (
      perceptual_pairs._coarse(found.ref, p) for p in (found.p0, found.p1)
    )
    agreed = np.mean((d1 < d0) == (found.preference > 0.5))
    assert agreed > 0.7, found.kind
    assert set(np.round(5 * found.preference)) <= set(range(6))
  again = next(perceptual_pairs.draw_pairs(16, 40, seed=0))
  np.testing.assert_array_equal(again.p0, kinds[0].p0)


def test_a_vit_adapts_to_smaller_patches():
  import jax

  cfg = get_config(
    "vit_tiny", depth=1, width=8, heads=2, mlp=8, image=28, patch=14
  )
  shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  params = jax.tree.map(lambda leaf: np.ones(leaf.shape), shapes)
  small, adapted = adapt(cfg, params, image=64, patch=8, method="bilinear")
  shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), small))
  assert jax.tree.map(np.shape, adapted) == jax.tree.map(np.shape, shapes)
  assert small.tokens == 64
  assert adapted["blocks"] is params["blocks"]


def test_images_are_shown_as_they_are():
  image = np.full((4, 4, 1), 0.5, np.float32)
  source = Images([image], [1], ("a", "b"))
  shown, labels = plex_sets.shown(
    source, get_config("vit_tiny", image=4, patch=4)
  )
  np.testing.assert_array_equal(shown, image[None])
  assert labels.tolist() == [1]


def test_arrays_that_cannot_be_read_are_named(tmp_path):
  (tmp_path / "a.npz").write_text("text")
  np.save(tmp_path / "b.npy", np.ones(2))
  np.savez(tmp_path / "c.npz", x=np.ones(2))
  with pytest.raises(ValueError, match=r"a.npz is not an \.npz file"):
    read_npz(tmp_path / "a.npz", "x")
  with pytest.raises(ValueError, match="but one array"):
    read_npz(tmp_path / "b.npy", "x")
  with pytest.raises(ValueError, match="must have x, y; y missing, it has x"):
    read_npz(tmp_path / "c.npz", "x", "y")
  (x,) = read_npz(tmp_path / "c.npz", "x")
  assert x.tolist() == [1, 1]
  buffer = io.BytesIO()
  np.save(buffer, np.array([{}], object), allow_pickle=True)
  (tmp_path / "d.npy").write_bytes(buffer.getvalue())
  with pytest.raises(ValueError, match=r"d.npy is not an \.npz file"):
    read_npz(tmp_path / "d.npy", "x")
