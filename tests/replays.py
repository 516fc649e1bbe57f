"""A small replay: a ring in a loop of 48 trips, on a square of TPU v4 chips."""

from hlo_text import BACK, LOOP_ENTRY, done, loop, module, product, start

from profiling import replay

SQUARE = [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]]
BODY = "\n".join(
  [
    start("s", "a"),
    start("t", "a", pairs=BACK),
    product("p", "a", "a", cycles=10_500)
    + ', metadata={op_name="jit(f)/ring/dot_general"}',
    done("d", "s"),
    done("e", "t"),
    product("y", "p", "d", cycles=105_000),
  ]
)
RING = module(LOOP_ENTRY, loop(BODY, trips=48))


def ring():
  return replay.replay(RING, devices=SQUARE, chip="v4")
