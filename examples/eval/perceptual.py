"""Perceptual similarity: `python -m examples.eval.perceptual --demo`.

Which of two distorted images is nearer to the original, by the features of
every block, by their mean tokens, and by pixels (paper, Appendix K). The patch
embedding is resized, 14 to 8 pixels for images of 64 in the paper, so that a
small image has enough tokens. `--bapps=PATH` reads the folder `2afc/val` of
BAPPS; the demo draws distorted digits, and a rule judges in place of people.
A minute on two cores.
"""

import sys
from pathlib import Path

from absl import flags

from examples.eval import command
from examples.usage import UsageError, blame


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


def define(values: flags.FlagValues) -> None:
  """Adds the flags of this command."""
  options = {"flag_values": values}
  flags.DEFINE_string("bapps", None, "folder of KIND/{ref,p0,p1}", **options)
  flags.DEFINE_integer("image", None, "pixels shown [32; 64]", 1, **options)
  flags.DEFINE_integer("patch", None, "pixels of a patch [4; 8]", 1, **options)
  flags.DEFINE_enum(
    "resize",
    "pseudo_inverse",
    ["pseudo_inverse", "bilinear"],
    "of the patch embedding",
    **options,
  )
  flags.DEFINE_integer(
    "count", None, "pairs of each kind [60; all]", 1, **options
  )


def evaluate(given) -> dict:
  """Runs the evaluation; returns what `command.report` does."""
  import jax
  import numpy as np

  from examples.eval import perceptual_pairs as pairs
  from examples.eval.metrics import perceptual as metrics
  from examples.eval.predict import open_model
  from models.params import init_params

  if not given.demo and given.bapps is None:
    raise UsageError("--bapps must name the folder 2afc/val; --demo needs none")
  out = command.out_folder(given, "perceptual")
  model = open_model(given, out)
  image = given.image or (32 if given.demo else 64)
  patch = given.patch or (4 if given.demo else 8)
  with blame(f"--image={image} --patch={patch}"):
    cfg, params = adapt(
      model.cfg, model.params, image=image, patch=patch, method=given.resize
    )

  def kinds():
    if given.demo:
      return pairs.draw_pairs(image, given.count or 60, given.seed)
    return pairs.read_bapps(Path(given.bapps), image, given.count)

  untrained = jax.jit(init_params, static_argnums=1)(
    jax.random.key(given.seed), cfg
  )
  scores = {}
  with blame("--demo" if given.demo else f"--bapps={given.bapps}"):
    for found in kinds():
      d0, d1 = (
        ((found.ref - p) ** 2).mean(axis=(1, 2, 3))
        for p in (found.p0, found.p1)
      )
      g = found.preference
      scores["pixels", found.kind] = metrics.two_afc_score(d0, d1, g)
      scores["best possible", found.kind] = metrics.best_two_afc_score(g)
    for name, weights in (("trained", params), ("untrained", untrained)):
      scores |= _scores(cfg, weights, model, kinds(), name)
  names = list(dict.fromkeys(kind for _, kind in scores))
  ours = {
    f"score_{name.replace(' ', '_')}": 100
    * float(np.mean([scores[name, kind] for kind in names]))
    for name in dict.fromkeys(name for name, _ in scores)
  }
  ours |= {
    f"score_trained_{kind}": 100 * scores["trained", kind] for kind in names
  }
  return command.report(
    out,
    "perceptual",
    ours,
    {
      "score_trained": 64.9,
      "score_untrained": 62.3,
      "score_trained_mean_pool": 66.2,
    },
    {
      "data": ("distorted digits" if given.demo else given.bapps, "BAPPS"),
      "judges": ("a rule" if given.demo else "people", "people"),
      "image": (image, 64),
      "patch": (patch, 8),
      "embedding resized by": (given.resize, "pseudo_inverse"),
      "layers": (cfg.depth, 48),
      "fine-tuned at this size": ("no", "yes, on ImageNet"),
    },
  )


def adapt(cfg, params, *, image: int, patch: int, method: str):
  """Returns a ViT for other images and patches: its config and parameters.

  The patch embedding is resized (`models.patch_resize`), the position embedding
  resampled (`models.positions`); all else stays.

  Args:
    cfg, params: the ViT.
    image, patch: pixels.
    method: of `resize_patch_kernel`.
  """
  import dataclasses

  import jax

  from models.patch_resize import resize_patch_kernel
  from models.positions import resample

  small = dataclasses.replace(cfg, image=image, patch=patch)
  embed = jax.device_get(params["embed"])
  if cfg.cls:
    raise NotImplementedError("a class token is not known here")
  embed = embed | {
    "kernel": resize_patch_kernel(
      embed["kernel"], cfg.patch, patch, method=method
    ),
    "position": resample(embed["position"], cfg.grid, small.grid),
  }
  return small, params | {"embed": embed}


def _scores(cfg, params, model, kinds, name):
  """2AFC scores by variant and kind; features are held a piece at a time."""
  from examples.eval.features import pieces
  from examples.eval.metrics import perceptual as metrics

  layers = [f"block_{i:02}" for i in range(cfg.depth)]
  judged = []  # a pair's kind and preference, before its features come

  def images():
    for found in kinds:
      for i, preference in enumerate(found.preference):
        judged.append((found.kind, preference))
        yield from (found.ref[i], found.p0[i], found.p1[i])

  def features():
    found = pieces(
      cfg,
      params,
      model.mesh,
      images(),
      layers=layers,
      pooled=False,
      batch=model.batch,
    )
    for piece in found:
      for i in range(len(piece[layers[0]])):
        yield [piece[layer][i : i + 1] for layer in layers]

  columns = {}
  each = features()
  # Three of one iterator are the images of one pair.
  for number, (ref, p0, p1) in enumerate(zip(each, each, each, strict=True)):
    kind, preference = judged[number]
    for suffix, mean_pool in (("", False), ("_mean_pool", True)):
      d0, d1 = (
        metrics.feature_distance(ref, p, mean_pool=mean_pool)[0]
        for p in (p0, p1)
      )
      columns.setdefault((f"{name}{suffix}", kind), []).append(
        (d0, d1, preference)
      )
  return {
    key: metrics.two_afc_score(*zip(*rows, strict=True))
    for key, rows in columns.items()
  }


if __name__ == "__main__":
  sys.exit(main(sys.argv))
