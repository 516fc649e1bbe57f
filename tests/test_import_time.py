"""What `import collective_mm` costs, and that a wheel needs no clone."""

import os
import re
import shutil
import statistics
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNS = 3


def test_import_costs_at_most_a_tenth_of_jax():
  # CPU time of one process, so that what else runs here does not count; the
  # first import compiles to bytecode, which is not repeated.
  code = """
import time
start = time.process_time()
import jax
middle = time.process_time()
import collective_mm
print((time.process_time() - middle) / (middle - start))
"""
  shares = []
  for _ in range(RUNS + 1):
    result = subprocess.run(
      [sys.executable, "-c", code],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
    shares.append(float(result.stdout))
  print(sorted(shares[1:]))
  assert statistics.median(shares[1:]) <= 0.1


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
