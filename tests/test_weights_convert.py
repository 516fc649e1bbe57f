import jax
import numpy as np
import pytest
from weight_cases import DATA

from examples.weights import adapt, convert
from examples.weights.load import load

CLS, MAP = str(DATA / "cls.npz"), str(DATA / "map.npz")


def run(*args):
  return convert.main(["convert", *map(str, args)])


def test_from_public_to_ours_to_timms_and_back(tmp_path, capsys):
  ours, timms = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
  back = tmp_path / "c.npz"
  assert run(CLS, ours) == run("--timm", ours, timms) == 0
  assert run("--heads=2", timms, back) == 0
  jax.tree.map(np.testing.assert_array_equal, load(back)[1], load(CLS)[1])
  said = "width 16, depth 2, 2 heads, 3 x 3 patches of 8, 3 classes"
  assert capsys.readouterr().out.splitlines()[0] == f"{ours}: {said}"


def test_to_a_larger_image_without_a_head_and_scanned(tmp_path, capsys):
  out = tmp_path / "out.npz"
  assert run("--image=45", "--nohead", "--scanned", MAP, out) == 0
  assert "5 x 5 patches of 8, 0 classes" in capsys.readouterr().out
  cfg, params = load(out)
  want = adapt.without_head(*adapt.at_resolution(*load(MAP), 45))[1]
  assert (cfg.grid, cfg.classes) == ((5, 5), 0)
  jax.tree.map(np.testing.assert_array_equal, params, want)
  assert "params/Transformer/encoderblock/LayerNorm_0/scale" in np.load(out)


@pytest.mark.parametrize(
  ("args", "message"),
  [
    ([CLS], "two paths, IN OUT, got 1"),
    ([CLS, "out.bin"], "out.bin: must end in .npz or .safetensors"),
    ([CLS, CLS], "cls.npz: is there already"),
    (["none.npz", "out.npz"], "none.npz: No such file or directory"),
    (["--image=5", CLS, "out.npz"], "--image=5: image must be at least one"),
    (["--heads=two", CLS, "out.npz"], "--heads=two"),
    (["--scanned", CLS, "out.npz"], "out.npz: scanned blocks and a class"),
    ([CLS, "no/out.npz"], "no/out.npz: No such file or directory"),
  ],
)
def test_what_cannot_be_is_one_line(
  args, message, capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert run(*args) == 2
  err = capsys.readouterr().err
  assert err.startswith("error: ")
  assert message in err
  assert err.count("\n") == 1
  assert list(tmp_path.iterdir()) == []
