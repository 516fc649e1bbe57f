import functools

import jax
import pytest
from layer_cases import (
  Explicit,
  assert_equal,
  jit,
  mesh_of,
  whole,
  with_gradients,
)

from collective_mm import global_view, make_mesh
from profiling import topology

P = jax.P


def test_kernels_of_several_widths_biases_and_an_epilogue():
  x, kernels = whole(2, 4, 6), (whole(6, 8, seed=1), whole(6, 8, seed=2))
  biases = whole(8, seed=3), whole(8, seed=4)

  def epilogue(y, z):
    return {"product": y * z, "sum": y + z}

  def dense(x, kernels, biases):
    return epilogue(*(x @ k + b for k, b in zip(kernels, biases, strict=True)))

  f = functools.partial(
    global_view.column, mesh=mesh_of(), epilogue=epilogue, gather_dim=1
  )
  assert_equal(
    jit(with_gradients(f))(x, kernels, biases),
    with_gradients(dense)(x, kernels, biases),
  )
  wide = (*kernels, whole(6, 4, seed=5))
  ys = jit(functools.partial(global_view.column, mesh=mesh_of()))(x, wide)
  assert_equal(ys, tuple(x @ k for k in wide))


@pytest.mark.parametrize("scatter_dim", [0, -1])
def test_the_mesh_that_is_set(scatter_dim):
  x, kernel, bias = whole(4, 3, 8), whole(8, 8, seed=1), whole(8, seed=2)
  f = functools.partial(global_view.row, scatter_dim=scatter_dim)
  with jax.set_mesh(mesh_of()):
    got = jit(with_gradients(f))(x, kernel, bias)
    # The data axis is taken to shard dim 0 where that does not travel.
    spec = ["data" if scatter_dim else None, None, None]
    spec[scatter_dim] = "model"
    assert got[0].sharding.is_equivalent_to(
      jax.NamedSharding(mesh_of(), P(*spec)), 3
    )
  dense = with_gradients(lambda x, w, b: x @ w + b)
  assert_equal(got, dense(x, kernel, bias))


def test_explicit_arguments_must_be_sharded():
  x, kernel = whole(4, 8), whole(8, 8)
  with jax.set_mesh(mesh_of(Explicit)):
    rows, columns = jax.reshard(x, P("model")), jax.reshard(x, P(None, "model"))
    with pytest.raises(
      ValueError,
      match=r"x must be sharded over 'model', which is Explicit, in dim 0 "
      r"alone: use jax.reshard before, got float32\[4,8@model\]",
    ):
      global_view.column(columns, (kernel,))
    with pytest.raises(ValueError, match=r"^kernel must .* in dim 1 alone: "):
      global_view.column(rows, (kernel,))
    with pytest.raises(ValueError, match=r"^kernel must .* in dim 0 alone: "):
      global_view.row(columns, kernel)


def test_the_axis_must_not_be_manual_where_there_is_a_mesh():
  mesh, x = mesh_of(), whole(4, 8)
  f = functools.partial(global_view.row, kernel=whole(8, 8), mesh=mesh)
  with pytest.raises(
    ValueError,
    match=r"mesh must be None inside a jax.shard_map over 'model', where "
    r"arrays are those of one device \(manual here: \('data', 'model'\)\), "
    r"got a mesh of {'data': 2, 'model': 4}",
  ):
    jax.eval_shape(jax.shard_map(f, mesh=mesh, in_specs=P(), out_specs=P()), x)


@pytest.mark.parametrize("shape", [(2, 8, 6), (3, 8, 6)])
def test_between_column_and_row_nothing_is_moved(shape):
  # Rows are merged where no axis shards them but those that are open: what is
  # gathered has its chunks behind each other, and goes back so.
  def f(x, kernel, back):
    (h,) = global_view.column(x, (kernel,), mesh=mesh_of(), gather_dim=1)
    return global_view.row(h, back, mesh=mesh_of(), scatter_dim=1)

  x, kernel, back = whole(*shape), whole(6, 8, seed=1), whole(8, 6, seed=2)
  dense = with_gradients(lambda x, w, v: x @ w @ v)
  assert_equal(jit(with_gradients(f))(x, kernel, back), dense(x, kernel, back))
  text = str(jax.make_jaxpr(with_gradients(f))(x, kernel, back))
  # One sequence of eight tokens on a device, two of eight features.
  assert ("f32[8,2]" in text) == (shape[0] % 2 == 0)


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  ("schedule", "column", "row"),
  [
    # Forward the gate's rings, of the column one way. Backward one gather each,
    # and a ring for the column's `dx`.
    ("auto", (3 + 6, 1), (6, 1)),
    ("two_way", (6 + 6 + 6, 0), (6 + 6, 0)),
  ],
)
def test_backward_leaves_gathers_to_the_compiler(schedule, column, row):
  """Lowered for four v5e chips, at sizes where rings pay; not compiled."""
  pytest.importorskip("libtpu")
  devices = topology.devices("v5e:2x2")
  mesh = make_mesh(data=1, model=4, devices=devices)

  def collectives(layer, x, x_spec, kernel, kernel_spec):
    arguments = [
      jax.ShapeDtypeStruct(
        shape, "bfloat16", sharding=jax.NamedSharding(mesh, spec)
      )
      for shape, spec in ((x, x_spec), (kernel, kernel_spec))
    ]
    text = jax.jit(with_gradients(layer)).lower(*arguments).as_text()
    kinds = "collective_permute", "all_gather"
    return tuple(text.count(f'stablehlo.{kind}"') for kind in kinds)

  where = {"mesh": mesh, "schedule": schedule}
  assert column == collectives(
    lambda x, w: global_view.column(x, (w,), **where)[0],
    (8, 2048, 4096), P(None, "model"), (4096, 28672), P(None, "model"),
  )  # fmt: skip
  assert row == collectives(
    lambda x, w: global_view.row(x, w, **where),
    (8, 2048, 14336), P(None, None, "model"), (14336, 4096), P("model"),
  )  # fmt: skip
