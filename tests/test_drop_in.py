"""The three models of `examples.drop_in`, before and after."""

import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from layer_cases import jit, mesh_of

from collective_mm import make_mesh
from examples.drop_in import (
  bench_llama,
  llama_nnx,
  llama_nnx_sharded,
  mixer_equinox,
  mixer_equinox_sharded,
  report,
  vit_linen,
  vit_linen_sharded,
)
from profiling import topology


def draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def value_and_gradients(f):
  """The model and its gradients in parameters and input, of one loss."""

  def loss(params, x):
    y = f(params, x)
    weights = jnp.sin(jnp.arange(y.size)).reshape(y.shape)
    return (weights * y).sum(), y

  # Gradients of integers, which tokens are, there are none.
  def run(params, x):
    is_real = jnp.issubdtype(x.dtype, jnp.floating)
    numbers = (0, 1) if is_real else 0
    (_, y), gradients = jax.value_and_grad(loss, numbers, has_aux=True)(
      params, x
    )
    return y, gradients

  return jit(run)


def assert_near(got, want):
  """Of the order of float32's rounding: a chunk less is more than 1e-2.

  Some gradients are zero but for rounding, that of the keys' bias; they are
  held to the scale of the others.
  """
  got, want = jax.tree.leaves(got), jax.tree.leaves(want)
  scale = 1e-2 * max(np.linalg.norm(b) for b in want)
  for a, b in zip(got, want, strict=True):
    error = np.linalg.norm(a - b) / max(np.linalg.norm(b), scale)
    assert error < 1e-5, (error, a.shape)


def test_vit_of_linen_under_scan_and_remat():
  cfg = vit_linen.Config(
    depth=2, width=8, hidden=16, heads=4, patch=4, classes=5
  )
  original, converted = vit_linen.ViT(cfg), vit_linen_sharded.ViT(cfg)
  images = draw(0, 2, 8, 16, 3)  # eight tokens
  variables = jit(original.init)(jax.random.key(0), images)
  want = value_and_gradients(original.apply)(variables, images)
  with jax.set_mesh(mesh_of()):
    boxed = jit(converted.init)(jax.random.key(0), images)
    own = nn.unbox(boxed)
    specs = nn.get_partition_spec(boxed)["params"]["blocks"]["MLP_0"]
    assert specs["Dense_0"]["kernel"] == jax.P(None, None, "model")
    assert specs["Dense_1"]["kernel"] == jax.P(None, "model", None)
    # The same tree and the same draws, so that a checkpoint loads.
    jax.tree.map(np.testing.assert_array_equal, own, variables)
    loaded = flax.serialization.from_bytes(
      own, flax.serialization.to_bytes(variables)
    )
    got = value_and_gradients(converted.apply)(loaded, images)
  assert_near(got, want)


def test_llama_of_nnx_with_weights_that_the_original_saved(tmp_path):
  cfg = llama_nnx.Config(
    vocabulary=16, depth=1, width=8, hidden=16, heads=8, kv_heads=4,
    head_dim=4, dtype=jnp.float32,
  )  # fmt: skip
  original = llama_nnx.Llama(cfg, rngs=nnx.Rngs(0))
  graph, state = nnx.split(original)
  saved = nnx.to_pure_dict(state)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "llama", saved)
    checkpointer.wait_until_finished()
    mesh = mesh_of()
    converted = nnx.eval_shape(
      lambda: llama_nnx_sharded.Llama(cfg, rngs=nnx.Rngs(1), mesh=mesh)
    )
    own_graph, abstract = nnx.split(converted)
    shardings = nnx.to_pure_dict(nnx.get_named_sharding(abstract, mesh))
    target = jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      nnx.to_pure_dict(abstract),
      shardings,
    )
    loaded = checkpointer.restore(tmp_path / "llama", target)
  key = loaded["blocks"][0]["attention"]["key"]["kernel"]
  assert key.sharding.spec == jax.P(None, "model")

  def applied(graph, state):
    def run(params, tokens):
      own = jax.tree.map(lambda a: a, state)
      nnx.replace_by_pure_dict(own, params)
      return nnx.merge(graph, own)(tokens)

    return value_and_gradients(run)

  tokens = jnp.arange(16).reshape(2, 8)
  assert_near(
    applied(own_graph, abstract)(loaded, tokens),
    applied(graph, state)(saved, tokens),
  )


