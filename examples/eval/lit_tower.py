"""Locked-image tuning: a text tower learns to say what a frozen ViT sees."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.eval import tokenizer as pieces
from examples.eval import training
from examples.usage import UsageError
from examples.weights import tensors
from models.contrastive import contrastive_loss
from models.sharding import check_mesh, param_specs
from models.text_tower import ShardedText, TextConfig, init_text

_ROWS = jax.P(("data", "model"))
_EMBEDDED = 256  # texts at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class LitConfig:
  """How a text tower is trained; the paper's has 1M steps of 32,768 pairs.

  Attributes:
    text: the tower's shape.
    steps: of the whole training.
    batch: pairs a step, over all devices.
    lr: peak learning rate, after a tenth of the steps, falling as a cosine.
    start_t: inverse temperature at the start (big_vision's 10).
    seed: of the first parameters and the order of the pairs.
  """

  text: TextConfig
  steps: int
  batch: int
  lr: float = 1e-3
  start_t: float = 10.0
  seed: int = 0


class Tower:
  """A trained text tower and its tokenizer, on a mesh."""

  def __init__(
    self,
    cfg: TextConfig,
    params: dict,
    tokenizer: pieces.Tokenizer,
    mesh: jax.sharding.Mesh,
  ):
    """Args:
    cfg: the tower's shape.
    params: the tree of `init_text`, anywhere.
    tokenizer: that it was trained with.
    mesh: with the axes "data" and "model".
    """
    self.cfg, self.tokenizer = cfg, tokenizer
    self.params = params
    tower = ShardedText(cfg, mesh)
    self._run = jax.jit(
      jax.shard_map(
        lambda params, ids: tower(params, ids)[0],
        mesh=mesh,
        in_specs=(tower.specs, _ROWS),
        out_specs=_ROWS,
      )
    )
    self._rows = jax.NamedSharding(mesh, _ROWS)
    self._batch = -(-_EMBEDDED // mesh.size) * mesh.size
    self._placed = jax.device_put(
      params,
      jax.tree.map(lambda s: jax.NamedSharding(mesh, s), tower.specs),
    )

  def embed(self, texts: Sequence[str]) -> np.ndarray:
    """Returns the embeddings `[N, E]` of texts, not normalised."""
    ids = self.tokenizer(texts, self.cfg.tokens)
    padded = np.pad(ids, ((0, -len(ids) % self._batch), (0, 0)))
    found = [
      jax.device_get(self._run(self._placed, jax.device_put(part, self._rows)))
      for part in np.split(padded, len(padded) // self._batch)
    ]
    return np.concatenate(found)[: len(texts)]

  def save(self, folder: Path) -> None:
    """Writes the tower to a folder, its `tower.json` last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(self.tokenizer.model)
    params = jax.device_get(self.params)
    tensors.write(folder / "tower.safetensors", self.cfg.vit, params)
    partial = folder / "tower.tmp"
    partial.write_text(json.dumps(dataclasses.asdict(self.cfg), indent=2))
    os.replace(partial, folder / "tower.json")


def load_tower(folder: Path, mesh: jax.sharding.Mesh, embedding: int) -> Tower:
  """Returns the tower that `Tower.save` wrote.

  Args:
    folder: where.
    mesh: to place it on.
    embedding: the width of the image tower, which it must fit.

  Raises:
    UsageError: if there is none, or it was trained for another width.
  """
  path = folder / "tower.json"
  if not path.is_file():
    raise UsageError(
      f"--tower={folder}: must hold tower.json, as examples.eval.lit writes it"
    )
  cfg = TextConfig(**json.loads(path.read_text()))
  if cfg.embedding != embedding:
    raise UsageError(
      f"--tower={folder}: its texts have {cfg.embedding} features, the image "
      f"model's width is {embedding}"
    )
  _, params = tensors.read(folder / "tower.safetensors")
  return Tower(cfg, params, pieces.load(folder / "tokenizer.model"), mesh)


def train_tower(
  config: LitConfig,
  images: np.ndarray,
  captions: Callable[[int], Sequence[str]],
  tokenizer: pieces.Tokenizer,
  mesh: jax.sharding.Mesh,
  *,
  folder: Path | None = None,
) -> tuple[Tower, np.ndarray]:
  """Trains a text tower against frozen embeddings of images.

  Args:
    config: how.
    images: `[N, E]`, of the locked image tower.
    captions: of an image, by its row; each step takes one of them.
    tokenizer: of the texts.
    mesh: with the axes "data" and "model".
    folder: for checkpoints; the same call goes on from the newest one.

  Returns:
    The tower, and the contrastive loss of every step.

  Raises:
    ValueError: if the mesh does not divide the tower or the batch, or the
      images have not the tower's width.
  """
  cfg = config.text
  if images.shape[1] != cfg.embedding:
    raise ValueError(
      f"embedding must be the width of the image features, "
      f"{images.shape[1]}, got {cfg.embedding}"
    )
  check_mesh(cfg.vit, mesh, config.batch, "tokens")
  tower = ShardedText(cfg, mesh)
  params = {
    "tower": init_text(jax.random.key(config.seed), cfg),
    "log_t": jnp.float32(math.log(config.start_t)),
  }
  specs = {"tower": param_specs(cfg.vit, mesh), "log_t": jax.P()}

  def loss(params, frozen, batch):
    del frozen
    text, _ = tower(params["tower"], batch["ids"])
    return contrastive_loss(
      batch["image"], text, params["log_t"], batch["mask"]
    )

  def batch_of(step):
    rng = np.random.default_rng((config.seed, step))
    replace = config.batch > len(images)
    rows = rng.choice(len(images), config.batch, replace=replace)
    texts = []
    for row in rows:
      known = captions(int(row))
      texts.append(known[rng.integers(len(known))])
    return {
      "image": images[rows].astype(np.float32),
      "ids": tokenizer(texts, cfg.tokens),
      "mask": np.ones(config.batch, np.float32),
    }

  schedule = optax.warmup_cosine_decay_schedule(
    0.0, config.lr, max(1, config.steps // 10), config.steps
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.95)
  )
  found, losses = training.train(
    loss,
    params,
    specs,
    optimizer,
    mesh,
    batch_of,
    steps=config.steps,
    folder=folder
    and folder / f"checkpoints-{_name(config, tokenizer, images)}",
    title="text tower",
  )
  return Tower(cfg, found["tower"], tokenizer, mesh), losses


def _name(config, tokenizer, images) -> str:
  """A name for a training: another one, another folder of checkpoints."""
  parts = (repr(config).encode(), tokenizer.model, images.tobytes())
  digest = hashlib.sha256()
  for part in parts:
    digest.update(part)
  return f"checkpoints-{digest.hexdigest()[:8]}"
