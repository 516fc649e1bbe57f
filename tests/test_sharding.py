import dataclasses
import math

import jax
import pytest

from collective_mm import make_mesh
from models.params import init_params
from models.sharding import check_mesh, data_dim, param_specs
from models.vit_config import VARIANTS, ViTConfig

P = jax.P
CFG = ViTConfig(
  width=32, depth=2, mlp=64, heads=4, classes=5, image=8, channels=1, patch=4
)
OLD = dataclasses.replace(
  CFG, parallel=False, qk_norm=False, attention_bias=True, norm_bias=True
)


def mesh_of(data, model):
  devices = jax.devices()[: data * model]
  return make_mesh(data=data, model=model, devices=devices)


def leaves(tree):
  return {
    "/".join(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def test_param_specs_of_the_earlier_block():
  columns, rows = P(None, "data", "model"), P(None, ("model", "data"), None)
  whole = P()
  assert leaves(param_specs(OLD, mesh_of(2, 4))) == {
    "embed/kernel": whole,
    "embed/bias": whole,
    "embed/position": whole,
    "blocks/norm/scale": whole,
    "blocks/norm/bias": whole,
    "blocks/mlp_norm/scale": whole,
    "blocks/mlp_norm/bias": whole,
    "blocks/q/kernel": columns,
    "blocks/q/bias": P(None, "model"),
    "blocks/k/kernel": columns,
    "blocks/k/bias": P(None, "model"),
    "blocks/v/kernel": columns,
    "blocks/v/bias": P(None, "model"),
    "blocks/attention_out/kernel": rows,
    "blocks/attention_out/bias": whole,
    "blocks/mlp_in/kernel": columns,
    "blocks/mlp_in/bias": P(None, "model"),
    "blocks/mlp_out/kernel": rows,
    "blocks/mlp_out/bias": whole,
    "norm/scale": whole,
    "norm/bias": whole,
    "pool/probe": whole,
    "pool/norm/scale": whole,
    "pool/norm/bias": whole,
    "pool/q/kernel": P("data", "model"),
    "pool/q/bias": P("model"),
    "pool/k/kernel": P("data", "model"),
    "pool/k/bias": P("model"),
    "pool/v/kernel": P("data", "model"),
    "pool/v/bias": P("model"),
    "pool/out/kernel": P(("model", "data"), None),
    "pool/out/bias": whole,
    "pool/mlp_in/kernel": P("data", "model"),
    "pool/mlp_in/bias": P("model"),
    "pool/mlp_out/kernel": P(("model", "data"), None),
    "pool/mlp_out/bias": whole,
    "head/kernel": P(("model", "data"), None),
    "head/bias": whole,
  }


@pytest.mark.parametrize("data", [3, 5])
def test_what_data_does_not_divide_lies_whole_on_its_axis(data):
  specs = leaves(param_specs(CFG, mesh_of(data, 1)))
  assert specs["blocks/q/kernel"] == P(None, None, "model")
  assert specs["blocks/mlp_out/kernel"] == P(None, "model", None)
  assert all(data_dim(spec) is None for spec in specs.values())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("data", "model"), [(2, 4), (8, 1), (1, 8), (3, 2)])
def test_every_variant_lies_evenly_on_the_mesh(name, data, model):
  cfg, mesh = VARIANTS[name], mesh_of(data, model)
  shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))

  def held(leaf, spec):  # raises unless the mesh axes divide the dims
    local = jax.NamedSharding(mesh, spec).shard_shape(leaf.shape)
    return math.prod(leaf.shape) // math.prod(local)

  parts = leaves(jax.tree.map(held, shapes, param_specs(cfg, mesh)))
  kernels = {
    path: part
    for path, part in parts.items()
    if path.endswith("kernel") and path != "embed/kernel"
  }
  assert len(kernels) == 13
  least = model if data == 3 else model * data
  assert all(part >= least for part in kernels.values()), kernels


@pytest.mark.parametrize(
  ("spec", "dim"),
  [
    (P(), None),
    (P("model", None), None),
    (P("data", "model"), 0),
    (P(None, "data", "model"), 1),
    (P(("model", "data"), None), 0),
    (P(None, ("model", "data"), None), 1),
    (P(None, ("model",)), None),
  ],
)
def test_data_dim(spec, dim):
  assert data_dim(spec) == dim


@pytest.mark.parametrize(
  ("changes", "data", "model", "batch", "layout", "message"),
  [
    (
      {"heads": 2}, 2, 4, 8, "tokens",
      "must divide heads: heads=2 is not a multiple of model=4",
    ),
    (
      {"mlp": 66}, 2, 4, 8, "tokens",
      "must divide mlp: mlp=66 is not a multiple of model=4",
    ),
    (
      {"width": 33, "heads": 3, "mlp": 63}, 1, 3, 8, "tokens",
      "batch=8 is not a multiple of data x model = 1 x 3 = 3",
    ),
    (
      {}, 2, 4, 12, "tokens",
      "batch=12 is not a multiple of data x model = 2 x 4 = 8",
    ),
    ({}, 2, 4, 8, "rows", "must be tokens or features, got 'rows'"),
  ],
)  # fmt: skip
def test_check_mesh_gives_the_numbers(
  changes, data, model, batch, layout, message
):
  cfg = dataclasses.replace(CFG, **changes)
  with pytest.raises(ValueError, match=message):
    check_mesh(cfg, mesh_of(data, model), batch, layout)


@pytest.mark.parametrize("layout", ["tokens", "features"])
@pytest.mark.parametrize(("data", "model"), [(2, 4), (1, 4), (8, 1), (2, 2)])
def test_check_mesh_accepts_what_fits(data, model, layout):
  check_mesh(CFG, mesh_of(data, model), 16, layout)
