import jax
import numpy as np
import pytest
from test_vit import CFG, assert_close, some_images
from test_vit_reference import some_params

from collective_mm import make_mesh
from examples.eval.features import extract, fingerprint, layer_names, pieces
from models.norm import layer_norm
from models.vit_reference import forward

LAYERS = ("embed", "block_00", "block_01", "norm", "pool", "logits")


def mesh_of(data, model):
  return make_mesh(
    data=data, model=model, devices=jax.devices()[: data * model]
  )


@pytest.fixture(scope="module")
def model():
  return CFG, some_params(CFG), some_images(CFG)


@pytest.fixture(scope="module")
def tokens(model):
  """Every layer on one device, of images of which one batch is not full."""
  cfg, params, images = model
  return extract(
    cfg, params, mesh_of(1, 1), images[:7], layers=layer_names(cfg),
    pooled=False, batch=4,
  )  # fmt: skip


@pytest.mark.parametrize(
  ("data", "model_axis", "layout", "pooled"),
  [(2, 4, "tokens", True), (2, 4, "features", False)],
)
def test_any_mesh_gives_the_same(
  model, tokens, data, model_axis, layout, pooled
):
  cfg, params, images = model
  got = extract(
    cfg, params, mesh_of(data, model_axis), images[:7], layers=LAYERS,
    pooled=pooled, batch=8, layout=layout,
  )  # fmt: skip
  assert tuple(got) == LAYERS
  for name, x in got.items():
    want = tokens[name]
    want = want.mean(axis=1) if pooled and want.ndim == 3 else want
    # As far as the twin is in test_vit.
    assert_close(x, want, tol=5e-6)


def test_every_layer_is_the_twins(model, tokens):
  cfg, params, images = model
  logits, out = forward(params, images[:7], cfg)
  assert_close(tokens["logits"], logits, tol=5e-6)
  assert_close(tokens["pre_logits"], out["pre_logits"], tol=5e-6)
  bare = cfg.__class__(**vars(cfg) | {"pool": False, "classes": 0, "depth": 1})
  first = jax.tree.map(lambda x: x[:1], params["blocks"])
  mean, _ = forward(params | {"blocks": first}, images[:7], bare)
  normed = layer_norm(tokens["block_00"], params["norm"])
  assert_close(normed.mean(axis=1), mean, tol=5e-6)
  normed = layer_norm(tokens["block_01"], params["norm"])
  assert_close(tokens["norm"], normed, tol=5e-6)


def test_a_cache_resumes(model, tmp_path, monkeypatch):
  cfg, params, images = model
  many = np.concatenate([images, images[::-1], images + 0.01])
  monkeypatch.setattr("examples.eval.features._BATCHES_A_PIECE", 1)
  options = {"batch": 8, "cache": tmp_path}
  run = pieces(cfg, params, mesh_of(1, 1), many, **options)
  first = next(run)  # and then killed
  (piece,) = tmp_path.iterdir()
  marked = {"pre_logits": first["pre_logits"] + 1}
  np.savez(piece, **marked)
  rest = extract(cfg, params, mesh_of(1, 1), many, **options)["pre_logits"]
  assert_close(rest[:8], marked["pre_logits"], tol=0)
  assert_close(rest[8:16], first["pre_logits"][::-1], tol=1e-6)
  assert len(list(tmp_path.iterdir())) == 3
  piece.write_bytes(b"half")  # a damaged piece is computed again
  again = extract(cfg, params, mesh_of(1, 1), many, **options)["pre_logits"]
  assert_close(again[:8], first["pre_logits"], tol=0)


def test_another_model_has_another_name(model):
  cfg, params, _ = model
  other = params | {"norm": {"scale": params["norm"]["scale"] * (1 + 1e-6)}}
  assert fingerprint(cfg, params) != fingerprint(cfg, other)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"layers": ("block_02",)}, "layers must be some of .*, got block_02"),
    ({"images": []}, "at least one image"),
    (
      {"images": [np.zeros((4, 8, 2))]},
      r"size, \(8, 8, 2\), got .*\(4, 8, 2\)",
    ),
    ({"batch": 3, "mesh": (2, 1)}, "batch=3 is not a multiple"),
  ],
)
def test_bad_requests(model, change, message):
  cfg, params, images = model
  mesh = mesh_of(*change.get("mesh", (1, 1)))
  options = {k: v for k, v in change.items() if k in ("layers", "batch")}
  with pytest.raises(ValueError, match=message):
    extract(cfg, params, mesh, change.get("images", images), **options)
