"""Semantic segmentation: `python -m examples.eval.segmentation --demo`.

Trains a decoder on the tokens of a ViT, which stays frozen or is trained too,
and reports mIoU (paper, section on semantic segmentation and appendix E.1).
"""

import sys

from absl import flags

from examples.eval import command
from examples.usage import UsageError, blame

# Table 4 and appendix E.1: ADE20k at 504 px, single scale, ViT-22B.
_PAPER = {
  ("linear", False): 34.6,
  ("linear", True): 54.9,
  ("upernet", False): 52.7,
  ("upernet", True): 55.3,
}
_PICTURES = 4


def define(values: flags.FlagValues) -> None:
  """The command's own flags."""
  options = {"flag_values": values}
  flags.DEFINE_enum(
    "decoder", "linear", ["linear", "upernet"], "what reads tokens", **options
  )
  flags.DEFINE_bool("finetune", False, "train the ViT as well", **options)
  flags.DEFINE_float(
    "fraction", 1.0, "of the training images, the first of a shuffle", 0, 1,
    **options,
  )  # fmt: skip
  flags.DEFINE_integer("size", 504, "pixels, without --demo", 1, **options)
  flags.DEFINE_integer("steps", 20_000, "of training", 1, **options)
  flags.DEFINE_float("lr", 1e-4, "peak learning rate", **options)
  flags.DEFINE_integer("features", 512, "of UperNet's maps", 1, **options)
  flags.DEFINE_integer("neck", None, "of UperNet's neck [width]", 1, **options)


def evaluate(given: flags.FlagValues) -> None:
  """Trains and tests what the flags ask for; with --demo, frozen and whole."""
  from examples.data.masks import open_masks

  mesh = command.mesh_of(given)
  if given.demo:
    _demo(given, mesh)
    return
  if not given.data:
    raise UsageError("--data must name a data set, as ade20k:PATH")
  with blame(f"--data={given.data}"):
    train, test = (open_masks(given.data, s) for s in ("train", "val"))
  cfg, params = command.model_at(given, mesh, given.size)
  out = command.out_folder(given, "segmentation")
  runner = _Runner(given, mesh, cfg, params, train, test, out)
  name = f"{given.decoder}, {'fine-tuned' if given.finetune else 'frozen'}"
  miou = runner.run(given.decoder, given.finetune, name)
  known = given.data.startswith("ade20k") and given.fraction == 1
  paper = _PAPER[given.decoder, given.finetune] if known else "no number"
  command.report(
    out,
    "segmentation",
    {f"mIoU %, {name}": miou},
    {f"mIoU %, {name}": paper},
    {
      "data": (given.data, "ADE20k"),
      "pixels": (cfg.image, 504),
      "fraction": (given.fraction, 1.0),
      "width": (cfg.width, 6144),
    },
  )


def _demo(given, mesh):
  """The linear decoder, frozen and whole, and UperNet, on drawn scenes."""
  from examples.data.masks import open_masks
  from examples.eval.scene_backbone import scene_backbone

  cfg, params = scene_backbone(mesh)
  given.batch, given.lr, given.features = 32, 2e-3, 32
  if not given["steps"].present:
    given.steps = 150
  out = command.out_folder(given, "segmentation")
  train, test = (
    open_masks("scenes:512", "train"),
    open_masks("scenes:128", "val"),
  )
  runner = _Runner(given, mesh, cfg, params, train, test, out)
  ours = {
    f"mIoU %, {decoder}, {'fine-tuned' if whole else 'frozen'}": runner.run(
      decoder, whole, f"{decoder}-{'fine-tuned' if whole else 'frozen'}"
    )
    for decoder, whole in (
      ("linear", False), ("linear", True), ("upernet", False),
    )
  }  # fmt: skip
  paper = dict(zip(ours, (34.6, 54.9, 52.7), strict=True))
  command.report(
    out,
    "segmentation",
    ours,
    paper,
    {
      "data": ("drawn scenes", "ADE20k"),
      "pixels": (cfg.image, 504),
      "width": (cfg.width, 6144),
      "steps": (given.steps, "not given"),
    },
  )


class _Runner:
  """One data set, in memory at the model's size, and trainings on it."""

  def __init__(self, given, mesh, cfg, params, train, test, out):
    import numpy as np

    from examples.data.masks import sized

    self.given, self.mesh, self.out = given, mesh, out
    self.cfg, self.params = cfg, params
    self.classes = train.classes
    order = np.random.default_rng(given.seed).permutation(len(train))
    kept = order[: max(1, round(given.fraction * len(train)))]

    def arrays(source, rows):
      with blame("--data"):
        found = [sized(source[int(i)], cfg.image) for i in rows]
      images, masks = zip(*found, strict=True)
      return np.stack(images), np.stack(masks)

    self.images, self.masks = arrays(train, kept)
    self.test_images, self.test_masks = arrays(test, range(len(test)))

  def run(self, kind: str, whole: bool, name: str) -> float:
    """Trains one decoder; returns its mIoU in per cent."""
    import jax
    import numpy as np

    from examples.data.masks import IGNORE
    from examples.eval import dense_training as training
    from examples.eval.dense_decoders import segmenter
    from examples.eval.metrics.segmentation import confusion, mean_iou
    from examples.eval.overlays import draw_masks

    given = self.given
    decoder = segmenter(
      kind,
      jax.random.key(given.seed),
      self.cfg,
      classes=self.classes,
      ignore=IGNORE,
      features=given.features,
      neck=given.neck,
    )
    recipe = training.Recipe(
      steps=given.steps,
      batch=given.batch,
      lr=given.lr,
      warmup=given.steps // 20,
      clip=1.0,
      seed=given.seed,
    )
    targets, params = {"mask": self.masks}, self.params
    if whole:
      params, trained = training.fit_whole(
        decoder, self.cfg, params, self.images, targets, self.mesh, recipe
      )
    else:
      tokens = self._features(params, self.images, decoder)
      trained = training.fit_frozen(decoder, tokens, targets, self.mesh, recipe)
    tokens = self._features(params, self.test_images, decoder)
    counts, shown = np.zeros((self.classes, self.classes), np.int64), []
    for rows in np.array_split(
      np.arange(len(self.test_masks)), -(-len(self.test_masks) // given.batch)
    ):
      part = {layer: x[rows] for layer, x in tokens.items()}
      logits = training.predict(decoder, trained, part, batch=given.batch)
      found = logits.argmax(axis=-1)
      counts += confusion(
        self.test_masks[rows], found, self.classes, ignore=IGNORE
      )
      shown += list(found[: max(0, _PICTURES - len(shown))])
    path = self.out / f"{name.replace(', ', '-')}.png"
    draw_masks(path, self.test_images, self.test_masks, shown, IGNORE)
    miou = 100 * mean_iou(counts)
    print(f"{name}: mIoU {miou:.1f} % on {len(self.test_masks)} images; {path}")
    return miou

  def _features(self, params, images, decoder):
    from examples.eval.features import extract

    return extract(
      self.cfg,
      params,
      self.mesh,
      images,
      layers=decoder.layers,
      pooled=False,
      batch=self.given.batch,
      cache=self.out / "features",
    )


if __name__ == "__main__":
  sys.exit(command.main(sys.argv, __doc__, evaluate, define))
