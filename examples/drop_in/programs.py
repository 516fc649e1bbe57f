"""Forward and all gradients of each model, lowered for devices by name."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import collective_mm.equinox
from collective_mm.flax.nnx import ColumnDense, RowDense
from examples.drop_in import (
  llama_nnx,
  llama_nnx_sharded,
  mixer_equinox,
  mixer_equinox_sharded,
  vit_linen,
  vit_linen_sharded,
)

Lowered = jax.stages.Lowered
_TOKENS = jax.P("data", "model")
_SEQUENCES = jax.P(("data", "model"))


def llama_block(
  sharded: bool,
  mesh: jax.sharding.Mesh,
  *,
  cfg: llama_nnx.Config,
  batch: int,
  sequence: int,
  schedule: str | tuple[str, str] = "auto",
  by_batch: bool = False,
) -> Lowered:
  """One block of `llama_nnx`, or of `llama_nnx_sharded`.

  Args:
    sharded: which; the other one is partitioned by the compiler alone, from the
      same shardings of the same parameters.
    mesh: with the axes "data" and "model".
    cfg: the shape of the model; its `param_dtype` is that of the parameters.
    batch: sequences, over all devices.
    sequence: tokens in each; they are sharded over the model axis.
    schedule: of the sharded layers.
    by_batch: whether the model axis shards the sequences, not their tokens.
  """
  with_ring = nnx.eval_shape(
    lambda: llama_nnx_sharded.Block(
      cfg, rngs=nnx.Rngs(0), mesh=mesh, schedule=schedule
    )
  )
  spec = _SEQUENCES if by_batch else _TOKENS
  if by_batch:
    for _, layer in nnx.iter_modules(with_ring):
      if isinstance(layer, ColumnDense):
        layer.gather_dim = 0
      if isinstance(layer, RowDense):
        layer.scatter_dim = 0
  block = with_ring
  if not sharded:
    block = nnx.eval_shape(lambda: llama_nnx.Block(cfg, rngs=nnx.Rngs(0)))
  graph, state = nnx.split(block)
  state = jax.tree.map(
    lambda a, s: _struct(a, s, mesh),
    nnx.as_pure(state),
    nnx.as_pure(nnx.get_partition_spec(nnx.state(with_ring))),
  )
  x = jax.ShapeDtypeStruct((batch, sequence, cfg.width), cfg.dtype)
  return _lower(
    lambda state, x: nnx.merge(graph, state)(x),
    state,
    _struct(x, spec, mesh),
    mesh,
    spec,
  )


def vit(
  sharded: bool,
  mesh: jax.sharding.Mesh,
  *,
  cfg: vit_linen.Config,
  batch: int,
  image: tuple[int, int],
) -> Lowered:
  """The whole of `vit_linen`, or of `vit_linen_sharded`.

  Args:
    sharded, mesh, batch: as in `llama_block`.
    cfg: the shape of the model.
    image: pixels of the sides.
  """
  images = jax.ShapeDtypeStruct((batch, *image, 3), cfg.dtype)
  images = _struct(images, jax.P("data"), mesh)
  key = jax.random.key(0)  # no key is made on devices that are not here
  with jax.set_mesh(mesh):
    model = vit_linen_sharded.ViT(cfg)
    boxed = jax.eval_shape(model.init, key, images)
    specs = nn.get_partition_spec(boxed)
    params = jax.tree.map(
      lambda a, s: _struct(a, s, mesh), nn.unbox(boxed), specs
    )
    if not sharded:
      model = vit_linen.ViT(cfg)
    return _lower(model.apply, params, images, mesh, jax.P("data"))


def mixer(
  sharded: bool, mesh: jax.sharding.Mesh, *, batch: int, **sizes: int
) -> Lowered:
  """The whole of `mixer_equinox`, or of `mixer_equinox_sharded`.

  Args:
    sharded, mesh, batch: as in `llama_block`.
    sizes: of `mixer_equinox.Mixer`.
  """

  key = jax.random.key(0)  # no key is made on devices that are not here

  def abstract(module):
    return eqx.filter_eval_shape(module.Mixer, **sizes, key=key)

  with jax.set_mesh(mesh):
    with_ring = abstract(mixer_equinox_sharded)
    specs = jax.tree.leaves(collective_mm.equinox.specs(with_ring))
    model = with_ring if sharded else abstract(mixer_equinox)
    arrays, rest = eqx.partition(
      model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )
    leaves, tree = jax.tree.flatten(arrays)
    leaves = [_struct(a, s, mesh) for a, s in zip(leaves, specs, strict=True)]
    x = jax.ShapeDtypeStruct(
      (batch, sizes["tokens"], sizes["patch"]), jnp.float32
    )
    return _lower(
      lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x),
      jax.tree.unflatten(tree, leaves),
      _struct(x, _TOKENS, mesh),
      mesh,
      jax.P("data"),
    )


def _struct(array, spec: jax.P, mesh) -> jax.ShapeDtypeStruct:
  sharding = jax.NamedSharding(mesh, spec or jax.P())
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _lower(f, params: Any, x: jax.ShapeDtypeStruct, mesh, spec) -> Lowered:
  y = _struct(jax.eval_shape(f, params, x), spec, mesh)

  def step(params, x, dy):
    y, gradients = jax.vjp(f, params, x)
    return y, *gradients(dy)

  out = jax.tree.map(lambda a: a.sharding, (y, params, x))
  return jax.jit(step, out_shardings=out).lower(params, x, y)
