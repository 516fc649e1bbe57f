"""Image-text retrieval: recall at 1, 5 and 10, both ways.

    python -m examples.eval.retrieval --demo
    python -m examples.eval.retrieval --checkpoint=RUN --tower=TOWER \\
        --data=coco:PATH

Paper, section 2.2. Each image with all of its captions (five in COCO and
Flickr30k); the demo has one image of each combination of colour and shape.
"""

import sys

from absl import flags

from examples.eval import command


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  options = {"flag_values": values}
  flags.DEFINE_string("tower", None, "folder of the text tower", **options)
  flags.DEFINE_integer("captions", 5, "of each image, at most", 1, **options)


def evaluate(given: flags.FlagValues) -> dict:
  """Retrieves and reports; returns what the JSON holds."""
  import dataclasses

  from examples.eval import lit_task
  from examples.eval.metrics.retrieval import recall
  from examples.eval.metrics.zero_shot import normalised

  spec = "shapes:all" if given.demo else command.data_of(given)
  source = lit_task.open_part(spec, "val")
  if given.demo:
    source = dataclasses.replace(source, count=len(source.combinations))
  images = lit_task.open_images(given, "retrieval")
  tower = lit_task.tower_of(given, images)
  part = images.embed(source)
  if len(part.x) != len(source):
    raise command.UsageError(
      f"--data={spec}: {len(source) - len(part.x)} images cannot be read"
    )
  texts, image_of = [], []
  for i in range(len(source)):
    known = source.captions(i)[: given.captions]
    texts += known
    image_of += [i] * len(known)
  distances = -normalised(part.x) @ normalised(tower.embed(texts)).T
  found = recall(distances, image_of)
  return command.report(
    images.out,
    "retrieval",
    {f"{what} [%]": 100 * share for what, share in found.items()}
    | {"by chance at 1 [%]": 100 / len(source)},
    {f"{what} [%]": "lost (Table 3)" for what in found},
    {
      "data": (spec, "COCO"),
      "images": (len(source), 5000),
      "texts": (len(texts), 25_000),
      "image width": (images.cfg.width, 6144),
      "text tower": (f"{tower.cfg.width} wide", "1408 wide"),
    },
  )


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
