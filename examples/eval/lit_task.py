"""What the commands about images and texts share: model, tower, images."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from examples.eval import command, demo, lit_tower, tasks, tokenizer
from examples.eval.captions import Captioned, open_captions
from examples.usage import UsageError, blame
from models.text_tower import TextConfig, vit_g_text
from models.vit_config import ViTConfig

DEMO_FOLDER = Path("runs") / "eval-lit"
TOWERS = ("small", "vit_g")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
  """A locked image tower on a mesh.

  Attributes:
    cfg: its shape.
    params: its parameters.
    mesh: the devices.
    out: folder of the results.
    batch: images at a time.
  """

  cfg: ViTConfig
  params: dict
  mesh: jax.sharding.Mesh
  out: Path
  batch: int

  def embed(self, source) -> tasks.Part:
    """Returns pre-logits and labels of a source, kept in the folder."""
    return tasks.read_features(
      self.cfg,
      self.params,
      self.mesh,
      source,
      batch=self.batch,
      cache=self.out / "features",
    )


def open_images(given, name: str) -> Images:
  """Opens the image tower that the flags name."""
  mesh = command.mesh_of(given)
  out = command.out_folder(given, name)
  if given.demo:
    cfg, params = demo.shapes()
  else:
    cfg, params = command.model_of(given, mesh)
  return Images(cfg=cfg, params=params, mesh=mesh, out=out, batch=given.batch)


def open_part(spec: str, split: str) -> Captioned:
  """Opens captioned images; what is wrong is one line.

  Raises:
    UsageError: if they cannot be read.
  """
  with blame(f"--data={spec}"):
    return open_captions(spec, split)


def text_config(size: str, vocabulary: int, embedding: int) -> TextConfig:
  """The shape of a text tower by name: "small" or "vit_g"."""
  if size == "vit_g":
    return vit_g_text(vocabulary, embedding)
  return TextConfig(
    width=64,
    depth=2,
    mlp=128,
    heads=4,
    vocabulary=vocabulary,
    embedding=embedding,
  )


def trained(
  images: Images,
  source: Captioned,
  *,
  size: str,
  vocabulary: int,
  steps: int,
  pairs: int,
  lr: float,
  seed: int,
) -> tuple[lit_tower.Tower, np.ndarray, lit_tower.LitConfig]:
  """Trains a tokenizer and a text tower on captioned images, and saves them.

  Args:
    images: the locked tower; its folder takes the result.
    source: to learn from.
    size: of the text tower, as for `text_config`.
    vocabulary: pieces of the tokenizer at most.
    steps, pairs, lr, seed: of the training.

  Raises:
    UsageError: if an image cannot be read, or the mesh does not divide.
  """
  part = images.embed(source)
  if len(part.labels) != len(source):
    raise UsageError(
      f"--data: {len(source) - len(part.labels)} of {len(source)} images "
      "cannot be read; a caption needs its image"
    )
  rows = range(len(source))
  words = tokenizer.train(
    (text for i in rows for text in source.captions(i)), vocabulary
  )
  config = lit_tower.LitConfig(
    text=text_config(size, words.vocabulary, images.cfg.width),
    steps=steps,
    batch=pairs,
    lr=lr,
    seed=seed,
  )
  with blame(f"--pairs={pairs} --tower_size={size}"):
    tower, losses = lit_tower.train_tower(
      config, part.x, source.captions, words, images.mesh, folder=images.out
    )
  tower.save(images.out)
  return tower, losses, config


def tower_of(given, images: Images) -> lit_tower.Tower:
  """The tower of `--tower`, or the demo's, which is trained if need be."""
  if not given.demo:
    if given.tower is None:
      raise UsageError("--tower must name the folder of a trained text tower")
    return lit_tower.load_tower(
      Path(given.tower), images.mesh, images.cfg.width
    )
  if not (DEMO_FOLDER / "tower.json").is_file():
    there = dataclasses.replace(images, out=DEMO_FOLDER)
    source = open_part("shapes", "train")
    return trained(there, demo_pairs(source), **DEMO)[0]
  return lit_tower.load_tower(DEMO_FOLDER, images.mesh, images.cfg.width)


DEMO = {
  "size": "small",
  "vocabulary": 64,
  "steps": 200,
  "pairs": 128,
  "lr": 3e-3,
  "seed": 0,
}


def demo_pairs(source):
  """As many drawn images as the demo learns from."""
  return dataclasses.replace(source, count=2048)
