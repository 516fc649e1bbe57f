"""The images that Plex is asked about, and what is asked."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from examples.data.pipeline import eval_batches
from examples.data.shapes import open_shapes
from examples.data.source import Source
from examples.eval.arrays import read_npz
from examples.eval.draw_corruptions import CORRUPTIONS, corrupt
from examples.eval.metrics import calibration, detection
from examples.eval.metrics import oracle_collaborative as oracle
from examples.eval.metrics.corruptions import ALEXNET_ERRORS, corruption_errors
from examples.eval.predict import Some, open_classes
from examples.usage import UsageError, blame
from models.vit_config import ViTConfig

_READ = 64  # images at a time
_FRACTION = 0.005  # of the predictions that the oracle reviews (Appendix I)
# (corruption, severity, images [N, H, W, C], labels [N])
Corrupted = Iterator[tuple[str, int, np.ndarray, np.ndarray]]
Predict = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sets:
  """What there is to ask about; None where it was not given.

  Attributes:
    images: `[N, H, W, C]` of known classes.
    labels: `[N]`.
    corrupted: makes the corrupted images, one severity at a time.
    corruptions: what they are called.
    outside: images of no known class.
    outside_name: what they are called.
    soft: images and the distributions `[N, K]` of their labels.
    soft_name: what they are called.
  """

  images: np.ndarray
  labels: np.ndarray
  corrupted: Callable[[], Corrupted] | None = None
  corruptions: str = "none"
  outside: np.ndarray | None = None
  outside_name: str = "none"
  soft: tuple[np.ndarray, np.ndarray] | None = None
  soft_name: str = "none"


def open_sets(given, cfg: ViTConfig, val: Source) -> Sets:
  """Opens what the flags of `examples.eval.plex` name, or draws the demo's.

  Raises:
    UsageError: if a set cannot be read, or soft labels do not fit the images.
  """
  images, labels = shown(val, cfg)
  if given.demo:
    return _demo_sets(given, cfg, images, labels)
  sets = {"images": images, "labels": labels}
  if given.corrupted:
    root = Path(given.corrupted)
    _check_corrupted(root)
    sets["corruptions"] = given.corrupted
    sets["corrupted"] = lambda: _read_corrupted(root, cfg, given.images)
  if given.outside:
    sets["outside_name"] = given.outside
    sets["outside"], _ = shown(open_classes(given.outside), cfg)
  if given.soft_labels:
    with blame(f"--soft_labels={given.soft_labels}"):
      (soft,) = read_npz(given.soft_labels, "soft")
      if soft.shape != (len(images), cfg.classes):
        raise ValueError(
          f"soft must be [{len(images)}, {cfg.classes}], a row for each image "
          f"of --data, got {soft.shape}"
        )
      calibration.class_probabilities(soft)
    sets |= {"soft": (images, soft), "soft_name": given.soft_labels}
  return Sets(**sets)


def score(predict: Predict, sets: Sets) -> dict[str, float]:
  """Asks everything that `sets` has.

  Args:
    predict: `[N, H, W, C]` to probabilities `[N, K]`.
    sets: what to ask about.
  """
  probs, labels = predict(sets.images), sets.labels
  accuracy = float((probs.argmax(axis=1) == labels).mean())
  found = {"accuracy": accuracy} | _reliability(probs, labels)
  found["oracle_accuracy"] = oracle.oracle_collaborative_accuracy(
    probs, labels, fraction=_FRACTION
  )
  if sets.corrupted:
    found |= _corrupted_scores(predict, sets, accuracy)
  if sets.outside is not None:
    outside = detection.out_of_distribution(probs, predict(sets.outside))
    found |= {f"outside_{name}": value for name, value in outside.items()}
  if sets.soft:
    images, soft = sets.soft
    found["soft_nll"] = calibration.soft_negative_log_likelihood(
      predict(images), soft
    )
  return found


def shown(
  source: Source, cfg: ViTConfig, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the images as the model sees them, and their first labels.

  Args:
    source: what to read.
    cfg: for the size.
    count: at most that many, evenly spread; None for all.
  """
  if count is not None and count < len(source):
    source = Some(source, np.linspace(0, len(source) - 1, count).astype(int))
  cfg = dataclasses.replace(cfg, classes=len(source.classes))
  batches = eval_batches(source, cfg, batch=_READ)
  whole = [(b["image"], b["label"], b["mask"] > 0) for b in batches]
  images, labels, mask = map(np.concatenate, zip(*whole, strict=True))
  return images[mask], labels[mask].argmax(axis=1)


def _reliability(probs, labels):
  return {
    "nll": calibration.negative_log_likelihood(probs, labels),
    "ece": calibration.expected_calibration_error(probs, labels),
  } | {
    f"oc_auc_{form}": oracle.oracle_collaborative_auc_multiclass(
      probs, labels, form=form, fraction=_FRACTION
    )
    for form in ("class_indices", "correctness")
  }


def _corrupted_scores(predict, sets, clean):
  """Means over corruptions and severities, and ImageNet-C's summary."""
  accuracy, rest = {name: [] for name in ALEXNET_ERRORS}, []
  for name, _, images, labels in sets.corrupted():
    probs = predict(images)
    accuracy[name].append(float((probs.argmax(axis=1) == labels).mean()))
    rest.append(_reliability(probs, labels))
  found = corruption_errors(accuracy, clean)
  found |= {k: float(np.mean([r[k] for r in rest])) for k in rest[0]}
  return {f"corrupted_{name}": value for name, value in found.items()}


def _check_corrupted(root):
  missing = [
    f"{name}/{severity}"
    for name in ALEXNET_ERRORS
    for severity in range(1, 6)
    if not (root / name / str(severity)).is_dir()
  ]
  if missing:
    raise UsageError(
      f"--corrupted={root}: {len(missing)} of 75 folders are not there, the "
      f"first {missing[0]}"
    )


def _read_corrupted(root, cfg, count) -> Corrupted:
  for name in ALEXNET_ERRORS:
    for severity in range(1, 6):
      source = open_classes(root / name / str(severity))
      yield name, severity, *shown(source, cfg, count)


def _demo_sets(given, cfg, images, labels) -> Sets:
  """Digits corrupted, shapes in grey, and blends of two digits."""
  count = min(given.images or 60, len(images))

  def corrupted():
    rng = np.random.default_rng(given.seed)
    for name in CORRUPTIONS:
      for severity in range(1, 6):
        drawn = [corrupt(x, name, severity, rng) for x in images[:count]]
        yield name, severity, np.stack(drawn), labels[:count]

  shapes = dataclasses.replace(open_shapes("all", "val"), count=len(images))
  outside, _ = shown(shapes, dataclasses.replace(cfg, channels=3))
  rng = np.random.default_rng(given.seed)
  other = rng.permutation(len(images))
  weight = rng.uniform(0, 1, len(images)).astype(np.float32)
  one_hot = np.eye(cfg.classes)
  rows = weight[:, None, None, None]
  return Sets(
    images=images,
    labels=labels,
    corrupted=corrupted,
    corruptions=f"drawn, {count} digits each",
    outside=outside.mean(axis=-1, keepdims=True),
    outside_name="drawn shapes, in grey",
    soft=(
      rows * images + (1 - rows) * images[other],
      np.minimum(
        weight[:, None] * one_hot[labels]
        + (1 - weight[:, None]) * one_hot[labels[other]],
        1,  # not 1 + 1e-8 where both are the same
      ),
    ),
    soft_name="blends of two digits",
  )
