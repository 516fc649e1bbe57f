"""What `import collective_mm` costs, and that a wheel needs no clone."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNS = 5


def test_import_costs_at_most_a_tenth_of_jax():
  """And so does what the README's first program uses.

  CPU time, so that what else runs here does not count much, and the best of
  several processes for each part; the first compiles to bytecode.
  """
  code = """
import time
times = [time.process_time()]
import jax
times.append(time.process_time())
import collective_mm
times.append(time.process_time())
from collective_mm import all_gather_matmul, make_mesh
times.append(time.process_time())
print(*times)
"""
  runs = []
  for _ in range(RUNS + 1):
    result = subprocess.run(
      [sys.executable, "-c", code],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
    times = [float(number) for number in result.stdout.split()]
    runs.append([end - start for start, end in itertools.pairwise(times)])
  jax, package, ops = map(min, zip(*runs[1:], strict=True))
  print(f"jax {jax:.3f} s, the package {package:.4f} s, the ops {ops:.3f} s")
  assert package <= 0.02 * jax
  assert package + ops <= 0.1 * jax


@pytest.mark.long
def test_a_wheel_in_a_clean_environment_runs_the_readme(tmp_path):
  """Installs jax from PyPI, half a gigabyte, where there is no clone."""
  source = shutil.copytree(
    ROOT,
    tmp_path / "source",
    ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info"),
  )
  pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
  wheels = tmp_path / "wheels"
  subprocess.run(
    [sys.executable, *pip, "wheel", "--no-deps", "-w", wheels, source],
    check=True,
  )
  shutil.rmtree(source)
  (wheel,) = wheels.glob("*.whl")
  clean = tmp_path / "clean"
  venv.create(clean, with_pip=True)
  python = clean / "bin" / "python"
  subprocess.run([python, *pip, "install", wheel], check=True)
  readme = (ROOT / "README.md").read_text()
  (code,) = re.findall(r"```python\n(import jax\n.*?)```", readme, re.S)
  (tmp_path / "twelve_lines.py").write_text(code)
  # Nothing of this environment, and nothing of the clone.
  env = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu"}
  result = subprocess.run(
    [python, "twelve_lines.py"],
    cwd=tmp_path,
    env=env | {"TPU_SKIP_MDS_QUERY": "1"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (result.returncode, result.stderr) == (0, "")
  assert result.stdout == "(8, 256, 1024)\n"
  where = [python, "-c", "import collective_mm; print(collective_mm.__file__)"]
  found = subprocess.run(
    where, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
  )
  assert found.stdout.startswith(str(clean))
