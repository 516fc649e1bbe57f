import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from collective_mm import make_mesh
from examples.checkpoints import Checkpoints, restore
from examples.usage import UsageError
from models.train_step import abstract


def make_state(mesh, scale=1.0):
  """A state like a run's: matrices over both axes, scalars everywhere."""
  shardings = {
    "kernel": jax.NamedSharding(mesh, jax.P("data", "model")),
    "step": jax.NamedSharding(mesh, jax.P()),
  }
  kernel = scale * np.arange(64, dtype=np.float32).reshape(8, 8) / 7
  return jax.device_put({"kernel": kernel, "step": np.int32(5)}, shardings)


def like(state):
  return abstract(state, jax.tree.map(lambda x: x.sharding, state))


def files(folder: Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A folder with checkpoints of steps 2 and 3."""
  folder = tmp_path_factory.mktemp("run") / "checkpoints"
  mesh = make_mesh(data=2, model=4)
  with Checkpoints(folder, keep=2) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, make_state(mesh, scale=step))
  return folder


@pytest.fixture
def copied(saved, tmp_path):
  return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_the_newest_ones_are_kept(saved):
  assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]


@pytest.mark.parametrize("shape", [(2, 4), (8, 1), (1, 8)])
def test_the_newest_comes_back_bit_for_bit_on_any_mesh(saved, shape):
  mesh = make_mesh(data=shape[0], model=shape[1])
  before = files(saved)
  expected = make_state(mesh, scale=3)
  restored = restore(saved, like(expected))
  for name, leaf in expected.items():
    np.testing.assert_array_equal(restored[name], leaf)
    assert restored[name].sharding == leaf.sharding
    assert restored[name].dtype == leaf.dtype
  assert files(saved) == before


def test_a_restored_state_may_be_donated(saved):
  state = make_state(make_mesh(data=2, model=4), scale=3)
  restored = restore(saved, like(state))
  double = jax.jit(lambda x: 2 * x, donate_argnums=0)
  np.testing.assert_array_equal(
    double(restored["kernel"]), 2 * np.asarray(state["kernel"])
  )
  assert restored["kernel"].is_deleted()


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint_is_one_clear_line(tmp_path, exists):
  folder = tmp_path / "checkpoints"
  if exists:
    folder.mkdir()
  with pytest.raises(UsageError, match=f"--resume: {folder} has no finished"):
    restore(folder, {})
  assert folder.exists() == exists


def test_a_save_cut_short_is_no_checkpoint(saved, tmp_path):
  folder = tmp_path / "checkpoints"
  # What a run that is killed in its first save leaves behind.
  shutil.copytree(saved / "3", folder / "3.orbax-checkpoint-tmp")
  with pytest.raises(UsageError, match="has no finished checkpoint"):
    restore(folder, {})


def truncate(step):
  for path in step.rglob("d/*"):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_the_manifest(step):
  manifest = step / "default" / "manifest.ocdbt"
  manifest.write_bytes(manifest.read_bytes()[:3])


def delete_the_arrays(step):
  for path in list(step.rglob("d/*")):
    path.unlink()


def delete_everything(step):
  shutil.rmtree(step / "default")


def empty(step):
  shutil.rmtree(step)
  step.mkdir()


@pytest.mark.parametrize(
  "damage",
  [truncate, cut_the_manifest, delete_the_arrays, delete_everything, empty],
)
def test_damage_is_one_clear_line_and_changes_nothing(copied, damage, capfd):
  damage(copied / "3")
  before = files(copied)
  state = make_state(make_mesh(data=2, model=4))
  with pytest.raises(UsageError) as caught:
    restore(copied, like(state))
  assert str(caught.value) == (
    f"--resume: checkpoint {copied / '3'} is damaged or half written; "
    "remove it to continue from step 2"
  )
  assert files(copied) == before
  assert "Traceback" not in capfd.readouterr().err

  # The remedy that it names works.
  shutil.rmtree(copied / "3")
  restored = restore(copied, like(state))
  np.testing.assert_array_equal(
    restored["kernel"], 2 * np.asarray(state["kernel"])
  )


def test_damage_to_the_only_one_says_so(copied):
  shutil.rmtree(copied / "2")
  truncate(copied / "3")
  state = make_state(make_mesh(data=2, model=4))
  with pytest.raises(UsageError, match="half written; it is the only one"):
    restore(copied, like(state))
