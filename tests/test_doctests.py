"""Runs every example in the docstrings, on the virtual devices."""

import doctest
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import collective_mm

ROOT = Path(__file__).parents[1]
FLOORS = ("collective_mm", "models", "profiling", "examples")
MODULES = [
  ".".join(path.relative_to(ROOT).with_suffix("").parts)
  for floor in FLOORS
  for path in sorted((ROOT / floor).rglob("*.py"))
  if ">>> " in path.read_text()
]
PUBLIC = {name: getattr(collective_mm, name) for name in collective_mm.__all__}


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
  module = importlib.import_module(name)
  names = {"jax": jax, "jnp": jnp} | PUBLIC | vars(module)
  runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
  said: list[str] = []
  for test in doctest.DocTestFinder().find(module, globs=names):
    runner.run(test, out=said.append)
  assert runner.tries > 0
  assert runner.failures == 0, "".join(said)
