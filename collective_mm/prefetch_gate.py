"""Which backend brings a stack's weights and takes its gradients, and why.

A layer is taken to be longer than what travels beside it, so that a backend
costs what cannot hide: the whole transfer where the compiler's collective
blocks, passes through the device's memory where permutes do the work.
"""

import dataclasses
import functools
import math
from typing import Any

from collective_mm.chips import find_chip
from collective_mm.gate import fuses_gathers, offloads_gathers

BACKENDS = ("auto", "native", "ring")

# Times that the bytes of the gathered weights go through the memory of a device
# that puts pieces into place, in forward: what replays of a stack of MLPs on
# v4:2x2x2 have more with rings than with the compiler's gathers, and twice what
# they have in backward (`tests/test_prefetch_tpu.py` has the stack).
_COPIES = 11
# Times that the bytes of the gradients do so when shares are cut out (read and
# written) and added (read, and written in the wider dtype of sums).
_SUMS = 5


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Modelled seconds that one layer waits or works for a backend."""

  backend: str
  gather_s: float
  reduce_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backends:
  """What the gate chose for one stack; `str` of it is a table.

  Attributes:
    gathers: "native" or "ring".
    reductions: "native" or "ring".
    candidates: both with their modelled times; empty without a model.
    reason: why, in a sentence.
  """

  gathers: str
  reductions: str
  candidates: tuple[Candidate, ...]
  reason: str

  def __str__(self) -> str:
    lines = [f"prefetch_scan: gathers {self.gathers}, reductions "]
    lines[0] += self.reductions
    if self.candidates:
      lines.append(f"{'modelled ms':14s}{'gather':>10s}{'reduction':>12s}")
    for c in self.candidates:
      cells = [
        f"{1e3 * s:.3f}{'*' if c.backend == chosen else ' '}"
        for s, chosen in (
          (c.gather_s, self.gathers),
          (c.reduce_s, self.reductions),
        )
      ]
      lines.append(f"{c.backend:14s}{cells[0]:>11s}{cells[1]:>12s}".rstrip())
    return "\n".join([*lines, self.reason])


@functools.lru_cache(maxsize=1024)
def explain(
  *,
  nbytes: int,
  rings: tuple[int, ...],
  chip: str | None,
  sums_per_byte: float = 2.0,
  libtpu: str | None = None,
) -> Backends:
  """Returns what `backend="auto"` stands for, and its reasons.

  With `b` bytes of one layer's gathered weights over `t` devices and `k` links
  of bandwidth `B`, one for a ring of two and two for a longer one,

      native gather      0 if asynchronous, else b (t - 1) / t / (k B)
      ring gather        11 b / (HBM bandwidth)
      native reduction   sums_per_byte b (t - 1) / t / (k B)
      ring reduction     5 b / (HBM bandwidth)

  It takes the program to be compiled with
  `gate.compiler_options(chip, prefetch=True)`.

  Args:
    nbytes: `b`, of those that the axis cuts.
    rings: sizes of the rings that the axis is made of.
    chip: a chip's short name or `device_kind`; None for another device.
    sums_per_byte: bytes of a sum for each byte of a gathered weight: 2 for
      float32 sums of bfloat16.
    libtpu: the compiler's version; that of the installed one if not given.

  Example:
    >>> print(explain(nbytes=453_000_000, rings=(4, 4, 2), chip="v4",
    ...               libtpu="0.0.42"))
    prefetch_scan: gathers native, reductions ring
    modelled ms       gather   reduction
    native             0.000*      3.914
    ring               4.051       1.841*
    native gathers: they are asynchronous; ring reductions: 1.84 ms of passes \
against 3.91 ms that block
  """
  found = find_chip(chip or "")
  size = math.prod(rings)
  is_tpu = found is not None or (chip or "").startswith("TPU")
  if size == 1 or not is_tpu:
    what = "an axis of one device sends nothing"
    if size > 1:
      what = "not a TPU: the compiler's own collectives"
    return Backends(
      gathers="native", reductions="native", candidates=(), reason=what
    )
  if found is None or found.permute_bandwidth is None:
    return Backends(
      gathers="native",
      reductions="ring",
      candidates=(),
      reason=f"no link model for {chip!r}; a TPU has no asynchronous "
      "reduce-scatter",
    )
  links = sum(2 if n > 2 else 1 for n in rings if n > 1)
  latency = found.permute_latency_s * sum(n > 1 for n in rings)
  send = nbytes * (size - 1) / size / (links * found.permute_bandwidth)
  blocks = not (
    fuses_gathers(found.name, libtpu) or offloads_gathers(found.name)
  )
  once = nbytes / found.hbm_bandwidth
  native = Candidate(
    "native",
    latency + send if blocks else 0.0,
    latency + sums_per_byte * send,
  )
  ring = Candidate("ring", _COPIES * once, _SUMS * once)
  gathers = "ring" if ring.gather_s < native.gather_s else "native"
  reductions = "ring" if ring.reduce_s < native.reduce_s else "native"
  if not blocks:
    why = "native gathers: they are asynchronous"
  else:
    why = f"{gathers} gathers: {_ms(ring.gather_s)} of copies against "
    why += f"{_ms(native.gather_s)} that block"
  why += f"; {reductions} reductions: {_ms(ring.reduce_s)} of passes against "
  why += f"{_ms(native.reduce_s)} that block"
  return Backends(
    gathers=gathers,
    reductions=reductions,
    candidates=(native, ring),
    reason=why,
  )


def backends(backend: str | tuple[str, str], **stack: Any) -> tuple[str, str]:
  """The backends of gathers and of reductions that `backend` stands for.

  Args:
    backend: as in `prefetch_scan`.
    **stack: what `explain` takes.

  Raises:
    ValueError: if there is no such backend.
  """
  pair = backend if isinstance(backend, tuple) else (backend, backend)
  if len(pair) != 2 or any(b not in BACKENDS for b in pair):
    raise ValueError(
      f"backend must be one of {', '.join(BACKENDS)}, or a pair (gathers, "
      f"reductions) of them, got {backend!r}"
    )
  if "auto" not in pair:
    return pair
  best = explain(**stack)
  return tuple(
    b if given == "auto" else given
    for given, b in zip(pair, (best.gathers, best.reductions), strict=True)
  )


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:.3g} ms"
