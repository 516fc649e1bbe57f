"""Frozen features of the sharded model: any layer, any mesh, kept on disk."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from models.sharding import check_mesh
from models.vit import ShardedViT
from models.vit_config import ViTConfig

# Batches of one file of the cache: what an interruption can lose.
_BATCHES_A_PIECE = 8


def layer_names(cfg: ViTConfig) -> tuple[str, ...]:
  """The layers that `extract` knows, in the order of the forward pass.

  Example:
    >>> from models.vit_config import get_config
    >>> layer_names(get_config("vit_tiny", depth=2))
    ('embed', 'block_00', 'block_01', 'norm', 'pool', 'pre_logits', 'logits')
  """
  return (
    "embed",
    *(f"block_{i:02}" for i in range(cfg.depth)),
    "norm",
    *(("pool",) if cfg.pool else ()),
    "pre_logits",
    *(("logits",) if cfg.classes else ()),
  )


def extract(
  cfg: ViTConfig,
  params: dict,
  mesh: jax.sharding.Mesh,
  images: Iterable[np.ndarray],
  *,
  layers: Sequence[str] = ("pre_logits",),
  pooled: bool = True,
  batch: int = 64,
  cache: str | os.PathLike | None = None,
  layout: str = "tokens",
  compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> dict[str, np.ndarray]:
  """Returns features of every image, in order.

  Features of the layers of `layer_names`: "embed" is what enters the first
  block, "block_00" what leaves it, "norm" what the pooling reads, "pool" what
  its attention gives, "pre_logits" what the classifier reads. The last three
  have no tokens.

  With a `cache`, pieces are written as they are done; after an interruption the
  same call computes only the rest. A piece counts if model, layers and images
  are the same, so that a folder may serve several.

  Args:
    cfg: the model's shape.
    params: the tree of `models.params.init_params`, anywhere.
    mesh: with the axes "data" and "model".
    images: each `[H, W, C]`, uint8 or float32 in [-1, 1].
    layers: which features.
    pooled: mean over the tokens, instead of every token.
    batch: images at a time, over all devices.
    cache: a folder, made if needed.
    layout: "tokens" or "features"; see `models.vit`.
    compute_dtype: of matmul operands.

  Returns:
    For each layer `[N, D]` float32, or `[N, S, D]` if not pooled; "logits" are
    `[N, V]`.

  Raises:
    ValueError: if a layer is unknown, there is no image, one has not the
      model's size, or the mesh does not divide model or batch.

  Cost: one forward pass; the whole result is held in memory. Use `pieces`
    where it does not fit.
  """
  found = list(
    pieces(
      cfg, params, mesh, images, layers=layers, pooled=pooled, batch=batch,
      cache=cache, layout=layout, compute_dtype=compute_dtype,
    )
  )  # fmt: skip
  if not found:
    raise ValueError("images must hold at least one image, got none")
  return {name: np.concatenate([p[name] for p in found]) for name in layers}


def pieces(
  cfg: ViTConfig,
  params: dict,
  mesh: jax.sharding.Mesh,
  images: Iterable[np.ndarray],
  *,
  layers: Sequence[str] = ("pre_logits",),
  pooled: bool = True,
  batch: int = 64,
  cache: str | os.PathLike | None = None,
  layout: str = "tokens",
  compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields what `extract` returns, some batches of images at a time."""
  unknown = set(layers) - set(layer_names(cfg))
  if unknown or not layers:
    raise ValueError(
      f"layers must be some of {', '.join(layer_names(cfg))}, "
      f"got {', '.join(sorted(unknown)) or 'none'}"
    )
  if jax.process_count() > 1:
    raise ValueError(
      "features are extracted by one process, got "
      f"{jax.process_count()} processes"
    )
  check_mesh(cfg, mesh, batch, layout)
  # Compiled when the first piece is not in the cache.
  run = _program(cfg, mesh, tuple(layers), pooled, layout, compute_dtype)
  folder, placed = None, None
  if cache is not None:
    folder = Path(cache)
    folder.mkdir(parents=True, exist_ok=True)
    asked = [sorted(layers), pooled, str(jnp.dtype(compute_dtype))]
    key = _digest(json.dumps(asked).encode(), fingerprint(cfg, params).encode())
  total = len(images) if hasattr(images, "__len__") else None
  bar = tqdm.tqdm(
    total=total, unit="image", desc="features", disable=None, leave=False
  )
  with bar:
    for rows in _chunks(images, batch * _BATCHES_A_PIECE):
      rows = [_checked(row, cfg) for row in rows]
      path = folder and folder / f"{_digest(key.encode(), *rows)}.npz"
      piece = _read(path, layers) if path else None
      if piece is None:
        if placed is None:
          placed = jax.device_put(params, run.shardings)
        piece = _compute(run, placed, rows, batch)
        if path:
          _write(path, piece)
      bar.update(len(rows))
      yield piece


