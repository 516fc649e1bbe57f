import dataclasses
import os

import jax
import numpy as np
import pytest
from weight_cases import CASES, DATA, some_images, some_params

from examples.usage import UsageError
from examples.weights import flax_npz
from examples.weights.load import load
from models.vit_reference import forward

cases = pytest.mark.parametrize("name", CASES)


def arrays_of(path):
  with np.load(path) as file:
    return {name: file[name] for name in file.files}


@cases
def test_the_config_is_read_off_the_shapes(name):
  cfg, _ = CASES[name]
  got, _ = load(DATA / f"{name}.npz")
  side = cfg.grid[0] * cfg.patch  # the least image of these positions
  expected = dataclasses.replace(
    cfg, image=side, gelu="tanh", head_bias_init=got.head_bias_init
  )
  assert got == expected


@cases
def test_logits_are_timms(name):
  cfg, _ = CASES[name]
  _, params = load(DATA / f"{name}.npz")
  got, _ = jax.jit(forward, static_argnums=2)(params, some_images(cfg), cfg)
  want = arrays_of(DATA / "logits.npz")[name]
  # Logits of order one, float32 rounding of 6e-8, some tens of operations.
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@cases
def test_what_is_written_is_what_timm_has_read(name):
  cfg, scanned = CASES[name]
  seed = list(CASES).index(name)
  got = flax_npz.public(cfg, some_params(cfg, seed), scanned=scanned)
  want = arrays_of(DATA / f"{name}.npz")
  assert got.keys() == want.keys()
  for leaf, x in want.items():
    np.testing.assert_array_equal(got[leaf], x, err_msg=leaf)


@cases
def test_what_is_written_comes_back(name):
  cfg, _ = CASES[name]
  _, params = load(DATA / f"{name}.npz")
  want = some_params(cfg, list(CASES).index(name))
  jax.tree.map(np.testing.assert_array_equal, params, want)


def big_vision_cls(tmp_path):
  """A model of the `tok` kind, whose class token has no position."""
  old = arrays_of(DATA / "cls.npz")
  new = {}
  for name, x in old.items():
    for a, b in (
      ("LayerNorm_2", "LayerNorm_1"),
      ("Attention_1", "Attention_0"),
      ("MlpBlock_3", "MlpBlock_0"),
    ):
      name = name.replace(a, b)
    new[f"params/{name}"] = x
  position = new.pop("params/Transformer/posembed_input/pos_embedding")
  new["params/cls"] = new["params/cls"] + position[:, :1]
  new["params/pos_embedding"] = position[:, 1:]
  np.savez(tmp_path / "tok.npz", **new)
  return tmp_path / "tok.npz"


def test_both_homes_of_the_class_tokens_position_are_one_model(tmp_path):
  _, want = load(DATA / "cls.npz")
  _, got = load(big_vision_cls(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_two_towers_training_states_and_bfloat16_are_read(tmp_path):
  arrays = arrays_of(DATA / "map.npz")
  half = {}
  for name, x in arrays.items():
    # The upper half of a float32: bfloat16, as big_vision leaves it.
    upper = (x.view(np.uint32) >> 16).astype(np.uint16).view("V2")
    half[name.replace("params/", "params/img/")] = upper
  np.savez(tmp_path / "two.npz", **half, **{"params/t": np.float32(10)})
  got, params = load(tmp_path / "two.npz")
  assert got.pool
  kernel = arrays["params/head/kernel"].view(np.uint32) >> 16 << 16
  np.testing.assert_array_equal(
    params["head"]["kernel"], kernel.view(np.float32)
  )

  state = {
    name.replace("params/", "opt/target/"): x for name, x in arrays.items()
  }
  np.savez(tmp_path / "state.npz", **state, **{"opt/state/step": np.int32(3)})
  _, params = load(tmp_path / "state.npz")
  np.testing.assert_array_equal(
    params["head"]["kernel"], arrays["params/head/kernel"]
  )


def test_pre_logits_are_kept():
  cfg = dataclasses.replace(CASES["cls"][0], pre_logits=True)
  params = some_params(cfg, 0)
  arrays = flax_npz.public(cfg, params)
  assert arrays["pre_logits/kernel"].shape == (16, 16)


class Evil:
  """Unpickling it makes a file."""

  def __reduce__(self):
    return os.mkdir, ("ran",)


def test_a_file_cannot_run_code(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  arrays = arrays_of(DATA / "cls.npz")
  arrays["cls"] = np.array([Evil()], dtype=object)
  np.savez(tmp_path / "evil.npz", **arrays)
  with pytest.raises(UsageError, match=r"evil.npz: Object arrays cannot be"):
    load(tmp_path / "evil.npz")
  assert not (tmp_path / "ran").exists()
  np.load(tmp_path / "evil.npz", allow_pickle=True)["cls"]
  assert (tmp_path / "ran").exists()  # so that it would have


def without(name):
  return lambda arrays: arrays.pop(name)


def resized(name, shape):
  return lambda arrays: arrays.update({name: np.zeros(shape, np.float32)})


BLOCK = "Transformer/encoderblock_1"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (without("embedding/kernel"), "no embedding/kernel: not a ViT of"),
    (without(f"{BLOCK}/LayerNorm_0/scale"), "block 1 of 2 has no norm/scale"),
    (without("head/kernel"), "head/kernel is missing there"),
    (
      resized("head/kernel", (16, 4)),
      r"head/kernel is float32\[16, 4\] there and float32\[16, 3\] here",
    ),
    (
      resized(f"{BLOCK}/MlpBlock_3/Dense_0/kernel", (16, 8)),
      "mlp_in/kernel is not of one shape in all blocks",
    ),
    (resized("conv_root/kernel", (7, 7)), "conv_root/kernel is missing here"),
    (
      resized("Transformer/posembed_input/pos_embedding", (1, 7, 16)),
      "6 positions are no square of patches",
    ),
  ],
)
def test_what_is_wrong_is_one_line_that_names_file_and_leaf(
  tmp_path, change, message
):
  arrays = arrays_of(DATA / "cls.npz")
  change(arrays)
  path = tmp_path / "weights.npz"
  np.savez(path, **arrays)
  with pytest.raises(UsageError, match=message) as caught:
    load(path)
  assert str(caught.value).startswith(f"{path}: ")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "content", [b"", b"PK\x03\x04 cut short", b"\x00" * 99]
)
def test_what_is_no_npz_is_one_line(tmp_path, content):
  path = tmp_path / "weights.npz"
  path.write_bytes(content)
  with pytest.raises(UsageError, match=f"^{path}: ") as caught:
    load(path)
  assert "\n" not in str(caught.value)
  with pytest.raises(UsageError, match="No such file"):
    load(tmp_path / "not.npz")


def test_files_with_a_hole_and_arrays_alone_are_one_line(tmp_path):
  path = tmp_path / "weights.npz"
  content = bytearray((DATA / "cls.npz").read_bytes())
  content[content.index(b"NUMPY") + 130] ^= 1  # a number of the first array
  path.write_bytes(content)
  with pytest.raises(UsageError, match=r"weights.npz: .*\.npy is damaged"):
    load(path)
  np.save(tmp_path / "one.npy", np.zeros(3))
  (tmp_path / "one.npy").rename(path)
  with pytest.raises(UsageError, match=r"not a whole \.npz file"):
    load(path)


def test_vit_22bs_block_has_no_public_names():
  cfg = dataclasses.replace(CASES["map"][0], parallel=True)
  with pytest.raises(ValueError, match="for models with parallel=False"):
    flax_npz.public(cfg, {})
