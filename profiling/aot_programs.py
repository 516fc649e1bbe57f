"""The programs that `profiling.aot` compiles, lowered for devices by name."""

import dataclasses

import jax
import jax.numpy as jnp

from collective_mm import make_mesh
from models import compiler_step, train_step
from models.optimizer import VIT_22B, make_optimizer
from models.params import init_params
from models.sharding import check_mesh
from models.vit import ShardedViT
from models.vit_config import ViTConfig
from profiling import flops, matmul_methods, topology, vit_methods


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A lowered program and what it computes.

  Attributes:
    lowered: the program.
    mesh: what it was lowered for.
    flops: all its products, on all devices together, attention whole and no
      recomputation counted.
    model_flops: the same by the convention of MFU.
    tokens: how many it works on.
  """

  lowered: jax.stages.Lowered
  mesh: jax.sharding.Mesh
  flops: int
  model_flops: int
  tokens: int


def mesh_on(
  slice_name: str, data: int, model: int, *, whole_dims: bool = False
) -> jax.sharding.Mesh:
  """A `data x model` mesh over all devices of the slice `slice_name`.

  Raises:
    ValueError: if there is no such slice, or the mesh does not fill it.
  """
  return make_mesh(
    data=data,
    model=model,
    devices=topology.devices(slice_name),
    whole_dims=whole_dims,
  )


def vit_step(
  cfg: ViTConfig,
  mesh: jax.sharding.Mesh,
  *,
  batch: int,
  layout: str = "tokens",
  schedule: str | tuple[str, str] = "auto",
) -> Program:
  """The trainer's step: bfloat16, remat and the optimiser of ViT-22B.

  Args:
    cfg: the model's shape.
    mesh: what it runs on.
    batch: images a step, over all devices.
    layout, schedule: as in `models.train_step.make_train_step`.

  Raises:
    ValueError: if the mesh does not divide the model or the batch.
  """
  check_mesh(cfg, mesh, batch, layout)
  optimizer = make_optimizer(VIT_22B)
  step = train_step.make_train_step(
    cfg,
    optimizer,
    mesh,
    layout=layout,
    schedule=schedule,
    compute_dtype=jnp.bfloat16,
    remat=True,
  )
  return _vit_program(step, cfg, optimizer, mesh, batch)


def vit_blocks(
  cfg: ViTConfig,
  mesh: jax.sharding.Mesh,
  *,
  batch: int,
  layout: str = "tokens",
  schedule: str | tuple[str, str] = "auto",
) -> Program:
  """The gradients of the blocks alone, in bfloat16 with remat.

  What `vit_step` has besides (head, loss, optimiser, metrics) takes most of the
  time to compile, and the loops are the same without.

  Args:
    cfg, mesh, batch, layout, schedule: as in `vit_step`; the model is taken
      without its classifier and pooling head.

  Raises:
    ValueError: as `vit_step`.
  """
  check_mesh(cfg, mesh, batch, layout)
  cfg = dataclasses.replace(cfg, classes=0, pool=False)
  vit = ShardedViT(
    cfg,
    mesh,
    layout=layout,
    schedule=schedule,
    compute_dtype=jnp.bfloat16,
    remat=True,
  )
  examples = jax.P(("data", "model"))

  def loss(params, images):
    z = vit(params, images)[0]
    return jax.lax.psum(jnp.square(z).sum(), ("data", "model"))

  def array(leaf, spec):
    sharding = jax.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=sharding)

  step = jax.shard_map(
    jax.grad(loss),
    mesh=mesh,
    in_specs=(vit.specs, examples),
    out_specs=vit.specs,
  )
  params = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  shape = (batch, cfg.image, cfg.image, cfg.channels)
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  tokens = batch * cfg.tokens
  return Program(
    lowered=jax.jit(step).lower(
      jax.tree.map(array, params, vit.specs), array(images, examples)
    ),
    mesh=mesh,
    flops=batch * flops.vit_flops_per_image(cfg),
    model_flops=tokens * flops.vit_flops_per_token(cfg),
    tokens=tokens,
  )


def compiler_vit_step(
  cfg: ViTConfig, mesh: jax.sharding.Mesh, *, batch: int
) -> Program:
  """The same step, partitioned by the compiler from sharding constraints.

  Args:
    cfg, mesh, batch: as in `vit_step`.

  Raises:
    ValueError: if the mesh does not divide the model or the batch.
  """
  check_mesh(cfg, mesh, batch, "tokens")
  optimizer = make_optimizer(VIT_22B)
  step = compiler_step.make_compiler_step(
    cfg, optimizer, mesh, compute_dtype=jnp.bfloat16, remat=True
  )
  return _vit_program(step, cfg, optimizer, mesh, batch)


def twin_vit_step(
  name: str, cfg: ViTConfig, mesh: jax.sharding.Mesh, *, batch: int
) -> Program:
  """The same step from a twin of the model for one device.

  Args:
    name: one of `vit_methods.TWINS`.
    cfg, batch: as in `vit_step`.
    mesh: of one device.

  Raises:
    ValueError: if the mesh has more devices, or the batch none.
  """
  if mesh.size > 1:
    raise ValueError(f"{name} is for a mesh of one device, got {mesh.size}")
  check_mesh(cfg, mesh, batch, "tokens")
  optimizer = make_optimizer(VIT_22B)
  step = vit_methods.twin_step(
    name, cfg, optimizer, mesh, compute_dtype=jnp.bfloat16, remat=True
  )
  return _vit_program(step, cfg, optimizer, mesh, batch)


def op_step(
  op: str,
  shape: tuple[int, int, int],
  mesh: jax.sharding.Mesh,
  *,
  method: str | tuple[str, str] = "auto",
) -> Program:
  """One op, forward and both gradients, in bfloat16.

  Args:
    op: of `matmul_methods.OPS`.
    shape: tokens, width and features, over all devices.
    mesh: what it runs on; its data axis has one device.
    method: a schedule, or one of `matmul_methods.METHODS`.

  Raises:
    ValueError: if there is no such op, or the mesh does not divide the shape.
  """
  tokens, width, features = shape
  size = mesh.shape["model"]
  if op not in matmul_methods.OPS:
    raise ValueError(
      f"op must be one of {', '.join(matmul_methods.OPS)}, got {op!r}"
    )
  if mesh.shape["data"] != 1:
    raise ValueError(
      f"the mesh of one op must be 1,devices, got {mesh.shape['data']},{size}"
    )
  if min(shape) < 1 or tokens % size or features % size:
    raise ValueError(
      f"shape must be tokens,width,features, the first and last multiples of "
      f"the model axis, {size}, got {shape}"
    )
  problem = matmul_methods.Problem(
    op=op,
    tokens=tokens,
    width=width,
    features=features,
    dtype="bfloat16",
    mesh=mesh,
  )
  products = 3 * 2 * tokens * width * features
  return Program(
    lowered=matmul_methods.program(problem, method).lower(),
    mesh=mesh,
    flops=products,
    model_flops=products,
    tokens=tokens,
  )


def _vit_program(step, cfg, optimizer, mesh, batch) -> Program:
  tokens = batch * cfg.tokens
  return Program(
    lowered=step.lower(
      train_step.abstract_state(cfg, optimizer, mesh),
      train_step.abstract_batch(cfg, mesh, batch),
    ),
    mesh=mesh,
    flops=batch * flops.vit_flops_per_image(cfg),
    model_flops=tokens * flops.vit_flops_per_token(cfg),
    tokens=tokens,
  )