def test_llama_names_key_heads_that_the_axis_would_cut():
  cfg = llama_nnx.Config(
    width=8, heads=8, kv_heads=2, head_dim=4, dtype=jnp.float32
  )

  def attend():
    attention = llama_nnx_sharded.Attention(
      cfg, rngs=nnx.Rngs(0), mesh=mesh_of()
    )
    return attention(jnp.ones((2, 8, 8)))

  with pytest.raises(ValueError, match="got 2 features a device of heads of 4"):
    nnx.eval_shape(attend)


def test_mixer_of_equinox_under_vmap_and_checkpoint():
  sizes = {
    "tokens": 8, "patch": 6, "width": 4, "token_hidden": 12, "hidden": 16,
    "depth": 1, "classes": 3,
  }  # fmt: skip
  key, x = jax.random.key(0), draw(0, 2, 8, 6)

  def run(module):
    model = module.Mixer(**sizes, key=key)
    arrays, rest = eqx.partition(model, eqx.is_array)

    def apply(arrays, x):
      model = eqx.combine(arrays, rest)
      return jax.vmap(jax.checkpoint(lambda x: model(x)))(x)

    return arrays, value_and_gradients(apply)(arrays, x)

  with jax.set_mesh(mesh_of()):
    own, got = run(mixer_equinox_sharded)
  given, want = run(mixer_equinox)
  jax.tree.map(
    np.testing.assert_array_equal, jax.tree.leaves(own), jax.tree.leaves(given)
  )
  assert_near(got, want)


@pytest.mark.long
@pytest.mark.tpu_compiler
@pytest.mark.parametrize("name", ["v5e:2x4", "v5p:2x2x2"])
# Not the mixer, which is worse off: docs/drop_in.md.
@pytest.mark.parametrize("model", ["llama", "vit"])
def test_rings_hide_what_the_original_waits_for(model, name):
  pytest.importorskip("libtpu")
  mesh = make_mesh(data=1, model=8, devices=topology.devices(name))
  (before, was), (after, now) = (
    report.reported(model, sharded, mesh) for sharded in (False, True)
  )
  print(before, was, after, now, sep="\n\n")
  # The gate leaves the ViT's narrow attention on v5p to all-reduces.
  assert now.exposed_communication_s < 0.7 * was.exposed_communication_s
  # This Llama has a quarter of the benchmark's tokens: on v5p nothing is won.
  assert now.step_time_s < 1.02 * was.step_time_s
  kinds = {c.kind for c in before.collectives}
  assert kinds & {"all-gather", "reduce-scatter", "all-reduce"}
  rings = [c for c in after.collectives if c.kind == "collective-permute"]
  # An MLP alone has a ring for its gather and one for its reduction.
  assert sum(c.runs for c in rings) >= 2 * 7
  # Those of narrow layers, queries and out, cannot hide all.
  assert sum(c.hidden * c.weight for c in rings) > 0.6 * sum(
    c.weight for c in rings
  )


@pytest.mark.parametrize(
  ("module", "flags", "message"),
  [
    (report, ["--model=bert"], "--model must be llama, vit or mixer, got 'be"),
    (report, ["--model=vit", "--model_axis=3"], "--model_axis must divide 8"),
    (report, [], "the following arguments are required: --model"),
    (bench_llama, ["--methods=ours"], "--methods must be some of unoverlap"),
    (bench_llama, ["--chip_options=a"], "--chip_options must be name=value"),
    (bench_llama, ["--data=three"], "argument --data: invalid int value"),
  ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(
  module, flags, message, capsys
):
  assert module.main(flags) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"{module.PROG}: ") and message in line


@pytest.mark.tpu_compiler
def test_by_batch_asks_for_a_sequence_a_device(capsys):
  pytest.importorskip("libtpu")
  assert bench_llama.main(["--slices=v5e:2x2", "--by_batch", "--batch=2"]) == 2
  assert (
    "--by_batch needs sequences for each of the 4 devices of v5e:2x2, "
    in (capsys.readouterr().err)
  )
