import dataclasses

import numpy as np
import pytest

from collective_mm import make_mesh
from examples import first_weights
from examples.presets import PRESETS, changed
from examples.usage import UsageError
from examples.weights import tensors
from models.params import init_params
from models.vit_config import ViTConfig

MODEL = ViTConfig(
  width=16, depth=1, mlp=32, heads=4, classes=10, image=32, channels=1, patch=8
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A file of weights whose head is not zero, and what is in it."""
  import jax

  path = tmp_path_factory.mktemp("weights") / "a.safetensors"
  params = jax.tree.map(
    np.asarray, jax.jit(lambda k: init_params(k, MODEL))(jax.random.key(0))
  )
  params["head"]["kernel"] = np.ones((16, 10), np.float32)
  tensors.write(path, MODEL, params)
  return path, params


def config(path, **model):
  return changed(PRESETS["digits"], {"init_from": str(path), "model": model})


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(data=2, model=4)


def test_the_model_is_the_files_and_nothing_changes_that_need_not(saved, mesh):
  path, params = saved
  loaded, got = first_weights.load(config(path), mesh)
  assert loaded.model == dataclasses.replace(
    MODEL, head_bias_init=loaded.model.head_bias_init
  )
  np.testing.assert_array_equal(
    got["blocks"]["q"]["kernel"], params["blocks"]["q"]["kernel"]
  )
  np.testing.assert_array_equal(got["head"]["kernel"], params["head"]["kernel"])
  assert got["blocks"]["mlp_in"]["kernel"].sharding.mesh.shape == mesh.shape


def test_other_images_and_classes_get_positions_and_a_head(saved, mesh):
  path, params = saved
  loaded, got = first_weights.load(
    config(path, image=50, classes=3, head_bias_init=-2.0), mesh
  )
  assert (loaded.model.grid, loaded.model.classes) == ((6, 6), 3)
  position = got["embed"]["position"]
  assert position.shape == (36, 16)
  # Corners lie on corners.
  np.testing.assert_allclose(
    position[[0, 5, 30, 35]],
    params["embed"]["position"][[0, 3, 12, 15]],
    rtol=1e-6,
  )
  assert not np.any(got["head"]["kernel"])
  np.testing.assert_array_equal(got["head"]["bias"], [-2.0] * 3)


def test_what_is_no_weights_is_refused(tmp_path, mesh):
  path = tmp_path / "a.txt"
  path.write_text("no")
  with pytest.raises(UsageError, match=r"--init_from=.*must be a fold"):
    first_weights.load(config(path), mesh)
