import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from collective_mm import make_mesh
from examples.checkpoints import Checkpoints, about, restore
from examples.usage import UsageError
from models.train_step import abstract


def make_state(mesh, scale=1.0):
  """A state like a run's: matrices over both axes, scalars everywhere."""
  cut = jax.NamedSharding(mesh, jax.P("data", "model"))
  whole = jax.NamedSharding(mesh, jax.P())
  kernel = scale * np.arange(64, dtype=np.float32).reshape(8, 8) / 7
  params = {"head": {"bias": scale * np.ones(3)}, "kernel": kernel}
  shardings = {"head": {"bias": whole}, "kernel": cut}
  return {
    "params": jax.device_put(params, shardings),
    "opt_state": (jax.device_put(-kernel, cut), {"step": np.int32(5)}),
  }


def place(state, mesh):
  whole = jax.NamedSharding(mesh, jax.P())
  return jax.tree.map(
    lambda x: x if isinstance(x, jax.Array) else jax.device_put(x, whole), state
  )


def some_state(shape=(2, 4), scale=1.0):
  devices = jax.devices()[: shape[0] * shape[1]]
  mesh = make_mesh(data=shape[0], model=shape[1], devices=devices)
  return place(make_state(mesh, scale), mesh)


def like(state):
  return abstract(state, jax.tree.map(lambda x: x.sharding, state))


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


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
  with Checkpoints(folder, keep=2, about={"config": {"seed": 1}}) as writer:
    for step in (1, 2, 3):
      writer.save(step, some_state(scale=step), data={"next": step * 10})
  return folder


@pytest.fixture
def copied(saved, tmp_path):
  return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_the_newest_ones_are_kept(saved):
  assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]


@pytest.mark.parametrize("shape", [(2, 4), (4, 2), (8, 1), (1, 8), (1, 1)])
def test_the_newest_comes_back_bit_for_bit_on_any_mesh(saved, shape):
  before = files(saved)
  expected = some_state(shape, scale=3)
  restored = restore(saved, like(expected))
  assert_same(restored, expected)
  for got, want in zip(
    *map(jax.tree.leaves, (restored, expected)), strict=True
  ):
    assert (got.sharding, got.dtype) == (want.sharding, want.dtype)
  assert files(saved) == before


def test_an_older_one_can_be_asked_for(saved):
  state = some_state(scale=2)
  assert_same(restore(saved, like(state), step=2), state)
  with pytest.raises(UsageError, match="has no finished checkpoint"):
    restore(saved, like(state), step=7)


def test_it_tells_where_the_data_was_and_what_the_run_said(saved):
  assert about(saved)["data"] == {"next": 30}
  assert about(saved, 2)["data"] == {"next": 20}
  assert about(saved)["config"] == {"seed": 1}
  assert about(saved)["leaves"]["params/kernel"][0] == "float32[8, 8]"


def test_a_restored_state_may_be_donated(saved):
  state = some_state(scale=3)
  kernel = restore(saved, like(state))["params"]["kernel"]
  double = jax.jit(lambda x: 2 * x, donate_argnums=0)
  np.testing.assert_array_equal(
    double(kernel), 2 * np.asarray(state["params"]["kernel"])
  )
  assert kernel.is_deleted()


def test_only_the_leaves_that_a_regex_matches(saved):
  fresh = some_state(scale=-9)
  # Another optimiser and another head do not matter then.
  other = {
    "params": fresh["params"] | {"head": {"bias": np.zeros(2)}},
    "opt_state": {},
  }
  got = restore(saved, other, only="params/(?!head).*")
  np.testing.assert_array_equal(
    got["params"]["kernel"], some_state(scale=3)["params"]["kernel"]
  )
  np.testing.assert_array_equal(got["params"]["head"]["bias"], np.zeros(2))
  with pytest.raises(UsageError, match=r"'pool/\.\*' matches no leaf"):
    restore(saved, other, only="pool/.*")


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint_is_one_clear_line(tmp_path, exists):
  folder = tmp_path / "checkpoints"
  if exists:
    folder.mkdir()
  with pytest.raises(UsageError, match=f"--resume: {folder} has no finished"):
    restore(folder, {"x": np.zeros(1)})
  with pytest.raises(UsageError, match=f"^{folder} has no finished"):
    about(folder)
  assert folder.exists() == exists


def test_a_save_cut_short_is_no_checkpoint(saved, tmp_path):
  folder = tmp_path / "checkpoints"
  # What a run that is killed in its first save leaves behind.
  shutil.copytree(saved / "3", folder / "3.orbax-checkpoint-tmp")
  with pytest.raises(UsageError, match="has no finished checkpoint"):
    restore(folder, like(some_state()))
  with Checkpoints(folder, keep=1) as writer:
    writer.save(3, some_state())
  assert [path.name for path in folder.iterdir()] == ["3"]


def truncate(step):
  for path in step.rglob("d/*"):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_the_manifest(step):
  manifest = step / "state" / "manifest.ocdbt"
  manifest.write_bytes(manifest.read_bytes()[:3])


def delete_the_arrays(step):
  for path in list(step.rglob("d/*")):
    path.unlink()


