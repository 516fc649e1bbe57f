"""Video classification: `python -m examples.eval.video --demo`.

A frozen ViT gives one pre-logit vector a frame, kept on disk; a transformer
over the frames is trained on them (paper, section on video classification and
appendix F). Its baseline is a linear classifier of their mean.
"""

import sys

from absl import flags

from examples.eval import command
from examples.usage import UsageError, blame

_PAPER = {"kinetics400": 88.0, "mit": 44.9}  # Table 6, ViT-22B, top-1 %


def define(values: flags.FlagValues) -> None:
  """The command's own flags."""
  options = {"flag_values": values}
  positive = {"lower_bound": 1, **options}
  flags.DEFINE_enum(
    "paper", "kinetics400", list(_PAPER), "whose number to show", **options
  )
  flags.DEFINE_integer("size", 224, "pixels, without --demo", **positive)
  flags.DEFINE_integer("frames", 128, "of a view", **positive)
  flags.DEFINE_integer("stride", 2, "from frame to frame", **positive)
  flags.DEFINE_integer("views", 4, "of a clip, in a test", **positive)
  flags.DEFINE_integer("epochs", 30, "of training", **positive)
  flags.DEFINE_integer("train_batch", 256, "clips a step", **positive)
  flags.DEFINE_float("lr", 0.1, "peak learning rate", **options)
  flags.DEFINE_float("weight_decay", 0.0, "of kernels", 0, **options)
  flags.DEFINE_integer("width", 2048, "of the transformer", **positive)
  flags.DEFINE_integer("depth", 1, "of the transformer", **positive)
  flags.DEFINE_integer("max_bad", 10, "clips to skip", 0, **options)


def evaluate(given: flags.FlagValues) -> None:
  """Trains and tests the transformer, and its baseline."""
  from examples.data.clips import open_clips

  mesh = command.mesh_of(given)
  train = test = given.data
  if given.demo:
    train, test = "clips:512", "clips:128"
    small = {
      "frames": 8,
      "views": 1,
      "train_batch": 64,
      "width": 64,
      "epochs": 40,
      "lr": 0.1,
    }
    for name, value in small.items():
      if not given[name].present:
        setattr(given, name, value)
  elif not given.data:
    raise UsageError("--data must name a data set, as frames:PATH")
  with blame(f"--data={train}"):
    sources = open_clips(train, "train"), open_clips(test, "val")
    if sources[0].classes != sources[1].classes:
      raise ValueError("train and val must have the same classes")
  if given.demo:
    from examples.eval.scene_backbone import scene_backbone

    cfg, params = scene_backbone(mesh)
  else:
    cfg, params = command.model_at(given, mesh, given.size)
  out = command.out_folder(given, "video")
  from examples.eval.clip_features import clip_features
  from examples.eval.clip_training import accuracy, fit, fit_mean
  from models.temporal import TemporalConfig

  kept = {
    "cfg": cfg,
    "params": params,
    "mesh": mesh,
    "frames": given.frames,
    "stride": given.stride,
    "batch": given.batch,
    "cache": out / "features",
    "max_bad": given.max_bad,
  }
  with blame(f"--data={train}"):
    features, labels = clip_features(sources[0], views=1, **kept)
    tested, truth = clip_features(sources[1], views=given.views, **kept)
  model = fit(
    features[:, 0],
    labels,
    TemporalConfig(
      features=features.shape[-1],
      frames=given.frames,
      classes=len(sources[0].classes),
      width=given.width,
      depth=given.depth,
      mlp=4 * given.width,
      heads=max(1, given.width // 128),
    ),
    epochs=given.epochs,
    batch=given.train_batch,
    lr=given.lr,
    weight_decay=given.weight_decay,
    seed=given.seed,
  )
  temporal = accuracy(model, tested, truth)
  mean = accuracy(fit_mean(features[:, 0], labels, given.seed), tested, truth)
  name = "top-1 %, temporal transformer"
  command.report(
    out,
    "video",
    {name: 100 * temporal, "top-1 %, mean of the frames": 100 * mean},
    {name: _PAPER[given.paper]},
    {
      "data": ("drawn clips" if given.demo else given.data, given.paper),
      "frames": (given.frames, 128 if given.paper == "kinetics400" else 32),
      "width of the ViT": (cfg.width, 6144),
      "passes with other augmentation": (1, 10),
      "batch": (given.train_batch, 256),
    },
  )


if __name__ == "__main__":
  sys.exit(command.main(sys.argv, __doc__, evaluate, define))
