"""The fused attention beside the plain one, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collective_mm import make_mesh
from collective_mm.mesh import vary_alike
from models import attention_kernel
from models.attention import attention, can_fuse
from models.attention_kernel import Shape, fused_attention
from models.vit_config import get_config
from profiling import topology

HEAD = 128


def draw(shape, images, dtype):
  """q, k, v, dy of all images, and the scales of the norms."""
  rng = np.random.default_rng(0)
  size = images * shape.tokens, shape.heads * shape.head_dim
  arrays = [jnp.asarray(rng.standard_normal(size), dtype) for _ in range(4)]
  scales = [
    jnp.asarray(1 + rng.standard_normal(shape.head_dim) / 4, jnp.float32)
    for _ in range(2)
  ]
  return arrays, scales


def plain(q, k, v, q_scale, k_scale, shape):
  cfg = get_config(
    "vit_22b",
    width=shape.heads * shape.head_dim,
    heads=shape.heads,
    image=14 * int(shape.tokens**0.5),
  )
  layer = {"q_norm": {"scale": q_scale}, "k_norm": {"scale": k_scale}}
  return attention(q, k, v, layer, cfg=cfg, fused=False)


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_equals_the_plain_one_and_its_gradients(heads):
  shape = Shape(16, heads, HEAD, interpret=True)
  (q, k, v, dy), scales = draw(shape, 3, jnp.float32)

  (y, logits), pull = jax.vjp(
    lambda *a: fused_attention(*a, shape), q, k, v, *scales
  )
  (want, largest), pull_plain = jax.vjp(
    lambda *a: plain(*a, shape), q, k, v, *scales
  )
  # Sums of at most 128 products of unit size, in another order.
  close = {"rtol": 2e-5, "atol": 2e-5}
  np.testing.assert_allclose(y, want, **close)
  assert logits.shape == (3, heads // shape.block)
  np.testing.assert_allclose(logits.max(), largest, rtol=1e-5)
  got = pull((dy, jnp.zeros_like(logits)))
  expected = pull_plain((dy, jnp.zeros_like(largest)))
  for a, b in zip(got[:3], expected[:3], strict=True):
    np.testing.assert_allclose(a, b, **close)
  for a, b in zip(got[3:], expected[3:], strict=True):
    # Those of the scales sum over all rows and heads.
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


def test_each_image_attends_to_itself_alone():
  shape = Shape(16, 2, HEAD, interpret=True)
  (q, k, v, _), scales = draw(shape, 2, jnp.float32)
  y, _ = fused_attention(q, k, v, *scales, shape)
  k, v = k.at[16:].multiply(-1), v.at[16:].multiply(2)
  moved, _ = fused_attention(q, k, v, *scales, shape)
  np.testing.assert_array_equal(y[:16], moved[:16])
  assert np.abs(y[16:] - moved[16:]).max() > 0.1


def test_bfloat16_loses_no_more_than_the_plain_one():
  shape = Shape(16, 2, HEAD, interpret=True)
  (q, k, v, _), scales = draw(shape, 2, jnp.bfloat16)
  wide = [x.astype(jnp.float32) for x in (q, k, v)]
  exact = np.asarray(plain(*wide, *scales, shape)[0])

  def error(y):
    return np.abs(np.asarray(y, np.float32) - exact).max()

  fused = error(fused_attention(q, k, v, *scales, shape)[0])
  assert fused < 1.5 * error(plain(q, k, v, *scales, shape)[0])


def test_large_logits_do_not_overflow():
  shape = Shape(16, 1, HEAD, interpret=True)
  (q, k, v, _), scales = draw(shape, 1, jnp.float32)
  scales = [100 * s for s in scales]
  y, logits = fused_attention(q, k, v, *scales, shape)
  assert np.isfinite(y).all()
  assert logits.max() > 1e4


@pytest.mark.parametrize(
  ("changes", "kind", "fuses"),
  [
    ({}, "TPU v4", True),
    ({}, "cpu", False),
    ({"qk_norm": False}, "TPU v4", False),
    ({"norm_bias": True}, "TPU v4", False),
    ({"heads": 96}, "TPU v4", False),  # heads of 64
    ({"image": 238}, "TPU v4", False),  # 289 tokens
    ({"image": 448}, "TPU v4", True),  # 1,024
    ({"image": 672}, "TPU v4", False),
  ],
)
def test_fuses_where_blocks_fit(changes, kind, fuses):
  assert can_fuse(get_config("vit_22b", **changes), kind) == fuses


def test_a_program_takes_as_many_heads_as_divide():
  blocks = {n: Shape(256, n, HEAD).block for n in (1, 2, 3, 6, 12, 48)}
  assert blocks == {1: 1, 2: 2, 3: 1, 6: 2, 12: 4, 48: 4}


@pytest.mark.tpu_compiler
def test_compiles_with_a_known_cost():
  pytest.importorskip("libtpu")
  devices = topology.devices("v4:2x2x1")
  mesh = make_mesh(data=1, model=4, devices=devices)
  rows, whole = jax.P(None, "model"), jax.P()

  def gradients(q, k, v, dy, q_scale, k_scale):
    def local(q, k, v, q_scale, k_scale):
      arrays = vary_alike("model", q, k, v, q_scale, k_scale)
      shape = Shape(256, q.shape[-1] // HEAD, HEAD)
      return fused_attention(*arrays, shape)[0]

    _, pull = jax.vjp(local, q, k, v, q_scale, k_scale)
    return pull(dy)

  step = jax.shard_map(
    gradients,
    mesh=mesh,
    in_specs=(rows,) * 4 + (whole,) * 2,
    out_specs=(rows,) * 3 + (whole,) * 2,
  )
  sharding = jax.NamedSharding(mesh, rows)
  q = jax.ShapeDtypeStruct((512, 8 * HEAD), jnp.bfloat16, sharding=sharding)
  scale = jax.ShapeDtypeStruct(
    (HEAD,), jnp.float32, sharding=jax.NamedSharding(mesh, whole)
  )
  text = jax.jit(step).lower(q, q, q, q, scale, scale).compile().as_text()
  kernels = [line for line in text.splitlines() if "tpu_custom_call" in line]
  # Backward needs no forward: it makes the logits again.
  assert len(kernels) == 1
  logits = 2 * 2 * 256**2  # images, heads of a device
  assert f'"flops":"{5 * 2 * logits * HEAD}"' in kernels[0]
  assert f'"bytes_accessed":"{7 * 512 * 2 * HEAD * 2}"' in kernels[0]


def test_blocks_must_tile():
  assert not attention_kernel.fits(tokens=250, head_dim=128)
  assert not attention_kernel.fits(tokens=256, head_dim=96)
