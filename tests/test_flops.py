import dataclasses
import doctest
import math
import types

import jax
import pytest
from jax.extend.core import jaxprs_in_params

from models import params, vit_reference
from models.vit_config import get_config
from profiling import flops

VIT_22B = get_config("vit_22b")
PALM = flops.palm_flops_per_token(
  params=540_350_000_000, depth=118, heads=48, head_dim=256, tokens=2048
)


def devices(kind, count, cores=None):
  """Stand for devices that are not here, by what is asked of them."""
  attributes = {"device_kind": kind}
  if cores:
    attributes["num_cores"] = cores
  return [types.SimpleNamespace(**attributes)] * count


def matmul_flops(jaxpr):
  """FLOPs of every product in `jaxpr`, that of a loop times its length."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      left = eqn.invars[0].aval.shape
      terms = math.prod(left[dim] for dim in contracted)
      total += 2 * terms * math.prod(eqn.outvars[0].aval.shape)
    times = eqn.params.get("length", 1)
    for inner in jaxprs_in_params(eqn.params):
      total += times * matmul_flops(inner)
  return total


def test_docstring_examples():
  result = doctest.testmod(flops)
  assert result.attempted >= 4 and not result.failed


def test_vit_22b_per_token():
  assert flops.vit_flops_per_token(VIT_22B) == pytest.approx(
    131.3656e9, rel=1e-6
  )


def test_vit_22b_reproduces_the_mfu_of_the_paper():
  got = flops.mfu(1150, flops.vit_flops_per_token(VIT_22B), 275e12)
  assert got == pytest.approx(0.54935, abs=5e-6)


def test_palm_reproduces_its_mfu():
  assert flops.mfu(238.3e3, PALM, 6144 * 275e12) == pytest.approx(
    0.462, abs=5e-4
  )


def test_whole_vit_22b_is_a_little_more_than_its_blocks():
  whole = flops.vit_flops_per_image(VIT_22B)
  blocks = VIT_22B.tokens * flops.vit_flops_per_token(VIT_22B)
  assert whole / blocks - 1 == pytest.approx(0.0037, abs=5e-5)


def test_vit_tiny_by_hand():
  # 16 tokens of width 64, MLP 256, 4 blocks, patches of 64 numbers, 10 classes.
  embed = 16 * 64 * 64
  block = 4 * 16 * 64 * 64 + 2 * 16 * 64 * 256 + 2 * 16 * 16 * 64
  probe = 2 * 64 * 64 + 2 * 16 * 64 * 64 + 2 * 16 * 64 + 2 * 64 * 256
  macs = embed + 4 * block + probe + 64 * 10
  assert macs == 3_517_056
  assert flops.vit_flops_per_image(get_config("vit_tiny")) == 6 * macs


@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("vit_tiny", {}),
    ("vit_b", {}),
    ("vit_b", {"pool": False, "cls": True, "pre_logits": True}),
    ("vit_22b", {"image": 384}),
  ],
)
def test_an_image_is_three_times_the_products_of_the_model(name, changes):
  cfg = get_config(name, **changes)
  weights = jax.eval_shape(lambda: params.init_params(jax.random.key(0), cfg))
  images = jax.ShapeDtypeStruct(
    (1, cfg.image, cfg.image, cfg.channels), "float32"
  )
  forward = jax.make_jaxpr(
    lambda weights, images: vit_reference.forward(weights, images, cfg)
  )(weights, images)
  assert flops.vit_flops_per_image(cfg) == 3 * matmul_flops(forward.jaxpr)


def test_head_and_classifier_can_be_left_out():
  tiny = get_config("vit_tiny")
  bare = dataclasses.replace(tiny, pool=False, classes=0)
  probe = 2 * 64 * 64 + 2 * 16 * 64 * 64 + 2 * 16 * 64 + 2 * 64 * 256
  assert flops.vit_flops_per_image(tiny) - flops.vit_flops_per_image(bare) == (
    6 * (probe + 64 * 10)
  )


def test_throughput_on_cpu_has_no_mfu():
  got = flops.throughput(9872, 1e6, jax.devices("cpu"))
  assert got.mfu is None
  assert str(got) == (
    "tokens/s: 1,234 per device, n/a per chip, n/a per TensorCore; "
    "MFU n/a (no published peak for 'cpu')"
  )


@pytest.mark.parametrize(
  "kind, cores, per_device, per_chip, per_core",
  [
    ("TPU v4", 2, 1150, 1150, 575),  # megacore: a device is a chip
    ("TPU v4", 1, 1150, 2300, 1150),  # split-core view
    ("TPU v5 lite", 1, 1150, 1150, 1150),
    ("TPU7x", 1, 1150, 2300, 1150),
    ("NVIDIA H200", None, 1150, 1150, None),
  ],
)
def test_throughput_by_meaning_of_core(
  kind, cores, per_device, per_chip, per_core
):
  got = flops.throughput(4 * 1150, 1e9, devices(kind, 4, cores))
  assert got.tokens_per_s_per_device == per_device
  assert got.tokens_per_s_per_chip == per_chip
  assert got.tokens_per_s_per_tensor_core == per_core


def test_mfu_is_of_the_whole_chip_however_it_is_split():
  per_token = flops.vit_flops_per_token(VIT_22B)
  megacore = flops.throughput(1150 * 4, per_token, devices("TPU v4", 4, 2))
  split = flops.throughput(1150 * 4, per_token, devices("TPU v4", 8, 1))
  assert megacore.mfu == split.mfu == pytest.approx(0.54935, abs=5e-6)
  assert str(megacore) == (
    "tokens/s: 1,150 per device, 1,150 per chip, 575 per TensorCore; "
    "MFU 54.9% (of 275 bf16 TFLOP/s per chip)"
  )


def test_small_rates_keep_their_digits():
  got = flops.throughput(0.5, 1e9, devices("NVIDIA B200", 4))
  assert "0.125 per device" in str(got)
  assert "of 2,250 bf16 TFLOP/s" in str(got)


def test_mixed_devices_have_no_one_peak():
  mixed = devices("TPU v4", 1, 2) + devices("TPU v5", 1, 2)
  got = flops.throughput(100.0, 1e9, mixed)
  assert got.mfu is None
  assert got.mfu_note == "no one peak for 'TPU v4' and 'TPU v5'"


def test_throughput_of_no_devices():
  with pytest.raises(ValueError, match="devices must hold at least 1 device"):
    flops.throughput(1.0, 1.0, [])
