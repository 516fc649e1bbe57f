"""What the gate decided, as data and as a table."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Modelled seconds of an op under one schedule, alone on the device."""

  schedule: str
  forward_s: float
  backward_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
  """What the gate chose for one op; `str` of it is a table.

  Attributes:
    op: the op.
    schedule: the schedule of (forward, backward).
    chunks: pieces that each direction of a ring cuts a chunk into.
    chip: the chip that was modelled, or the device kind that has no model.
    candidates: every schedule with its modelled times; empty without a model.
    reason: why, in a sentence.
  """

  op: str
  schedule: tuple[str, str]
  chunks: int
  chip: str
  candidates: tuple[Candidate, ...]
  reason: str

  def __str__(self) -> str:
    lines = [f"{self.op} on {self.chip}: {self.schedule}"]
    if self.candidates:
      lines.append(f"{'modelled ms':14s}{'forward':>10s}{'backward':>12s}")
    for c in self.candidates:
      cells = [
        f"{1e3 * s:.3f}{'*' if c.schedule == chosen else ' '}"
        for s, chosen in zip(
          (c.forward_s, c.backward_s), self.schedule, strict=True
        )
      ]
      lines.append(f"{c.schedule:14s}{cells[0]:>11s}{cells[1]:>12s}".rstrip())
    return "\n".join([*lines, self.reason])
