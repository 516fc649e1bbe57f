"""Feature attribution: `python -m examples.eval.attribution --demo`.

Integrated gradients of the predicted class's logit, from a grey image, in 1,024
steps, and how far they are from complete; a heat map of each image (paper,
Appendix L). `--data` and `--checkpoint` name images and a model, which may be
the two checkpoints before and after its cooldown. A minute on two cores.
"""

import sys

from absl import flags

from examples.eval import command
from examples.usage import UsageError, blame


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


def define(values: flags.FlagValues) -> None:
  """Adds the flags of this command."""
  options = {"flag_values": values}
  flags.DEFINE_integer("count", 3, "images, the first ones", 1, **options)
  flags.DEFINE_integer("steps", 1024, "of the path", 1, **options)
  flags.DEFINE_float("grey", 0.5, "the baseline, 0 black to 1", 0, 1, **options)


def evaluate(given) -> dict:
  """Runs the evaluation; returns what `command.report` does."""
  import numpy as np

  from examples.data.sources import open_source
  from examples.eval.metrics.attribution import integrated_gradients
  from examples.eval.plex_sets import shown
  from examples.eval.predict import Some, open_model

  out = command.out_folder(given, "attribution")
  model = open_model(given, out)
  spec = "digits" if given.demo else given.data
  if spec is None:
    raise UsageError("--data must name a data set; --demo needs none")
  with blame(f"--data={spec}"):
    source = open_source(spec, "val")
    count = min(given.count, len(source))
    images, labels = shown(Some(source, range(count)), model.cfg)
  gradient = logit_gradient(model)
  baseline = np.full_like(images[0], 2 * given.grey - 1)
  ours, maps = {}, []
  for i, image in enumerate(images):
    picked = int(gradient.logits(image).argmax())
    parts, gap = integrated_gradients(
      lambda points, picked=picked: gradient(points, picked),
      image,
      baseline,
      steps=given.steps,
      batch=given.batch,
    )
    ours |= {
      f"image_{i}_label": int(labels[i]),
      f"image_{i}_class": picked,
      f"image_{i}_sum": float(parts.sum()),
      f"image_{i}_completeness_gap": gap,
    }
    maps.append((image, np.abs(parts).sum(axis=-1), picked))
  ours["largest_gap"] = max(
    abs(value) for name, value in ours.items() if name.endswith("_gap")
  )
  return command.report(
    out,
    "attribution",
    ours,
    {},
    {
      "data": (spec, "three images"),
      "model": ("--demo" if given.demo else given.checkpoint, "ViT-22B"),
      "steps": (given.steps, 1024),
      "grey baseline": (given.grey, 0.5),
      "rule": ("midpoint", "not said"),
    },
    figure=_figure(maps),
  )


class logit_gradient:
  """One class's logit and its gradient in the image, on the model's mesh.

  The sharded model's own backward, with respect to what it reads.
  """

  def __init__(self, model):
    import jax
    from jax import lax

    from models.vit import ShardedViT

    self._model, self._jax = model, jax
    vit = ShardedViT(model.cfg, model.mesh)
    examples = jax.P(("data", "model"))

    @jax.jit
    @jax.shard_map(
      mesh=model.mesh,
      in_specs=(vit.specs, examples, jax.P()),
      out_specs=(examples, examples, examples),
    )
    def run(params, images, picked):
      def total(images):
        logits, _ = vit(params, images)
        one = logits[:, picked]
        return lax.psum(one.sum(), ("data", "model")), (one, logits)

      (_, (one, logits)), slope = jax.value_and_grad(total, has_aux=True)(
        images
      )
      return one, slope, logits

    self._run = run
    self._images = jax.NamedSharding(model.mesh, examples)
    self._params = jax.device_put(
      model.params,
      jax.tree.map(lambda s: jax.NamedSharding(model.mesh, s), vit.specs),
    )

  def __call__(self, points, picked: int):
    """Returns the logits `[B]` and gradients `[B, H, W, C]`; B is the batch."""
    placed = self._jax.device_put(points, self._images)
    one, slope, _ = self._run(self._params, placed, picked)
    return self._jax.device_get((one, slope))

  def logits(self, image):
    """Returns all logits of one image, `[V]`."""
    import numpy as np

    points = np.repeat(image[None], self._model.batch, axis=0)
    placed = self._jax.device_put(points, self._images)
    return np.asarray(self._run(self._params, placed, 0)[2])[0]


def _figure(maps):
  from matplotlib.figure import Figure

  figure = Figure(figsize=(2.5 * len(maps), 5), layout="constrained")
  panels = figure.subplots(2, len(maps), squeeze=False)
  for (image, heat, picked), above, below in zip(maps, *panels, strict=True):
    seen = ((image + 1) / 2).clip(0, 1)
    above.imshow(seen.squeeze(), cmap="gray")
    above.set_title(f"class {picked}")
    below.imshow(heat, cmap="viridis")
    for axis in (above, below):
      axis.set_axis_off()
  return figure


if __name__ == "__main__":
  sys.exit(main(sys.argv))