def fingerprint(cfg: ViTConfig, params: dict) -> str:
  """Returns a name for a model: the same bits anywhere, the same name.

  Each leaf is summed as whole numbers on the devices that hold it, with odd
  weights, so that no order of the sums changes the result.
  """

  @jax.jit
  def sums(params):
    def of_leaf(x):
      x = jnp.ravel(x).astype(jnp.float32)
      bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
      weights = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1
      return (bits * weights).sum(dtype=jnp.uint32)

    return jax.tree.map(of_leaf, params)

  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(sums(params)))
  named = [(jax.tree_util.keystr(path), int(leaf)) for path, leaf in leaves]
  return _digest(repr((cfg, named)).encode())


class _program:
  """The compiled forward pass: images `[B, H, W, C]` to features by name."""

  def __init__(self, cfg, mesh, layers, pooled, layout, compute_dtype):
    def tap(x):
      x = x.reshape(-1, cfg.tokens, x.shape[-1]).astype(jnp.float32)
      return x.mean(axis=1) if pooled else x

    vit = ShardedViT(
      cfg, mesh, layout=layout, compute_dtype=compute_dtype, tap=tap
    )
    examples = jax.P(("data", "model"))
    width = jax.P("data", "model")
    if layout == "tokens":
      tapped = examples
    else:
      tapped = width if pooled else jax.P("data", None, "model")
    specs = {
      "pre_logits": width,
      "logits": examples if cfg.classes else width,
      "embed": tapped,
      "norm": tapped,
      "block": jax.P(None, *tapped),
    } | ({"pool": width} if cfg.pool else {})

    @jax.shard_map(mesh=mesh, in_specs=(vit.specs, examples), out_specs=specs)
    def forward(params, images):
      logits, out = vit(params, images)
      return out["taps"] | {"pre_logits": out["pre_logits"], "logits": logits}

    @jax.jit
    def run(params, images):
      found = forward(params, images)
      blocks = found.pop("block")
      found |= {f"block_{i:02}": blocks[i] for i in range(cfg.depth)}
      return {name: found[name] for name in layers}

    self._run = run
    self._images = jax.NamedSharding(mesh, examples)
    self.shardings = jax.tree.map(
      lambda spec: jax.NamedSharding(mesh, spec), vit.specs
    )

  def __call__(self, params, images):
    return self._run(params, jax.device_put(images, self._images))


def _compute(run, params, rows, batch):
  """Features of some images, batch by batch."""
  found = []
  for part in _chunks(rows, batch):
    images = np.zeros((batch, *rows[0].shape), np.float32)
    images[: len(part)] = np.stack(part)
    out = jax.device_get(run(params, images))
    found.append({name: x[: len(part)] for name, x in out.items()})
  return {name: np.concatenate([f[name] for f in found]) for name in found[0]}


def _chunks(items, size):
  items = iter(items)
  while chunk := list(itertools.islice(items, size)):
    yield chunk


def _checked(image, cfg):
  """One image as the model reads it."""
  image = np.asarray(image)
  expected = (cfg.image, cfg.image, cfg.channels)
  if image.shape != expected:
    raise ValueError(
      f"every image must have the model's size, {expected}, "
      f"got image.shape={image.shape}"
    )
  if image.dtype == np.uint8:
    return image.astype(np.float32) / 127.5 - 1
  return image.astype(np.float32)


def _digest(*parts) -> str:
  found = hashlib.sha256()
  for part in parts:
    found.update(part)
  return found.hexdigest()[:32]


def _read(path, layers):
  """A piece of the cache; None if it is not there or cannot be read."""
  try:
    with np.load(path) as piece:
      return {name: piece[name] for name in layers}
  except (OSError, ValueError, KeyError, EOFError):
    return None


def _write(path, piece):
  partial = path.with_suffix(".tmp")
  with partial.open("wb") as file:
    np.savez(file, **piece)
  os.replace(partial, path)
