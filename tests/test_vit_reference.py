import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.loss import loss_fn
from models.params import init_params
from models.vit_config import ViTConfig
from models.vit_reference import forward

CFG = ViTConfig(
  width=24, depth=2, mlp=40, heads=3, classes=5, image=12, channels=2, patch=4
)
OLD = dataclasses.replace(
  CFG, parallel=False, qk_norm=False, attention_bias=True, norm_bias=True
)
run = jax.jit(forward, static_argnames=("cfg", "compute_dtype"))


def some_params(cfg):
  """Returns values that leave no bias or head zero and no scale one."""
  rng = np.random.default_rng(0)
  tree = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))

  def draw(path, leaf):
    x = rng.normal(size=leaf.shape).astype(np.float32)
    name = path[-1].key
    if name == "kernel":
      return x / np.float32(leaf.shape[-2] ** 0.5)
    return np.float32(name == "scale") + np.float32(0.3) * x

  return jax.tree_util.tree_map_with_path(draw, tree)


def some_images(cfg):
  shape = (3, cfg.image, cfg.image, cfg.channels)
  return np.random.default_rng(7).uniform(-1, 1, shape).astype(np.float32)


# The same model in float64, one image, token and head at a time.


def np_norm(x, norm):
  if "bias" in norm:
    y = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    return y * norm["scale"] + norm["bias"]
  return x / np.sqrt((x**2).mean() + 1e-6) * norm["scale"]


def np_norms(rows, norm):
  return np.stack([np_norm(row, norm) for row in rows])


def np_dense(x, layer):
  return x @ layer["kernel"] + layer.get("bias", 0.0)


def np_mlp(y, layer):
  h = np_dense(y, layer["mlp_in"])
  h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  return np_dense(h, layer["mlp_out"])


def np_attention(queries, tokens, layer, out, cfg):
  """Returns the output rows and every logit, one head after the other."""
  q, k, v = (
    np_dense(x, layer[name])
    for x, name in ((queries, "q"), (tokens, "k"), (tokens, "v"))
  )
  heads, all_logits = [], []
  for head in range(cfg.heads):
    features = slice(head * cfg.head_dim, (head + 1) * cfg.head_dim)
    qh, kh, vh = q[:, features], k[:, features], v[:, features]
    if "q_norm" in layer:
      qh, kh = np_norms(qh, layer["q_norm"]), np_norms(kh, layer["k_norm"])
    logits = qh @ kh.T / np.sqrt(cfg.head_dim)
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    heads.append(weights @ vh)
    all_logits.append(logits)
  return np_dense(np.concatenate(heads, axis=1), layer[out]), all_logits


