import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = ("JAX_PLATFORMS", "XLA_FLAGS", "TPU_SKIP_MDS_QUERY")
REPORT = f"""
import os
for name in {SETTINGS}:
  print(os.environ.get(name))
"""


def run(code, **env):
  """Runs `code` in a fresh Python whose settings are `env` and no others."""
  kept = {k: v for k, v in os.environ.items() if k not in SETTINGS}
  return subprocess.run(
    [sys.executable, "-c", f"from profiling import platform\n{code}"],
    cwd=ROOT,
    env={**kept, **env},
    capture_output=True,
    text=True,
    timeout=120,
  )


def select(dev, devices=8, **env):
  """What `select` returns, and the three settings after it."""
  code = f"print(platform.select({devices}, dev={str(dev)!r}))\n{REPORT}"
  done = run(code, **env)
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def test_importing_jax_afterwards_is_silent_and_gives_the_devices(tmp_path):
  done = run(
    f"platform.select(3, dev={str(tmp_path)!r})\n"
    "import jax\n"
    "print(jax.default_backend(), jax.device_count())\n"
  )
  assert (done.stdout, done.stderr) == ("cpu 3\n", "")


def test_settings_of_the_user_stay(tmp_path):
  done = run(
    f"platform.select(3, dev={str(tmp_path)!r})\n"
    "import jax\n"
    "print(jax.default_backend(), jax.device_count())\n",
    JAX_PLATFORMS="cpu",
    XLA_FLAGS="--xla_force_host_platform_device_count=5",
  )
  assert (done.stdout, done.stderr) == ("cpu 5\n", "")


def test_cpu_where_nothing_else_is(tmp_path):
  assert select(tmp_path, 4) == [
    "cpu: no TPU, no GPU; 4 virtual devices",
    "cpu",
    "--xla_force_host_platform_device_count=4",
    "1",
  ]


@pytest.mark.parametrize("file", ["accel0", "vfio/0", "vfio/12"])
def test_a_tpu_is_left_to_jax(tmp_path, file):
  path = tmp_path / file
  path.parent.mkdir(exist_ok=True)
  path.touch()
  assert select(tmp_path) == [
    f"jax's own choice: {path} is there",
    "None",
    "None",
    "None",
  ]


def test_the_vfio_control_file_is_no_tpu(tmp_path):
  (tmp_path / "vfio").mkdir()
  (tmp_path / "vfio" / "vfio").touch()
  assert select(tmp_path)[0].startswith("cpu: no TPU")


@pytest.mark.parametrize("plugin", ["jax_cuda12_plugin", "jax_cuda13_plugin"])
def test_a_gpu_with_a_plugin_is_left_to_jax(tmp_path, plugin):
  (tmp_path / "nvidia0").touch()
  (tmp_path / f"{plugin}.py").touch()
  assert select(tmp_path, PYTHONPATH=str(tmp_path)) == [
    f"jax's own choice: {tmp_path}/nvidia0 is there",
    "None",
    "None",
    "1",
  ]


def test_a_gpu_without_a_plugin_is_said(tmp_path):
  (tmp_path / "nvidia0").touch()
  if run("assert not platform._has_cuda_plugin()").returncode:
    pytest.skip("a CUDA plugin is installed here")
  assert select(tmp_path)[:2] == [
    f"cpu: {tmp_path}/nvidia0 has no jax CUDA plugin; 8 virtual devices",
    "cpu",
  ]


def test_a_named_platform_stays_and_only_the_cpu_is_split(tmp_path):
  chosen = select(tmp_path, JAX_PLATFORMS="cuda,cpu")
  assert chosen == [
    "cuda,cpu, as JAX_PLATFORMS says",
    "cuda,cpu",
    "None",
    "1",
  ]
  assert select(tmp_path, 2, JAX_PLATFORMS="cpu")[0] == (
    "cpu, as JAX_PLATFORMS says; 2 virtual devices"
  )


def test_other_flags_of_the_user_are_kept(tmp_path):
  chosen = select(tmp_path, 2, XLA_FLAGS="--xla_cpu_enable_fast_math=false")
  assert chosen[2] == (
    "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=2"
  )


def test_after_jax_it_is_too_late(tmp_path):
  done = run(
    "import jax\n"
    "try:\n"
    f"  platform.select(dev={str(tmp_path)!r})\n"
    "except RuntimeError as error:\n"
    "  print(error)\n"
    f"{REPORT}",
    JAX_PLATFORMS="cpu",
  )
  assert done.stdout.splitlines()[:3] == [
    "select() must run before jax is imported: jax would not see "
    "XLA_FLAGS='--xla_force_host_platform_device_count=8'",
    "cpu",
    "None",
  ]


def test_after_jax_it_may_confirm_what_is_set(tmp_path):
  done = run(
    f"import jax\nprint(platform.select(dev={str(tmp_path)!r}))",
    JAX_PLATFORMS="cpu",
    XLA_FLAGS="--xla_force_host_platform_device_count=2",
  )
  assert done.stdout == (
    "cpu, as JAX_PLATFORMS says; as many virtual devices as XLA_FLAGS says\n"
  )


def test_devices_must_be_positive():
  done = run("platform.select(0)")
  assert "ValueError: devices must be at least 1, got 0" in done.stderr


def test_it_imports_without_jax():
  done = run("import sys; print('jax' in sys.modules)")
  assert done.stdout == "False\n"


def test_compile_only_takes_no_device():
  done = run(
    "platform.compile_only()\n"
    "import os, jax\n"
    "print(jax.default_backend(), os.environ['TPU_SKIP_MDS_QUERY'])"
  )
  assert (done.stdout, done.stderr) == ("cpu 1\n", "")


def test_compile_only_after_jax_is_too_late():
  done = run("import jax\nplatform.compile_only()")
  assert "compile_only() must run before jax is imported" in done.stderr
