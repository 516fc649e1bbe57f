"""Few-shot transfer: least squares on a few images of each class.

    python -m examples.eval.fewshot --demo
    python -m examples.eval.fewshot --checkpoint=RUN --data=folder:A,folder:B

Paper, appendix D.4 and Figure 12: 25 data sets, 1, 5, 10 and 25 shots. With a
fixed L2 of 2^10 (big_vision), and with the one of the best mean rank over the
data sets (scenic); over the seeds where there is one set.
"""

import sys

from absl import flags

from examples.eval import command


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  options = {"flag_values": values}
  flags.DEFINE_list("shots", ["1", "5", "10", "25"], "a class", **options)
  flags.DEFINE_integer("draws", 3, "of the images of each class", 1, **options)
  flags.DEFINE_bool(
    "fewer", False, "a class with fewer images gives all it has", **options
  )


def evaluate(given: flags.FlagValues) -> dict:
  """Fits and reports; returns what the JSON holds."""
  import numpy as np

  from examples.eval import tasks
  from examples.eval.metrics import fewshot
  from examples.usage import blame

  name = f"--shots={','.join(given.shots)}"
  with blame(name):
    shots = tuple(map(int, given.shots))
  seeds = range(given.seed, given.seed + given.draws)
  fixed, ranked, pixels, strengths = {}, {}, {}, {}
  accuracies: dict[int, dict] = {k: {} for k in shots}
  specs = [None] if given.demo else command.data_of(given).split(",")
  for spec in specs:
    task = tasks.open_task(given, "fewshot", data=spec)
    sides = task.pixels()
    parts = task.features("train"), task.features("test")
    for k in shots:
      with blame(f"{name} --data={task.data}"):
        chosen = [
          fewshot.support(parts[0].classes, k, seed, strict=not given.fewer)
          for seed in seeds
        ]
      runs = [_accuracies(*parts, rows, fewshot.L2_RANGE) for rows in chosen]
      raw = [_accuracies(*sides, rows, (fewshot.L2,)) for rows in chosen]
      for i, run in enumerate(runs):
        accuracies[k][task.data, i] = run
      fixed.setdefault(k, []).append(np.mean([r[fewshot.L2] for r in runs]))
      pixels.setdefault(k, []).append(np.mean([r[fewshot.L2] for r in raw]))
  for k, runs in accuracies.items():
    strengths[k] = fewshot.choose_l2(runs)
    ranked[k] = np.mean([run[strengths[k]] for run in runs.values()])

  ours = {}
  for k in shots:
    ours[f"{k}-shot [%]"] = 100 * float(np.mean(fixed[k]))
    ours[f"{k}-shot, ranked L2 [%]"] = 100 * float(ranked[k])
    ours[f"{k}-shot of raw pixels [%]"] = 100 * float(np.mean(pixels[k]))
  points = {
    "L2 fixed": [(k, ours[f"{k}-shot [%]"]) for k in shots],
    "L2 ranked": [(k, ours[f"{k}-shot, ranked L2 [%]"]) for k in shots],
    "raw pixels": [(k, ours[f"{k}-shot of raw pixels [%]"]) for k in shots],
  }
  lost = "lost (Figure 12)"
  return command.report(
    task.out,
    "fewshot",
    ours,
    {what: "baseline" if "raw" in what else lost for what in ours},
    {
      "data": (task.data if len(specs) == 1 else specs, "25 data sets"),
      "width": (task.cfg.width, 6144),
      "shots": (list(shots), list(fewshot.SHOTS)),
      "L2": (f"{fewshot.L2}, ranked {strengths}", "not in the text"),
    },
    figure=command.curves(points, "shots", "top-1 [%]"),
  )


def _accuracies(train, test, rows, strengths) -> dict[float, float]:
  """Accuracy by strength, of one support set."""
  from examples.eval.metrics.classification import top1
  from examples.eval.metrics.fewshot import Ridge

  classes = train.labels.shape[1]
  ridge = Ridge(train.x[rows], train.classes[rows], classes)
  return {l2: top1(ridge.scores(test.x, l2), test.labels) for l2 in strengths}


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
