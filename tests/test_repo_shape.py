"""The house rules that a machine can check."""

import ast
import configparser
import fnmatch
import functools
import graphlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import collective_mm

ROOT = Path(__file__).parents[1]
FLOORS = ("collective_mm", "models", "profiling", "examples")
# Modules of the library: each may import those that stand before it.
ORDER = (
  "chips",
  "placement",
  "axis_rings",
  "mesh",
  "pass_times",
  "decision",
  "gate",
  "reference",
  "ring",
  "ring_matmul",
  "op_arguments",
  "collective",
  "all_reduce",
  "row_dims",
  "global_view",
  "dense",
  "blocks",
  "float_trees",
  "weights",
  "prefetch_checks",
  "prefetch_gate",
  "layer_stack",
  "prefetch",
  "hlo_groups",
  "hlo",
  "hlo_flow",
  "hlo_loops",
  "walk",
  "link_costs",
  "overlap_checks",
  "overlap",
  "__init__",
  "module_path",
  "adapter",
  "equinox",
  "flax.__init__",
  "flax.linen",
  "flax.nnx",
)
# What the modules of a framework, which who wants it imports, need besides.
NEEDS = {"equinox": "equinox", "flax.linen": "flax", "flax.nnx": "flax"}
PUBLIC = [
  "ColumnDense",
  "OverlapReport",
  "RowDense",
  "all_gather_matmul",
  "make_mesh",
  "matmul_all_reduce",
  "matmul_reduce_scatter",
  "overlap_report",
  "prefetch_scan",
]


def name_of(path):
  return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@functools.cache
def sources():
  """Every Python file by its dotted name."""
  folders = (*FLOORS, "tests")
  paths = (path for f in folders for path in (ROOT / f).rglob("*.py"))
  return {name_of(path): path for path in sorted(paths)}


def imports(path):
  """Dotted names of all that a file imports, wherever in the file."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path.name} has a relative import"
      for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        found.add(whole if whole in sources() else node.module)
  return found


@functools.cache
def ours():
  """What each file of the house imports of the house."""
  return {
    name: {i for i in imports(path) if i.split(".")[0] in FLOORS}
    for name, path in sources().items()
  }


def test_files_stay_short():
  lengths = {
    name: len(path.read_text().splitlines()) for name, path in sources().items()
  }
  assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_every_module_says_what_it_is_for():
  silent = [
    name
    for name, path in sources().items()
    if name.split(".")[0] in FLOORS
    and path.read_text()
    and not ast.get_docstring(ast.parse(path.read_text()))
  ]
  assert silent == []


def test_floors_import_downward_only():
  for name, imported in ours().items():
    floor = name.split(".")[0]
    if floor == "tests":
      continue
    allowed = FLOORS[: FLOORS.index(floor) + 1]
    for other in imported:
      assert other.split(".")[0] in allowed, f"{name} imports {other}"


def test_the_library_imports_downward_only():
  prefix = "collective_mm."
  modules = {n for n in sources() if n.startswith(prefix)}
  assert modules == {prefix + name for name in ORDER}, "ORDER must name them"
  for i, name in enumerate(ORDER):
    below = {prefix + other for other in ORDER[:i]}
    assert ours()[prefix + name] <= below, f"{name} imports upward"


def test_no_imports_go_in_a_circle():
  order = graphlib.TopologicalSorter(ours()).static_order()
  assert set(order) >= ours().keys()  # raises CycleError before


def test_the_library_needs_jax_numpy_and_chex_alone():
  allowed = {"collective_mm", "jax", "numpy", "chex", *sys.stdlib_module_names}
  for name in ORDER:
    path = sources()[f"collective_mm.{name}"]
    needs = {NEEDS[name]} if name in NEEDS else set()
    foreign = {i.split(".")[0] for i in imports(path)} - allowed - needs
    assert not foreign, f"collective_mm/{name}.py imports {foreign}"


def test_the_twin_knows_nothing_of_the_library():
  seen, todo = set(), {"models.vit_reference"}
  while todo:
    seen |= todo
    todo = set().union(*(ours()[name] for name in todo)) - seen
  assert "models.patches" in seen
  assert not [name for name in seen if name.startswith("collective_mm")]


def test_public_names_are_frozen():
  assert collective_mm.__all__ == PUBLIC
  for name in PUBLIC:
    doc = getattr(collective_mm, name).__doc__
    # A dataclass without a docstring gets its signature for one.
    assert doc and not doc.startswith(f"{name}("), name


def test_other_names_are_refused_as_a_module_does():
  with pytest.raises(AttributeError, match="'collective_mm' has no attribute"):
    collective_mm.all_gather  # noqa: B018
  assert set(PUBLIC) <= set(dir(collective_mm))


def test_modules_are_attributes_without_an_import_of_their_own():
  code = "import collective_mm; print(collective_mm.gate.explain.__name__)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout == "explain\n"


def test_import_is_silent_and_light():
  code = """
import sys
import collective_mm
heavy = {"flax", "equinox", "optax", "matplotlib", "profiling", "models"}
sys.exit(", ".join(heavy & sys.modules.keys()) or 0)
"""
  result = subprocess.run(
    [sys.executable, "-W", "error", "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_setup_cfg_packages_the_library_alone():
  config = configparser.ConfigParser()
  config.read(ROOT / "setup.cfg")
  assert config["options"]["packages"] == "find:"
  patterns = config["options.packages.find"]["include"].split()
  packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
  assert len(packages) > 1
  found = [
    name for name in packages if any(fnmatch.fnmatch(name, p) for p in patterns)
  ]
  assert found == ["collective_mm"]


@pytest.mark.long
def test_the_wheel_ships_the_library_alone(tmp_path):
  # A copy, since a build leaves files beside its sources.
  source = shutil.copytree(
    ROOT,
    tmp_path / "source",
    ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info"),
  )
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
  subprocess.run(
    [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source],
    check=True,
  )
  (wheel,) = tmp_path.glob("*.whl")
  names = zipfile.ZipFile(wheel).namelist()
  shipped = {name for name in names if ".dist-info/" not in name}
  assert shipped == {
    f"collective_mm/{name.replace('.', '/')}.py" for name in ORDER
  }


def test_no_file_names_the_machine_it_was_written_on():
  places = re.compile(r"(?<![\w.~/-])/(work|root)/\w|\bshared[/]|\.librar[y]\b")
  text = {".py", ".md", ".cfg", ".toml", ".yml", ".json", ".csv", ""}
  folders = (*FLOORS, "tests", "docs", ".github", ".ci")
  paths = [p for p in ROOT.iterdir() if p.is_file() and p.name != ".git"]
  paths += [p for f in folders for p in (ROOT / f).rglob("*") if p.is_file()]
  read = [p for p in paths if p.suffix in text]
  assert len(read) > 50
  named = {
    str(p.relative_to(ROOT)): found.group()
    for p in read
    if (found := places.search(p.read_text()))
  }
  assert named == {}
