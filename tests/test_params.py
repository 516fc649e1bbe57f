import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.params import count_params, init_params
from models.vit_config import ViTConfig, get_config

D, L, F, H, K, S, P, V = 12, 3, 20, 3, 4, 4, 16, 5
NEW = ViTConfig(
  width=D, depth=L, mlp=F, heads=H, classes=V, image=8, channels=1, patch=4
)
OLD = ViTConfig(
  width=D,
  depth=L,
  mlp=F,
  heads=H,
  classes=0,
  image=8,
  channels=1,
  patch=4,
  parallel=False,
  qk_norm=False,
  attention_bias=True,
  norm_bias=True,
  pool=False,
)


def shapes(cfg):
  tree = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
  return jax.tree.map(lambda leaf: leaf.shape, tree)


def dense(*shape):
  return {"kernel": shape, "bias": (*shape[:-2], shape[-1])}


def test_tree_of_the_parallel_block():
  assert shapes(NEW) == {
    "embed": {"kernel": (P, D), "bias": (D,), "position": (S, D)},
    "blocks": {
      "norm": {"scale": (L, D)},
      "q": {"kernel": (L, D, H * K)},
      "k": {"kernel": (L, D, H * K)},
      "v": {"kernel": (L, D, H * K)},
      "q_norm": {"scale": (L, K)},
      "k_norm": {"scale": (L, K)},
      "attention_out": {"kernel": (L, H * K, D)},
      "mlp_in": dense(L, D, F),
      "mlp_out": dense(L, F, D),
    },
    "norm": {"scale": (D,)},
    "pool": {
      "probe": (D,),
      "q": dense(D, D),
      "k": dense(D, D),
      "v": dense(D, D),
      "out": dense(D, D),
      "norm": {"scale": (D,)},
      "mlp_in": dense(D, F),
      "mlp_out": dense(F, D),
    },
    "head": dense(D, V),
  }


def test_tree_of_the_sequential_block_without_pool_and_head():
  norm = {"scale": (L, D), "bias": (L, D)}
  assert shapes(OLD) == {
    "embed": {"kernel": (P, D), "bias": (D,), "position": (S, D)},
    "blocks": {
      "norm": norm,
      "mlp_norm": norm,
      "q": dense(L, D, H * K),
      "k": dense(L, D, H * K),
      "v": dense(L, D, H * K),
      "attention_out": dense(L, H * K, D),
      "mlp_in": dense(L, D, F),
      "mlp_out": dense(L, F, D),
    },
    "norm": {"scale": (D,), "bias": (D,)},
  }


def test_flags_act_one_by_one():
  parallel = shapes(get_config("vit_b", parallel=True))["blocks"]
  assert "bias" not in parallel["attention_out"]
  assert "mlp_norm" not in parallel
  assert parallel["q"]["bias"] == (12, 768)

  unbiased = shapes(get_config("vit_b", attention_bias=False))["blocks"]
  assert "bias" not in unbiased["attention_out"]
  assert unbiased["mlp_norm"] == {"scale": (12, 768), "bias": (12, 768)}

  normed = shapes(get_config("vit_b", qk_norm=True))["blocks"]
  assert normed["q_norm"] == {"scale": (12, 64), "bias": (12, 64)}


init = jax.jit(init_params, static_argnames=("cfg", "dtype"))


@pytest.fixture(scope="module")
def drawn():
  """Parameters large enough for their moments to be measured."""
  cfg = get_config(
    "vit_22b", width=256, depth=3, mlp=512, heads=4, classes=6, image=112
  )
  return cfg, init(jax.random.key(1), cfg)


@pytest.mark.parametrize(
  ("name", "fan_in", "fan_out"),
  [
    ("q", 256, 256),
    ("k", 256, 256),
    ("v", 256, 256),
    ("attention_out", 256, 256),
    ("mlp_in", 256, 512),
    ("mlp_out", 512, 256),
  ],
)
@pytest.mark.parametrize("part", ["blocks", "pool"])
def test_kernels_are_xavier_uniform_in_the_fans_of_one_layer(
  drawn, part, name, fan_in, fan_out
):
  if part == "pool" and name == "attention_out":
    name = "out"
  kernel = np.asarray(drawn[1][part][name]["kernel"])
  assert kernel.shape[-2:] == (fan_in, fan_out)
  bound = (6 / (fan_in + fan_out)) ** 0.5
  # The largest of 65,536 uniform draws or more lies this near to the bound.
  np.testing.assert_allclose(np.abs(kernel).max(), bound, rtol=1e-3)
  assert np.abs(kernel).max() <= bound * (1 + 1e-6)
  np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.01)


def test_layers_differ(drawn):
  for name in ("q", "k", "v", "attention_out", "mlp_in", "mlp_out"):
    kernel = np.asarray(drawn[1]["blocks"][name]["kernel"])
    assert not np.any(kernel[0] == kernel[1]), name
  q, k = (drawn[1]["blocks"][name]["kernel"] for name in ("q", "k"))
  assert np.mean(np.asarray(q == k)) < 1e-3


