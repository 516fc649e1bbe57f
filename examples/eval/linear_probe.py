"""Linear probe by SGD on frozen pre-logits.

    python -m examples.eval.linear_probe --demo
    python -m examples.eval.linear_probe --checkpoint=RUN --data=folder:PATH

Momentum and a cosine for 10 epochs from a zero kernel, mild crops and flips
(paper, section 2.1, Table 2); `--recipe=inaturalist` is that of its Figure 4:
learning rate 0.001, 30 epochs, 3 of warm-up, no weight decay.
"""

import dataclasses
import sys

from absl import flags

from examples.eval import command

# ViT-22B at 224 pixels, as InternVL's README quotes Table 2.
PAPER = 89.5


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  options = {"flag_values": values}
  flags.DEFINE_enum(
    "recipe", "imagenet", ["imagenet", "inaturalist"], "of SGD", **options
  )
  flags.DEFINE_float("lr", None, "peak learning rate [the recipe's]", **options)
  flags.DEFINE_integer("epochs", None, "passes [the recipe's]", 1, **options)
  flags.DEFINE_integer("sgd_batch", 128, "images a step of SGD", 1, **options)
  flags.DEFINE_integer(
    "views", 1, "crops of each training image; 1: the central one", 1, **options
  )


def evaluate(given: flags.FlagValues) -> dict:
  """Fits the probe and reports it; returns what the JSON holds."""
  import numpy as np

  from examples.eval import sgd, tasks
  from examples.eval.metrics.classification import mean_class_accuracy, top1
  from examples.usage import blame

  task = tasks.open_task(given, "linear_probe")
  base = sgd.INATURALIST if given.recipe == "inaturalist" else sgd.SgdConfig()
  changes = {"batch": given.sgd_batch, "seed": given.seed}
  changes |= {
    name: given[name].value
    for name in ("lr", "epochs")
    if given[name].value is not None
  }
  with blame(" ".join(f"--{k}={v}" for k, v in changes.items())):
    config = dataclasses.replace(base, **changes)

  test = task.features("test")
  views = [task.features("train")]
  if given.views > 1:
    views = [
      tasks.read_features(
        task.cfg, task.params, task.mesh,
        tasks.Mildly(task.train, task.cfg, number), batch=task.batch,
        cache=task.out / "features",
      )
      for number in range(given.views)
    ]  # fmt: skip
  found, losses = sgd.train(
    np.stack([view.x for view in views]), views[0].labels, config,
    folder=task.out,
  )  # fmt: skip
  logits = found.logits(test.x)

  pixels, seen = task.pixels()
  baseline, _ = sgd.train(pixels.x, pixels.labels, config)
  raw = baseline.logits(seen.x)
  return command.report(
    task.out,
    "linear_probe",
    {
      "top-1 [%]": 100 * top1(logits, test.labels),
      "mean over classes [%]": 100 * mean_class_accuracy(logits, test.labels),
      "top-1 of raw pixels [%]": 100 * top1(raw, seen.labels),
    },
    {"top-1 [%]": PAPER, "top-1 of raw pixels [%]": "baseline"},
    {
      "data": (task.data, "ImageNet"),
      "width": (task.cfg.width, 6144),
      "image": (task.cfg.image, 224),
      "epochs": (config.epochs, 30 if given.recipe == "inaturalist" else 10),
      "learning rate": (config.lr, "not in the text"),
      "crops of each image": (given.views, "a new one each epoch"),
    },
    figure=command.curves({"loss": losses}, "epoch", "cross-entropy [nats]"),
  )


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
