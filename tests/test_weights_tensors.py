import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from weight_cases import CASES, DATA, some_params

from examples.usage import UsageError
from examples.weights import tensors
from examples.weights.load import load
from models.vit_config import ViTConfig

VIT_22B = ViTConfig(
  width=16, depth=2, mlp=32, heads=2, classes=3, image=24, patch=8
)


@pytest.mark.parametrize("cfg", [VIT_22B, *(cfg for cfg, _ in CASES.values())])
def test_our_own_come_back_bit_for_bit(tmp_path, cfg):
  params = some_params(cfg, 3)
  tensors.write(tmp_path / "ours.safetensors", cfg, params)
  got_cfg, got = load(tmp_path / "ours.safetensors")
  assert got_cfg == cfg
  jax.tree.map(np.testing.assert_array_equal, got, params)
  names = load_file(tmp_path / "ours.safetensors")
  assert names["blocks/q/kernel"].shape == (2, 16, 16)


def test_timms_are_the_model_of_the_npz():
  # timm took the one by load_state_dict(strict=True), the other by its loader
  # of .npz, and gave the same logits: tests/make_timm_fixture.py.
  cfg, got = load(DATA / "cls.safetensors", heads=2)
  assert cfg == dataclasses.replace(
    CASES["cls"][0], head_bias_init=cfg.head_bias_init
  )
  _, want = load(DATA / "cls.npz")
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", [*CASES, "qk_norm"])
def test_what_is_written_for_timm_comes_back(tmp_path, name):
  cfg = CASES["cls"][0]
  cfg = dataclasses.replace(cfg, qk_norm=True) if name == "qk_norm" else cfg
  cfg = CASES[name][0] if name in CASES else cfg
  params = some_params(cfg, 3)
  path = tmp_path / "timm.safetensors"
  tensors.write_timm(path, cfg, params)
  got_cfg, got = load(path, heads=None if cfg.qk_norm else 2)
  assert got_cfg.heads == 2
  jax.tree.map(np.testing.assert_array_equal, got, params)


def test_bfloat16_is_read_as_float32(tmp_path):
  params = some_params(VIT_22B, 3)
  half = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), params)
  tensors.write(tmp_path / "half.safetensors", VIT_22B, half)
  _, got = load(tmp_path / "half.safetensors")
  for x, want in zip(*map(jax.tree.leaves, (got, half)), strict=True):
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, want.astype(np.float32))


def test_heads_that_nothing_tells_are_asked_for():
  with pytest.raises(UsageError, match="heads width 16 has: --heads=N"):
    load(DATA / "cls.safetensors")


@pytest.mark.parametrize(
  ("name", "shape", "message"),
  [
    ("blocks.0.ls1.gamma", (16,), "block 1 of 2 has no ls1.gamma"),
    ("reg_token", (1, 4, 16), "reg_token is missing here"),
    ("head.bias", (4,), r"head/kernel is float32\[16, 3\] there"),
    ("blocks.1.attn.qkv.bias", None, "block 1 of 2 has no q/bias"),
    ("norm.weight", None, "norm/scale is missing there"),
    ("patch_embed.proj.weight", None, "neither our own file nor one of timm"),
  ],
)
def test_other_models_are_one_line_that_names_the_leaf(
  tmp_path, name, shape, message
):
  state = load_file(DATA / "cls.safetensors")
  state.pop(name, None)
  if shape:
    state[name] = np.zeros(shape, np.float32)
  path = tmp_path / "other.safetensors"
  save_file(state, path)
  with pytest.raises(UsageError, match=message) as caught:
    load(path, heads=2)
  assert str(caught.value).startswith(f"{path}: ")
  assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_one_line(tmp_path):
  path = tmp_path / "cut.safetensors"
  whole = (DATA / "cls.safetensors").read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UsageError, match=r"not a whole \.safetensors file"):
    load(path)
  path.write_bytes(b"")
  with pytest.raises(UsageError, match=r"not a whole \.safetensors file"):
    load(path)


@pytest.mark.parametrize(
  "config", ["null", "{}", '{"width": "a"}', '{"depth": 1e9}', "{"]
)
def test_metadata_that_is_no_config_is_one_line(tmp_path, config):
  path = tmp_path / "odd.safetensors"
  about = {"format": "collective_mm ViT 1", "config": config}
  save_file({"x": np.zeros(1)}, path, about)
  with pytest.raises(UsageError, match=f"^{path}: ") as caught:
    load(path)
  assert "\n" not in str(caught.value)


def test_vit_22bs_block_has_no_names_in_timm():
  with pytest.raises(ValueError, match="for models with parallel=False"):
    tensors.to_timm(VIT_22B, {})
