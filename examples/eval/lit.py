"""Locked-image tuning: trains a text tower for a frozen ViT.

    python -m examples.eval.lit --demo
    python -m examples.eval.lit --checkpoint=RUN --data=coco:PATH --out=TOWER

Paper, section 2.2: the contrastive loss over all pairs of a batch, computed
round a ring of all devices; a text tower of the size of ViT-g
(`--tower_size=vit_g`), 16 tokens of a SentencePiece model that is trained here
on the captions. The folder then holds what `examples.eval.zero_shot` and
`examples.eval.retrieval` read with `--tower`.
"""

import sys

from absl import flags

from examples.eval import command


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  options = {"flag_values": values}
  count = {"lower_bound": 1, **options}
  flags.DEFINE_enum(
    "tower_size", "small", ["small", "vit_g"], "of the text tower", **options
  )
  flags.DEFINE_integer("vocabulary", 32_000, "pieces at most", **count)
  flags.DEFINE_integer("steps", 1000, "of the training", **count)
  flags.DEFINE_integer("pairs", 1024, "images and texts a step", **count)
  flags.DEFINE_float("lr", 1e-3, "peak learning rate", **options)


def evaluate(given: flags.FlagValues) -> dict:
  """Trains the tower and reports it; returns what the JSON holds."""
  from examples.eval import lit_task
  from examples.eval.metrics.retrieval import recall
  from examples.eval.metrics.zero_shot import normalised

  spec = "shapes" if given.demo else command.data_of(given)
  source = lit_task.open_part(spec, "train")
  held = lit_task.open_part(spec, "val")
  images = lit_task.open_images(given, "lit")
  if given.demo:
    options = lit_task.DEMO | {"seed": given.seed}
    for name in ("steps", "pairs", "lr"):
      if given[name].present:
        options[name] = given[name].value
    source = lit_task.demo_pairs(source)
  else:
    options = {
      "size": given.tower_size,
      "vocabulary": given.vocabulary,
      "steps": given.steps,
      "pairs": given.pairs,
      "lr": given.lr,
      "seed": given.seed,
    }
  tower, losses, config = lit_task.trained(images, source, **options)

  # Every held-out image with its first caption, as far as they differ.
  texts: dict[str, int] = {}
  for i in range(len(held)):
    texts.setdefault(held.captions(i)[0], i)
  rows = list(texts.values())
  seen = normalised(images.embed(held).x[rows])
  said = normalised(tower.embed(list(texts)))
  found = recall(-seen @ said.T, range(len(rows)))
  return command.report(
    images.out,
    "lit",
    {"contrastive loss at the end [nats]": float(losses[-20:].mean())}
    | {f"{what} [%]": 100 * share for what, share in found.items()},
    {},
    {
      "data": (spec, "WebLI, its English part"),
      "image width": (images.cfg.width, 6144),
      "image": (images.cfg.image, "288, recalled"),
      "text tower": (
        f"{config.text.width}/{config.text.depth}/{config.text.mlp}/"
        f"{config.text.heads}",
        "1408/40/6144/16",
      ),
      "tokens": (config.text.tokens, 16),
      "pieces": (config.text.vocabulary, "trained on C4"),
      "steps": (config.steps, 1_000_000),
      "pairs a step": (config.batch, 32_768),
    },
    figure=command.curves(
      {"training": list(map(float, losses))}, "step", "contrastive loss [nats]"
    ),
  )


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