def np_forward(params, image, cfg):
  """Returns logits, pre-logits and the largest attention logit."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  image = np.asarray(image, np.float64)
  starts = range(0, cfg.image, cfg.patch)
  patches = [
    image[row : row + cfg.patch, column : column + cfg.patch].ravel()
    for row, column in itertools.product(starts, starts)
  ]
  x = np_dense(np.stack(patches), params["embed"]) + params["embed"]["position"]
  largest = -np.inf
  for i in range(cfg.depth):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
    y = np_norms(x, layer["norm"])
    attended, logits = np_attention(y, y, layer, "attention_out", cfg)
    largest = max(largest, np.max(logits))
    if cfg.parallel:
      x = x + np_mlp(y, layer) + attended
    else:
      x = x + attended
      x = x + np_mlp(np_norms(x, layer["mlp_norm"]), layer)
  x = np_norms(x, params["norm"])
  if cfg.pool:
    pool = params["pool"]
    pooled, _ = np_attention(pool["probe"][None], x, pool, "out", cfg)
    pooled = (pooled + np_mlp(np_norms(pooled, pool["norm"]), pool))[0]
  else:
    pooled = x.mean(axis=0)
  logits = np_dense(pooled, params["head"]) if cfg.classes else pooled
  return logits, pooled, largest


@pytest.mark.parametrize(
  ("parallel", "qk_norm", "attention_bias", "norm_bias", "pool"),
  [
    (True, True, False, False, True),  # ViT-22B
    (False, False, True, True, True),  # the earlier ViTs
    (True, True, True, True, False),
    (True, False, False, True, True),
    (True, False, True, False, False),
    (False, True, False, False, False),
  ],
)
def test_equals_the_float64_model(
  parallel, qk_norm, attention_bias, norm_bias, pool
):
  cfg = dataclasses.replace(
    CFG,
    parallel=parallel,
    qk_norm=qk_norm,
    attention_bias=attention_bias,
    norm_bias=norm_bias,
    pool=pool,
  )
  params, images = some_params(cfg), some_images(cfg)
  logits, out = run(params, images, cfg)
  expected = [np_forward(params, image, cfg) for image in images]
  # Values of order one, float32 rounding of 6e-8, some tens of operations.
  close = functools.partial(np.testing.assert_allclose, rtol=5e-6, atol=5e-6)
  close(logits, [logits for logits, _, _ in expected])
  close(out["pre_logits"], [pooled for _, pooled, _ in expected])
  close(out["max_attention_logit"], max(largest for _, _, largest in expected))


def test_without_classes_the_pre_logits_come_first():
  cfg = dataclasses.replace(CFG, classes=0)
  first, out = run(some_params(cfg), some_images(cfg), cfg)
  assert first.shape == (3, cfg.width)
  np.testing.assert_array_equal(first, out["pre_logits"])


@pytest.fixture(scope="module")
def first_params():
  return jax.jit(init_params, static_argnames="cfg")(jax.random.key(0), CFG)


def test_at_the_start_every_class_is_unlikely(first_params):
  logits, _ = run(first_params, some_images(CFG), CFG)
  np.testing.assert_array_equal(logits, np.full((3, 5), -10.0))


@pytest.mark.parametrize("cfg", [CFG, OLD], ids=["parallel", "sequential"])
@pytest.mark.parametrize("pool", [True, False])
def test_tokens_are_a_set_once_they_carry_their_positions(cfg, pool):
  cfg = dataclasses.replace(cfg, pool=pool)
  params, images = some_params(cfg), some_images(cfg)
  order = np.random.default_rng(0).permutation(cfg.tokens)
  moved = np.empty_like(images)
  side, patch = cfg.image // cfg.patch, cfg.patch
  for to, start in enumerate(order):
    (row, column), (row2, column2) = divmod(to, side), divmod(start, side)
    moved[:, row * patch :, column * patch :][:, :patch, :patch] = images[
      :, row2 * patch :, column2 * patch :
    ][:, :patch, :patch]

  before, _ = run(params, images, cfg)
  alone, _ = run(params, moved, cfg)
  position = params["embed"]["position"][order]
  params["embed"] = params["embed"] | {"position": position}
  together, _ = run(params, moved, cfg)
  np.testing.assert_allclose(together, before, rtol=1e-4, atol=1e-4)
  assert np.abs(alone - before).max() > 0.01


def scale_queries(params, factor):
  q = params["blocks"]["q"]
  kernel = q | {"kernel": factor * q["kernel"]}
  return params | {"blocks": params["blocks"] | {"q": kernel}}


def test_qk_norm_makes_the_size_of_queries_irrelevant():
  params, images = some_params(CFG), some_images(CFG)
  before, _ = run(params, images, CFG)
  after, _ = run(scale_queries(params, 100), images, CFG)
  # Only the norm's epsilon of 1e-6, beside a variance near one, sees a factor.
  np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_without_qk_norm_attention_logits_grow_with_the_queries():
  cfg = dataclasses.replace(CFG, qk_norm=False, depth=1)
  params, images = some_params(cfg), some_images(cfg)
  before, small = run(params, images, cfg)
  after, large = run(scale_queries(params, 100), images, cfg)
  np.testing.assert_allclose(
    large["max_attention_logit"], 100 * small["max_attention_logit"], rtol=1e-4
  )
  assert np.abs(after - before).max() > 0.1


def test_qk_norm_bounds_attention_logits(first_params):
  # Normed vectors of K features have length sqrt(K), so their product over
  # sqrt(K) is at most sqrt(K).
  _, out = run(scale_queries(first_params, 1e4), some_images(CFG), CFG)
  assert 0 < out["max_attention_logit"] <= CFG.head_dim**0.5 * (1 + 1e-5)


@pytest.mark.parametrize("cfg", [CFG, OLD], ids=["parallel", "sequential"])
def test_gradient_is_finite_and_reaches_every_parameter(cfg):
  params, images = some_params(cfg), some_images(cfg)
  labels, mask = jnp.eye(3, 5), jnp.ones(3)

  def loss(params):
    return loss_fn(forward(params, images, cfg)[0], labels, mask)

  gradient = jax.jit(jax.grad(loss))(params)
  # Softmax is blind to a bias that all keys share.
  if not cfg.qk_norm:
    del gradient["blocks"]["k"]["bias"]
  del gradient["pool"]["k"]["bias"]
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    name = jax.tree_util.keystr(path)
    assert np.isfinite(leaf).all(), name
    assert np.abs(leaf).max() > 1e-5, name


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("cfg", [CFG, OLD], ids=["parallel", "sequential"])
def test_bfloat16_is_near_float32(cfg, pool):
  cfg = dataclasses.replace(cfg, pool=pool)
  params, images = some_params(cfg), some_images(cfg)
  exact, _ = run(params, images, cfg)
  rounded, out = run(params, images, cfg, compute_dtype=jnp.bfloat16)
  assert rounded.dtype == jnp.float32
  assert {leaf.dtype for leaf in out.values()} == {np.dtype("float32")}
  # About ten roundings of 2^-9 follow each other; their sum in squares is
  # 0.6 %, and what attention makes of them stays within twice that.
  spread = np.asarray(exact).std()
  error = np.sqrt(np.mean((rounded - exact) ** 2)) / spread
  assert 1e-4 < error < 0.012


def test_images_of_another_size_are_refused():
  params = some_params(CFG)
  message = r"\[B, 12, 12, 2\], got images.shape=\(3, 12, 16, 2\)"
  with pytest.raises(ValueError, match=message):
    forward(params, jnp.zeros((3, 12, 16, 2)), CFG)
  with pytest.raises(ValueError, match=r"got images.shape=\(12, 12, 2\)"):
    forward(params, jnp.zeros((12, 12, 2)), CFG)
