"""Zero-shot classification: the class whose sentences are nearest to an image.

    python -m examples.eval.zero_shot --demo
    python -m examples.eval.zero_shot --checkpoint=RUN --tower=TOWER \\
        --data=folder:PATH --names=names.json

Paper, section 2.2 and Table 3. The embeddings of several sentences about a
class are averaged; `--names` maps names of folders to words.
"""

import sys
from pathlib import Path

from absl import flags

from examples.eval import command

# ViT-22B with LiT, as InternVL and others quote Table 3.
PAPER = {
  "ImageNet": 85.9,
  "ImageNet-v2": 80.9,
  "ImageNet-R": 96.0,
  "ImageNet-A": 90.1,
  "ObjectNet": 87.6,
}
# The seven of CLIP's "Prompt Engineering for ImageNet" notebook.
PROMPTS = (
  "itap of a {}.",
  "a bad photo of the {}.",
  "a origami {}.",
  "a photo of the large {}.",
  "a {} in a video game.",
  "art of the {}.",
  "a photo of the small {}.",
)


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  options = {"flag_values": values}
  flags.DEFINE_string("tower", None, "folder of the text tower", **options)
  flags.DEFINE_string("names", None, "JSON: words by folder", **options)
  flags.DEFINE_enum(
    "paper_set", "ImageNet", list(PAPER), "which number of the paper", **options
  )


def evaluate(given: flags.FlagValues) -> dict:
  """Classifies and reports; returns what the JSON holds."""
  import numpy as np

  from examples.data.sources import open_source
  from examples.eval import lit_task
  from examples.eval.metrics import zero_shot
  from examples.eval.metrics.classification import top1
  from examples.usage import blame

  spec = "shapes:unseen" if given.demo else command.data_of(given)
  with blame(f"--data={spec}"):
    source = open_source(spec, "val")
  if given.demo:
    texts = _demo_prompts(source.classes)
  else:
    texts = _prompts(source.classes, given.names)
  images = lit_task.open_images(given, "zero_shot")
  tower = lit_task.tower_of(given, images)
  part = images.embed(source)

  def scores(texts):
    said = tower.embed([text for several in texts for text in several])
    class_of = np.repeat(np.arange(len(texts)), [len(t) for t in texts])
    return zero_shot.scores(part.x, zero_shot.classifier(said, class_of))

  first = [several[:1] for several in texts]
  ours = {
    "top-1 [%]": 100 * top1(scores(texts), part.labels),
    "top-1 of one prompt [%]": 100 * top1(scores(first), part.labels),
    "top-1 by chance [%]": 100 / len(texts),
  }
  if given.demo:
    every = open_source("shapes:all", "val").classes
    labels = np.zeros((len(part.labels), len(every)))
    labels[:, [every.index(name) for name in source.classes]] = part.labels
    wide = scores(_demo_prompts(every))
    ours[f"top-1 among all {len(every)} [%]"] = 100 * top1(wide, labels)
  return command.report(
    images.out,
    "zero_shot",
    ours,
    {
      "top-1 [%]": PAPER[given.paper_set],
      "top-1 by chance [%]": "baseline",
    },
    {
      "data": (spec, given.paper_set),
      "image width": (images.cfg.width, 6144),
      "image": (images.cfg.image, "288, recalled"),
      "text tower": (f"{tower.cfg.width} wide", "1408 wide"),
      "prompts a class": (len(texts[0]), "not in the text"),
    },
  )


def _demo_prompts(classes):
  """Sentences about drawn combinations, of either size."""
  from examples.data.shapes import COLOURS, PROMPTS, SHAPES, SIZES, caption

  found = []
  for name in classes:
    colour, shape = name.split()
    pair = tuple(COLOURS).index(colour), SHAPES.index(shape)
    found.append(
      [
        caption(prompt, *pair, size)
        for prompt in PROMPTS
        for size in range(len(SIZES))
      ]
    )
  return found


def _prompts(classes, names):
  """Sentences about each class of a data set."""
  import json

  from examples.usage import blame

  words = {}
  if names is not None:
    with blame(f"--names={names}"):
      words = json.loads(Path(names).read_text())
      missing = [name for name in classes if name not in words]
      if missing:
        raise ValueError(
          f"must name all {len(classes)} classes, does not know {missing[0]!r}"
        )
  return [
    [prompt.format(words.get(name, name)) for prompt in PROMPTS]
    for name in classes
  ]


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
