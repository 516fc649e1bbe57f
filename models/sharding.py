"""Where every parameter of the ViT lies on a `(data, model)` mesh."""

import jax

from models.params import init_params
from models.vit_config import ViTConfig

# What splits each kernel over `model`: its columns or its rows. Kernels that
# are not named lie whole on every device of the model axis.
_COLUMNS = ("q", "k", "v", "mlp_in")
_ROWS = ("attention_out", "mlp_out", "out", "head")


def param_specs(cfg: ViTConfig, mesh: jax.sharding.Mesh) -> dict:
  """Returns the `PartitionSpec` of each parameter, as a tree.

      column-sharded   kernel[D_d, F_m], bias[F_m]    q, k, v, mlp_in
      row-sharded      kernel[F_md, D]                attention_out, mlp_out,
                                                      pool out, head

  Weights are split over `data` as well, always in their leading dim: the
  compiler gathers that one asynchronously. A dim that `data` does not divide,
  and all small leaves, lie whole on every device of the data axis.

  Args:
    cfg: the model's shape.
    mesh: with the axes "data" and "model".
  """
  shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: _spec([key.key for key in path], leaf.shape, mesh),
    shapes,
  )


def data_dim(spec: jax.P) -> int | None:
  """The dim that `spec` splits over the data axis, None if it does not."""
  for dim, axes in enumerate(spec):
    if axes == "data" or (isinstance(axes, tuple) and "data" in axes):
      return dim
  return None


def check_mesh(
  cfg: ViTConfig, mesh: jax.sharding.Mesh, batch_size: int, layout: str
) -> None:
  """Checks that the mesh divides the model and the batch.

  Raises:
    ValueError: naming the first of heads, MLP features and batch size that the
      mesh does not divide, with the numbers, or a layout that is neither.
  """
  data, model = mesh.shape["data"], mesh.shape["model"]
  if layout not in ("tokens", "features"):
    raise ValueError(f"layout must be tokens or features, got {layout!r}")
  for name in ("heads", "mlp"):  # the heads divide the width
    if getattr(cfg, name) % model:
      raise ValueError(
        f"the model axis must divide {name}: {name}={getattr(cfg, name)} is "
        f"not a multiple of model={model}"
      )
  if batch_size < 1 or batch_size % (data * model):
    raise ValueError(
      f"the mesh must divide the batch: batch={batch_size} is not a multiple "
      f"of data x model = {data} x {model} = {data * model}"
    )


def _spec(path: list[str], shape: tuple[int, ...], mesh) -> jax.P:
  data, model = mesh.shape["data"], mesh.shape["model"]
  *_, layer, name = path
  stacked = (None,) if path[0] == "blocks" else ()
  dims = shape[len(stacked) :]
  if name == "kernel" and layer in _COLUMNS:
    rows = "data" if dims[0] % data == 0 else None
    return jax.P(*stacked, rows, "model")
  if name == "kernel" and layer in _ROWS:
    rows = ("model", "data") if dims[0] % (model * data) == 0 else "model"
    return jax.P(*stacked, rows, None)
  if name == "bias" and layer in _COLUMNS:
    return jax.P(*stacked, "model")
  return jax.P()
