import pytest

from collective_mm.module_path import Path, blame


class Module:
  def held(self, path=""):
    """The path and the object of every module in this one."""
    yield path, self
    for name, value in vars(self).items():
      if isinstance(value, Module):
        yield from value.held(f"{path}.{name}")


class Layer(Module):
  def __call__(self):
    return str(Path(self, Module, Module.held))


class Block(Module):
  def __init__(self):
    self.said = Layer()()  # no one holds that layer
    self.up = Layer()

  def __call__(self):
    return self.up()


class Model(Module):
  def __init__(self):
    self.block = Block()

  def __call__(self):
    return self.block()


def test_the_outermost_module_that_runs_gives_the_path():
  assert Model()() == "Model.block.up (Layer)"
  assert Block()() == "Block.up (Layer)"


def test_while_it_is_made_the_makers_do():
  assert Model().block.said == "Model.Block.Layer"


def test_alone_it_is_its_class():
  assert Layer()() == "Layer"


def test_errors_begin_with_the_path():
  with (
    pytest.raises(ValueError, match=r"^a/b: features must be positive$"),
    blame("a/b"),
  ):
    raise ValueError("features must be positive")
