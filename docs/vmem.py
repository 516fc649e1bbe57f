r"""What products cost by how much VMEM the compiler may give one of them.

    python docs/vmem.py v6e 32768,6144,12288 32768,65536,98304

prints milliseconds (simulated: the TPU compiler's own cycles) of the five
products of an MLP and its gradients on one chip, with GELU, for tokens, width
and features of one device: without the option, then with each limit in KiB.
"""

import sys
import time

from profiling import platform

if __name__ == "__main__":  # before jax is imported
  platform.compile_only()

import jax
import jax.numpy as jnp

from collective_mm import hlo
from collective_mm.chips import timed_chip
from profiling import peaks, topology

OPTION = "xla_tpu_scoped_vmem_limit_kib"


def passes(x, w_in, w_out, bias, kept, dy):
  """The MLP, and the gradients from what it kept before the GELU."""

  def dot(a, b, dims):
    contract = ((dims[:1], dims[1:]), ((), ()))
    y = jax.lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)
    return y.astype(a.dtype)

  def gelu(y):
    return jax.nn.gelu(y.astype(jnp.float32) + bias).astype(y.dtype)

  y = dot(x, w_in, (1, 0))
  (dkept,) = jax.vjp(gelu, kept)[1](dot(dy, w_out, (1, 1)))
  dw, dx = dot(x, dkept, (0, 0)), dot(dkept, w_in, (1, 1))
  hidden = gelu(y)
  return y, hidden, dot(hidden, w_out, (1, 0)), dkept, dw, dx


def seconds(chip: str, shape: tuple[int, int, int], limit: str | None) -> float:
  """Of all products of `passes`, by the compiler's cycles."""
  tokens, width, features = shape
  link = timed_chip(chip)
  device = topology.devices(f"{chip}:{'x'.join('1' * link.torus_dims)}")[0]

  def array(*shape, dtype=jnp.bfloat16):
    place = jax.sharding.SingleDeviceSharding(device)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  lowered = jax.jit(passes).lower(
    array(tokens, width),
    array(width, features),
    array(features, width),
    array(features, dtype=jnp.float32),
    array(tokens, features),
    array(tokens, width),
  )
  compiled = lowered.compile(compiler_options={OPTION: limit} if limit else {})
  lines = hlo.parse(compiled.as_text()).instructions.values()
  cycles = sum(line.cycles or 0 for line in lines)
  return cycles / peaks.CHIPS[link.kind].clock_hz


def main(chip: str, shape: str, limits: str) -> None:
  sizes = tuple(map(int, shape.split(",")))
  peak = peaks.CHIPS[timed_chip(chip).kind].bf16_flops_per_chip
  least = 10 * sizes[0] * sizes[1] * sizes[2] / peak
  print(f"at the peak: {1e3 * least:.1f} ms")
  for limit in (None, *limits.split(",")):
    start = time.process_time()
    found = seconds(chip, sizes, limit)
    spent = time.process_time() - start
    print(f"{limit}: {1e3 * found:.1f} ms, compiled in {spent:.0f} CPU s")


if __name__ == "__main__":
  main(*sys.argv[1:])
