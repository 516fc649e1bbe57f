"""Distillation: a small ViT learns to say what a large one says.

    python -m examples.eval.distill --demo
    python -m examples.eval.distill --checkpoint=RUN --data=folder:PATH \\
        --student=vit_b

Paper, section 5.3 and Beyer et al. 2022: teacher and student see the same crops
and the same mixup, and the student minimises the divergence from the teacher's
predictions, for very long. The same student is trained on the labels alone too.
The demo's has the labels of 60 digits, and the teacher's word on all of them.
"""

import dataclasses
import sys
from pathlib import Path

from absl import flags

from examples.eval import command

# ViT-B/16, and ViT-L/16 at 384 pixels, on ImageNet.
PAPER = {"vit_b": 88.6, "vit_l": 89.6}


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  options = {"flag_values": values}
  count = {"lower_bound": 1, **options}
  flags.DEFINE_enum(
    "student", "vit_b", ["vit_s", "vit_b", "vit_l"], "its shape", **options
  )
  flags.DEFINE_string("start", None, "checkpoint of the student", **options)
  flags.DEFINE_integer("steps", 10_000, "of the student", **count)
  flags.DEFINE_integer("student_batch", 512, "images a step", **count)
  flags.DEFINE_float("lr", 1e-3, "peak learning rate", **options)
  flags.DEFINE_float("temperature", 1.0, "of both softmaxes", **options)
  flags.DEFINE_float("mixup", 1.0, "alpha of its Beta", 0.0, **options)


def evaluate(given: flags.FlagValues) -> dict:
  """Trains both students and reports them; returns what the JSON holds."""
  from examples.data.pipeline import Augment, train_batches
  from examples.eval import students, tasks
  from examples.eval.metrics.classification import top1
  from examples.usage import blame

  task = tasks.open_task(
    given, "distill", demo_data="digits", demo_steps=students.TEACHER_STEPS
  )
  source = labelled = task.train
  if given.demo:
    settings = students.DEMO
    shape = dataclasses.replace(task.cfg, width=32, depth=2, mlp=64)
    labelled = students.few(source)
  else:
    settings = {
      "steps": given.steps,
      "batch": given.student_batch,
      "lr": given.lr,
      "mixup": given.mixup,
    }
    shape = students.shape_of(given.student, task.cfg)
  if len(source.classes) != task.cfg.classes:
    raise command.UsageError(
      f"--checkpoint: the teacher has {task.cfg.classes} classes, "
      f"--data={task.data} has {len(source.classes)}; fine-tune it first"
    )
  for name in ("steps", "lr", "mixup"):
    if given[name].present:
      settings = settings | {name: given[name].value}
  start = None
  if given.start is not None:
    shape, start = command.load_model(Path(given.start), "--start", task.mesh)

  def batches(part):
    with blame(f"--student_batch={settings['batch']}"):
      return train_batches(
        part,
        task.cfg,
        batch=settings["batch"],
        seed=given.seed,
        augment=Augment(mixup=settings["mixup"]),
      )

  ours, curves = {}, {}
  test = task.features("test", ("logits",))
  ours["teacher, top-1 [%]"] = 100 * top1(test.x, test.labels)
  for name, part, teacher in (
    ("student, top-1 [%]", source, task.params),
    ("same student without a teacher [%]", labelled, None),
  ):
    params, losses = students.train(
      shape,
      task.mesh,
      batches(part),
      steps=settings["steps"],
      lr=settings["lr"],
      start=start,
      teacher_cfg=task.cfg,
      teacher=teacher,
      temperature=given.temperature,
      folder=task.out,
      key=(task.data, settings, given.seed, given.start, given.checkpoint),
    )
    seen = tasks.read_features(
      shape, params, task.mesh, task.test, layers=("logits",), batch=task.batch
    )
    ours[name] = 100 * top1(seen.x, seen.labels)
    curves[name.split(",")[0]] = list(map(float, losses))
  paper = PAPER.get(given.student, "not in the paper")
  return command.report(
    task.out,
    "distill",
    ours,
    {
      "student, top-1 [%]": paper,
      "same student without a teacher [%]": "baseline",
    },
    {
      "data": (f"{len(source)} images of {task.data}", "ImageNet"),
      "labels without a teacher": (len(labelled), "of all images"),
      "teacher's width": (task.cfg.width, 6144),
      "student": (f"{shape.width}/{shape.depth}", given.student),
      "from": ("scratch" if start is None else given.start, "a checkpoint"),
      "image": (shape.image, 224 if given.student != "vit_l" else 384),
      "epochs": (
        round(settings["steps"] * settings["batch"] / len(source)), 1000
      ),
      "views an image": ("a new one each time", "500"),
    },
    figure=command.curves(curves, "step", "loss [nats]"),
  )  # fmt: skip


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
