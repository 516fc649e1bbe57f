"""Head2Toe: a linear classifier on the features of every layer.

    python -m examples.eval.head2toe --demo
    python -m examples.eval.head2toe --checkpoint=RUN --data=folder:PATH

Paper, appendix D.3 and Table 12: no selection of features, the learning rate
and the length of training chosen on a validation set. `--keep=0.1` selects a
tenth of the features by their group-lasso scores first (Evci et al. 2022).
"""

import dataclasses
import sys

from absl import flags

from examples.eval import command


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  options = {"flag_values": values}
  flags.DEFINE_list("lr", ["0.3", "0.03"], "learning rates to try", **options)
  flags.DEFINE_list("epochs", ["10", "50"], "lengths to try", **options)
  flags.DEFINE_float("keep", 1.0, "share of the features to keep", **options)
  flags.DEFINE_float("lasso", 1e-4, "strength, if some are left out", **options)
  flags.DEFINE_float("holdout", 0.2, "share to choose on", **options)


def evaluate(given: flags.FlagValues) -> dict:
  """Fits and reports; returns what the JSON holds."""
  from examples.eval import logistic, sgd, tasks
  from examples.eval.features import layer_names
  from examples.eval.metrics import head2toe
  from examples.eval.metrics.classification import top1
  from examples.usage import blame

  with blame(f"--lr={','.join(given.lr)} --epochs={','.join(given.epochs)}"):
    tried = [
      sgd.SgdConfig(lr=float(lr), epochs=int(epochs), batch=128)
      for lr in given.lr
      for epochs in given.epochs
    ]
  with blame(f"--keep={given.keep}"):
    head2toe.check_fraction(given.keep)
  task = tasks.open_task(given, "head2toe")
  layers = layer_names(task.cfg)
  parts = [task.features(split, layers) for split in ("train", "test")]
  with blame(f"--holdout={given.holdout}"):
    fit, held = logistic.hold_out(
      len(parts[0].labels), given.holdout, given.seed
    )

  def best_of(train, test):
    """Test accuracy of the settings that are best on the hold-out."""

    def held_out(config):
      found, _ = sgd.train(train[fit], parts[0].labels[fit], config)
      return top1(found.logits(train[held]), parts[0].labels[held])

    config = max(tried, key=held_out)
    found, losses = sgd.train(train, parts[0].labels, config)
    return top1(found.logits(test), parts[1].labels), config, losses

  whole = [head2toe.concatenated(part.features) for part in parts]
  count = whole[0].shape[1]
  if given.keep < 1:
    lasso = dataclasses.replace(tried[0], group_lasso=given.lasso)
    found, _ = sgd.train(whole[0][fit], parts[0].labels[fit], lasso)
    scores = head2toe.group_lasso_scores(found.kernel)
    kept = head2toe.keep(scores, given.keep)
    whole = [x[:, kept] for x in whole]
  ours, config, losses = best_of(*whole)
  linear, *_ = best_of(*(p.features["pre_logits"] for p in parts))
  pixels, *_ = best_of(*(part.x for part in task.pixels()))
  return command.report(
    task.out,
    "head2toe",
    {
      "top-1 [%]": 100 * ours,
      "top-1 of the pre-logits alone [%]": 100 * linear,
      "top-1 of raw pixels [%]": 100 * pixels,
      "features": whole[0].shape[1],
      "features before selection": count,
      "times those of the pre-logits": count / task.cfg.width,
    },
    {
      "top-1 [%]": "VTAB-1k: +7 over linear, -6 under fine-tuning",
      "top-1 of raw pixels [%]": "baseline",
      "features": 349_081,
      "features before selection": 349_081,
      "times those of the pre-logits": 349_081 / 6144,
    },
    {
      "data": (task.data, "VTAB-1k and four more"),
      "width": (task.cfg.width, 6144),
      "kept": (given.keep, 1.0),
      "learning rates tried": (given.lr, ["0.01", "0.001"]),
      "lengths tried": (
        [f"{epochs} epochs" for epochs in given.epochs],
        ["500 steps", "10000 steps"],
      ),
      "chosen": (f"lr {config.lr}, {config.epochs} epochs", "not in the text"),
    },
    figure=command.curves({"loss": losses}, "epoch", "cross-entropy [nats]"),
  )


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