def test_other_leaves_start_as_in_big_vision(drawn):
  cfg, params = drawn
  embed, head = params["embed"], params["head"]
  # LeCun: variance 1/P; the relative spread of a measured standard deviation
  # is 1/sqrt(2n), at most 0.006 here for n = 64 * 256.
  np.testing.assert_allclose(
    np.std(embed["kernel"]), cfg.patch_dim**-0.5, rtol=0.03
  )
  np.testing.assert_allclose(
    np.std(embed["position"]), cfg.width**-0.5, rtol=0.03
  )
  np.testing.assert_array_equal(embed["bias"], 0)

  for layer in (params["blocks"], params["pool"]):
    for name in ("mlp_in", "mlp_out"):
      np.testing.assert_allclose(np.std(layer[name]["bias"]), 1e-6, rtol=0.2)
  for name in ("q", "k", "v", "out"):
    np.testing.assert_array_equal(params["pool"][name]["bias"], 0)
  for norm in (params["norm"], params["pool"]["norm"]):
    np.testing.assert_array_equal(norm["scale"], 1)
  for name in ("norm", "q_norm", "k_norm"):
    np.testing.assert_array_equal(params["blocks"][name]["scale"], 1)

  # Xavier for one query: fan-in 1, fan-out D.
  bound = (6 / (1 + cfg.width)) ** 0.5
  np.testing.assert_allclose(np.abs(params["pool"]["probe"]).max(), bound, 0.05)
  np.testing.assert_array_equal(head["kernel"], 0)
  np.testing.assert_array_equal(head["bias"], -10)


def test_norm_and_attention_biases_start_at_zero():
  names = ("norm", "mlp_norm", "q", "k", "v", "attention_out")

  @jax.jit
  def biases(key):
    blocks = init_params(key, OLD)["blocks"]
    return [blocks[name]["bias"] for name in names]

  for name, bias in zip(names, biases(jax.random.key(0)), strict=True):
    np.testing.assert_array_equal(bias, 0, err_msg=name)


def test_head_bias_and_dtype_are_settable():
  cfg = dataclasses.replace(NEW, head_bias_init=2.0)
  half = functools.partial(init_params, cfg=cfg, dtype=jnp.bfloat16)
  leaves = jax.tree.leaves(jax.eval_shape(half, jax.random.key(0)))
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}
  head = jax.jit(lambda key: half(key)["head"])(jax.random.key(0))
  np.testing.assert_array_equal(head["bias"], jnp.full(V, 2, jnp.bfloat16))


def test_the_key_decides(drawn):
  cfg, params = drawn
  jax.tree.map(
    np.testing.assert_array_equal, params, init(jax.random.key(1), cfg)
  )
  other = init(jax.random.key(2), cfg)
  for part in ("blocks", "pool"):
    same = params[part]["q"]["kernel"] == other[part]["q"]["kernel"]
    assert np.mean(np.asarray(same)) < 1e-3


def test_vit_22b_matmuls_are_table_1():
  by_hand = 48 * (4 * 6144**2 + 2 * 6144 * 24576)
  assert count_params(get_config("vit_22b"), "matmul") == by_hand
  assert by_hand == 21_743_271_936


def test_vit_22b_in_all():
  width, mlp, classes, head_dim = 6144, 24576, 29_593, 128
  embed = 14 * 14 * 3 * width + width + 256 * width
  small = width + 2 * head_dim + mlp + width  # norm, QK norms, MLP biases
  pool = (
    width  # probe
    + 4 * (width * width + width)
    + width  # norm
    + (width * mlp + mlp)
    + (mlp * width + width)
  )
  head = width * classes + classes
  by_hand = 21_743_271_936 + embed + 48 * small + width + pool + head
  assert count_params(get_config("vit_22b"), "all") == by_hand
  assert round(by_hand / 1e6) == 22_385


def test_vit_giant_encoder_is_table_1():
  count = count_params(get_config("vit_G"), "encoder")
  assert round(count / 1e6, 1) == 1842.8
  # The other conventions do not give 1843M.
  for convention in ("all", "matmul"):
    other = count_params(get_config("vit_G"), convention)
    assert round(other / 1e6) != 1843


def test_vit_e_in_all_is_table_1():
  count = count_params(get_config("vit_e"), "all")
  assert count == 3_926_402_969
  for convention in ("encoder", "matmul"):
    other = count_params(get_config("vit_e"), convention)
    assert round(other / 1e6) != 3926


def test_vit_g_encoder_is_that_of_zhai_et_al():
  assert round(count_params(get_config("vit_g"), "encoder") / 1e6) == 1011


@pytest.mark.parametrize(
  ("name", "timm"),
  [("vit_s", 22_050_664), ("vit_b", 86_567_656), ("vit_l", 304_326_632)],
)
def test_earlier_vits_are_timms_less_the_class_token(name, timm):
  # timm vit_*_patch16_224 with 1000 classes: its class token and that token's
  # position are the only parameters that ours lacks.
  cfg = get_config(name, classes=1000, pool=False)
  assert count_params(cfg, "all") == timm - 2 * cfg.width


def test_unknown_convention_is_refused():
  with pytest.raises(ValueError, match="all, encoder, matmul, got 'kernels'"):
    count_params(NEW, "kernels")
