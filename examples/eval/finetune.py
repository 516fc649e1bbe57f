"""Full fine-tuning, at another resolution if asked.

    python -m examples.eval.finetune --demo
    python -m examples.eval.finetune --checkpoint=RUN --data=folder:PATH \\
        --image=518

A zero head, SGD with momentum 0.9, gradients clipped to 1, a cosine after 500
steps of warm-up, no weight decay; the position embedding is resampled
(big_vision configs/transfer.py). The paper fine-tunes ViT-22B at 384, 518 and
560 pixels for its out-of-distribution evaluation. `--image=384` leaves out the
last 6 pixels each way, which patches of 14 do not fill.
"""

import sys

from absl import flags

from examples.eval import command


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  options = {"flag_values": values}
  count = {"lower_bound": 1, **options}
  flags.DEFINE_integer("image", None, "pixels [the checkpoint's]", **count)
  flags.DEFINE_integer("steps", 20_000, "of the training", **count)
  flags.DEFINE_integer("warmup", 500, "steps of them", 0, **options)
  flags.DEFINE_integer("train_batch", 512, "images a step", **count)
  flags.DEFINE_float("lr", 0.03, "peak learning rate", **options)


def evaluate(given: flags.FlagValues) -> dict:
  """Fine-tunes and reports; returns what the JSON holds."""
  import jax

  from examples.eval import adapt, logistic, tasks
  from examples.eval.metrics.classification import top1
  from examples.usage import blame
  from examples.weights import tensors

  task = tasks.open_task(given, "finetune")
  settings = {
    name: given[name].value
    for name in ("image", "steps", "warmup", "train_batch", "lr")
  }
  if given.demo:
    settings |= {
      name: value
      for name, value in adapt.DEMO.items()
      if not given[name].present
    }
  image = settings["image"] or task.cfg.image
  with blame(f"--image={image}"):
    cfg, params = adapt.adapted(task.cfg, task.params, task.classes, image)
  with blame(f"--train_batch={settings['train_batch']}"):
    params, losses = adapt.finetune(
      cfg, params, task.mesh, task.train, folder=task.out,
      steps=settings["steps"], warmup=settings["warmup"],
      batch=settings["train_batch"], lr=settings["lr"], seed=given.seed,
      key=(task.data, given.checkpoint),
    )  # fmt: skip
  tuned = tasks.read_features(
    cfg, params, task.mesh, task.test, layers=("logits",), batch=task.batch
  )
  tensors.write(task.out / "model.safetensors", cfg, jax.device_get(params))

  train, test = task.features("train"), task.features("test")
  probe = logistic.Problem(train.x, train.labels, task.mesh).solve(1e-4)
  paper = "lost (Table 11)"
  return command.report(
    task.out,
    "finetune",
    {
      "top-1 [%]": 100 * top1(tuned.x, tuned.labels),
      "top-1 of a linear probe before [%]": 100
      * top1(probe.logits(test.x), test.labels),
    },
    {"top-1 [%]": paper, "top-1 of a linear probe before [%]": "baseline"},
    {
      "data": (task.data, "ImageNet"),
      "width": (cfg.width, 6144),
      "image": (cfg.image, "384, 518 or 560"),
      "steps": (settings["steps"], "20000 (big_vision's)"),
      "images a step": (settings["train_batch"], "512 (big_vision's)"),
    },
    figure=command.curves(
      {"training": list(map(float, losses))}, "step", "cross-entropy [nats]"
    ),
  )


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
