"""Linear probe by L-BFGS on frozen pre-logits, L2 chosen on a hold-out.

    python -m examples.eval.lbfgs_probe --demo
    python -m examples.eval.lbfgs_probe --checkpoint=RUN --data=folder:PATH

Paper, appendix D.1 and Table 10: embeddings of resized images, multinomial
logistic regression, the strength of L2 that is best on 20,000 training images
held out; then a last fit to all training images.
"""

import sys

from absl import flags

from examples.eval import command

DEMO = (1e-1, 1e-2, 1e-3)  # that its demo tries, in seconds


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  options = {"flag_values": values}
  flags.DEFINE_float("holdout", 0.02, "share to choose L2 on", **options)
  flags.DEFINE_list("l2", None, "strengths to try [1e-6 to 10]", **options)
  flags.DEFINE_integer("max_steps", 1000, "of each descent", 1, **options)


def evaluate(given: flags.FlagValues) -> dict:
  """Fits the probe and reports it; returns what the JSON holds."""
  from examples.eval import logistic, tasks
  from examples.eval.metrics.classification import top1
  from examples.usage import blame

  with blame(f"--l2={','.join(given.l2 or [])}"):
    known = DEMO if given.demo else logistic.STRENGTHS
    strengths = tuple(map(float, given.l2 or known))
    if min(strengths) < 0:
      raise ValueError(f"l2 must be at least 0, got {min(strengths)}")
  task = tasks.open_task(given, "lbfgs_probe")
  train, test = task.features("train"), task.features("test")
  share = max(given.holdout, 0.2) if given.demo else given.holdout
  with blame(f"--holdout={share}"):
    fit, held = logistic.hold_out(len(train.labels), share, given.seed)

  def probe(train, test):
    part = logistic.Problem(train.x[fit], train.labels[fit], task.mesh)
    tried = {}
    for l2, found in logistic.path(part, strengths, given.max_steps).items():
      tried[l2] = top1(found.logits(train.x[held]), train.labels[held])
      print(f"  L2 {l2:.0e}: {tried[l2]:.2%} held out, {found.steps} steps")
    best = max(tried, key=tried.get)
    whole = logistic.Problem(train.x, train.labels, task.mesh)
    found = whole.solve(best, max_steps=given.max_steps)
    return top1(found.logits(test.x), test.labels), best, tried, found

  ours, best, tried, found = probe(train, test)
  print("raw pixels")
  raw, *_ = probe(*task.pixels())
  figure = command.curves(
    {"held out": [(l2, 100 * a) for l2, a in sorted(tried.items())]},
    "L2",
    "top-1 [%]",
    log_x=True,
  )
  return command.report(
    task.out,
    "lbfgs_probe",
    {
      "top-1 [%]": 100 * ours,
      "top-1 of raw pixels [%]": 100 * raw,
      "L2": best,
      "loss [nats]": found.loss,
      "largest entry of the gradient": found.gradient_norm,
    },
    {
      "top-1 [%]": "lost; matches or lags behind SGD's 89.5 (Table 10)",
      "top-1 of raw pixels [%]": "baseline",
    },
    {
      "data": (task.data, "ImageNet"),
      "width": (task.cfg.width, 6144),
      "image": (task.cfg.image, 224),
      "held out": (f"{len(held)} images", "20000 images"),
    },
    figure=figure,
  )


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