def delete_the_state(step):
  shutil.rmtree(step / "state")


def forget_what_it_is(step):
  (step / "about" / "metadata").write_text('{"leaves": {')


def empty(step):
  shutil.rmtree(step)
  step.mkdir()


def take_the_arrays_of_another(step):
  # Nothing is wrong with the files: what they hold is not what was saved.
  shutil.rmtree(step / "state")
  shutil.copytree(step.parent / "2" / "state", step / "state")


@pytest.mark.parametrize(
  "damage",
  [
    truncate,
    cut_the_manifest,
    delete_the_arrays,
    delete_the_state,
    forget_what_it_is,
    empty,
    take_the_arrays_of_another,
  ],
)
def test_a_damaged_one_is_named_and_the_one_before_taken(copied, damage, capfd):
  damage(copied / "3")
  before = files(copied)
  state = some_state(scale=2)
  assert_same(restore(copied, like(state)), state)
  assert files(copied) == before
  first, second = capfd.readouterr().err.splitlines()
  assert first.startswith(f"warning: checkpoint {copied / '3'} is damaged: ")
  assert second == f"warning: continuing from checkpoint {copied / '2'}"


def test_a_run_that_continues_from_an_older_one_puts_the_newer_aside(
  copied, capfd
):
  truncate(copied / "3")
  state = some_state(scale=7)
  with Checkpoints(copied, keep=2) as writer:
    writer.save(3, state)
    writer.save(3, state)  # the last step, say, that was due anyway
  names = sorted(path.name for path in copied.iterdir())
  assert names == ["2", "3", "3.aside"]
  assert f"{copied / '3'} is now {copied / '3.aside'}" in capfd.readouterr().err
  assert_same(restore(copied, like(state)), state)


def test_no_whole_one_says_so(copied):
  truncate(copied / "2")
  empty(copied / "3")
  match = re.escape(f"no checkpoint in {copied} is whole: 3, 2")
  with pytest.raises(UsageError, match=match):
    restore(copied, like(some_state()))


def test_another_architecture_lists_the_leaves_that_differ(saved):
  state = some_state()
  params = state["params"] | {"kernel": np.zeros((8, 4), np.float32)}
  other = {
    "params": params | {"pool": np.zeros(2, np.float32)},
    "opt_state": state["opt_state"],
  }
  with pytest.raises(UsageError) as caught:
    restore(saved, other)
  assert str(caught.value) == (
    f"--resume: checkpoint {saved / '3'} is of another architecture: "
    "params/kernel is float32[8, 8] there and float32[8, 4] here; "
    "params/pool is missing there"
  )


# Saves until the disk is full; each array takes 400 kB, and does not compress.
FILL_THE_DISK = """
import sys
from pathlib import Path
import jax, numpy as np, resource
from examples.checkpoints import CheckpointError, Checkpoints, restore
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
draw = np.random.default_rng(0).bytes
def state(step, size):
  x = np.frombuffer(draw(size), np.uint8)
  return jax.device_put({"x": x, "step": np.int32(step)})
try:
  with Checkpoints(folder, keep=9) as checkpoints:
    checkpoints.save(1, state(1, 400_000))
    checkpoints.wait()
    if limit:
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    checkpoints.save(2, state(2, 4_000_000))
    print("went on")  # the failure is the background's
    while True:
      checkpoints.check()
except CheckpointError as error:
  print(error)
print(*(path.name for path in folder.iterdir()))
shape = jax.ShapeDtypeStruct(
  (), np.int32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
)
print(restore(folder, {"step": shape}, only="step")["step"])
"""


def fill(folder, limit=0, before=()):
  run = [sys.executable, "-W", "ignore", "-c", FILL_THE_DISK]
  done = subprocess.run(
    [*before, *run, str(folder / "checkpoints"), str(limit)],
    cwd=Path(__file__).parents[1],
    capture_output=True,
    text=True,
    check=False,
  )
  return done.stdout.splitlines(), done.stderr


def assert_stopped_cleanly(lines, errors, folder, reason):
  assert lines == [
    "went on",
    f"checkpoint {folder / 'checkpoints' / '2'} could not be written: "
    f"{reason}; whole ones: 1",
    "1",
    "1",
  ], errors


def test_a_file_that_may_not_grow_stops_cleanly(tmp_path):
  lines, errors = fill(tmp_path, limit=1_000_000)
  assert_stopped_cleanly(lines, errors, tmp_path, "File too large")


def test_a_full_disk_stops_cleanly(tmp_path):
  # A disk of 3 MB, seen by the child alone.
  mount = f'mount -t tmpfs -o size=3m tmpfs {tmp_path} && exec "$@"'
  alone = ["unshare", "--user", "--map-root-user", "--mount"]
  try:
    able = subprocess.run(
      [*alone, "sh", "-c", mount, "sh", "true"], check=False
    ).returncode
  except FileNotFoundError:
    able = None
  if able != 0:
    pytest.skip("this machine lets no process mount a disk of its own")
  lines, errors = fill(tmp_path, before=[*alone, "sh", "-c", mount, "sh"])
  assert_stopped_cleanly(lines, errors, tmp_path, "No space left on device")
