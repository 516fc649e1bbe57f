"""What `prefetch_scan` says of trees and options that do not fit."""

import jax
import numpy as np
import pytest
from stack_cases import (
  DENSE_SPECS,
  LENGTH,
  WIDTH,
  dense,
  dense_params,
  dense_scan,
  on_data,
  some_x,
)

from collective_mm import make_mesh, prefetch_scan

P = jax.P


def run_with(params=None, specs=None, x=None, axis_name="data", **options):
  params = dense_params() if params is None else params
  specs = DENSE_SPECS if specs is None else specs

  def run(params, x):
    return prefetch_scan(
      dense, x, params, specs=specs, axis_name=axis_name, **options
    )

  return jax.eval_shape(
    jax.shard_map(
      run,
      mesh=make_mesh(data=2, model=4),
      in_specs=P(),
      out_specs=P(),
      check_vma=False,
    ),
    params,
    some_x() if x is None else x,
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"params": dense_params() | {"w": np.ones((4, 8, 8))}},
      r"stacked_params\['w'\] must have a leading dim of 3 layers as "
      r"stacked_params\['b'\] has, got shape \(4, 8, 8\)",
    ),
    (
      {"params": dense_params() | {"b": np.float32(1)}},
      r"stacked_params\['b'\] must have a leading dim of at least one layer, "
      r"got shape \(\)",
    ),
    (
      {"params": dense_params(length=0)},
      r"at least one layer, got shape \(0, 16\)",
    ),
    ({"params": {}, "specs": {}}, "at least one leaf, got none"),
    (
      {"xs": {"rate": np.ones(4)}},
      r"xs\['rate'\] must have a leading dim of 3 layers",
    ),
    (
      {"specs": {"w": P(), "b": P(), "c": P()}},
      r"stacked_params\['scale'\] is not in specs",
    ),
    (
      {"specs": DENSE_SPECS | {"v": P()}},
      r"specs\['v'\] is not in stacked_params",
    ),
    (
      {"specs": DENSE_SPECS | {"w": None}},
      r"specs\['w'\] must be a PartitionSpec of at most 3 dims, got None",
    ),
    (
      {"specs": DENSE_SPECS | {"b": P(None, None, "data")}},
      r"specs\['b'\] must be a PartitionSpec of at most 2 dims",
    ),
    (
      {"specs": DENSE_SPECS | {"w": P("data")}},
      r"specs\['w'\] must name data in one dim after that of layers",
    ),
    (
      {"specs": DENSE_SPECS | {"w": P(None, ("data", "model"))}},
      r"specs\['w'\] must name data in one dim .* last of its axes there",
    ),
    (
      {
        "specs": DENSE_SPECS | {"w": P(None, "model"), "b": P(), "c": P()},
        "axis_name": ("data", "model"),
      },
      r"specs\['w'\] must name data, model in one dim",
    ),
    ({"axis_name": "rows"}, "axis_name must be an axis of the jax.shard_map"),
    ({"distance": -1}, "distance must be a whole number from 0, got -1"),
    ({"distance": 1.0}, "distance must be a whole number from 0, got 1.0"),
    ({"rings": (2, 2)}, r"product is that of axis 'data', 2, got \(2, 2\)"),
    ({"rings": (-1, -2)}, "rings must be sizes"),
    ({"backend": "fast"}, "backend must be one of auto, native, ring"),
    ({"backend": ("ring",)}, r"or a pair \(gathers, reductions\)"),
    (
      {
        "hold_across_microbatches": True,
        "x": {"a": np.ones((2, 3)), "b": np.ones(3)},
      },
      r"carry\['b'\] must have a leading dim of 2 microbatches, got shape "
      r"\(3,\)",
    ),
    (
      {"hold_across_microbatches": True, "x": np.float32(1)},
      "carry must have a leading dim of at least one microbatches",
    ),
  ],
)
def test_says_what_does_not_fit(changes, message):
  with pytest.raises(ValueError, match=message):
    run_with(**changes)


def test_an_axis_that_does_not_divide_a_leaf_is_named():
  # jax.shard_map's own message: inside, a shard is whatever came.
  params = dense_params() | {"w": np.ones((LENGTH, WIDTH + 1, WIDTH))}
  with pytest.raises(ValueError, match=r"not evenly divisible[\s\S]*\['w'\]"):
    on_data(dense_scan)(params, some_x())
