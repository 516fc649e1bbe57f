"""Coloured shapes with captions, drawn here: the same for the same index.

Some combinations of colour and shape are never in "shapes", the captions to
learn from, and make up "shapes:unseen": what is right about those was inferred.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
  "red": (220, 40, 40),
  "green": (40, 180, 60),
  "blue": (50, 80, 230),
  "yellow": (230, 220, 50),
  "purple": (150, 50, 190),
  "orange": (240, 140, 30),
  "white": (240, 240, 240),
  "cyan": (50, 210, 220),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
SIZES = {"small": (0.22, 0.27), "large": (0.36, 0.43)}  # radius over the side
ATTRIBUTES = (*COLOURS, *SHAPES, *SIZES)
PROMPTS = (
  "a {size} {colour} {shape}",
  "a picture of a {size} {colour} {shape}",
  "there is one {size} {shape}, it is {colour}",
  "this {shape} is {size} and {colour}",
)
_SIDE = 64  # pixels, drawn before they are shown smaller
_COUNTS = {"": {"train": 4096, "val": 512}}  # drawn in seconds
_FEWER = {"train": 1024, "val": 512}
_STREAMS = {"train": 1, "val": 2}


def is_unseen(colour: int, shape: int) -> bool:
  """Whether a combination is held out: every colour and every shape has some.

  Example:
    >>> sum(is_unseen(c, s) for c in range(8) for s in range(6))
    12
  """
  return (colour + shape) % 4 == 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
  """A source of images `[64, 64, 3]` uint8, each with one shape.

  Attributes:
    combinations: pairs (colour, shape) to draw, each as often as the others.
    stream: of random numbers; another one, other images.
    count: how many.
    by_attribute: labels are colour, shape and size; otherwise the combination.
  """

  combinations: tuple[tuple[int, int], ...]
  stream: int
  count: int
  by_attribute: bool

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the labels."""
    if self.by_attribute:
      return ATTRIBUTES
    return tuple(" ".join(names(*pair)) for pair in self.combinations)

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> dict:
    rng, colour, shape, size = self._drawn(index)
    label: int | list[int] = index % len(self.combinations)
    if self.by_attribute:
      label = [colour, len(COLOURS) + shape, len(COLOURS) + len(SHAPES) + size]
    return {
      "image": draw(rng, colour, shape, size),
      "label": label,
      "id": self.name(index),
    }

  def captions(self, index: int) -> tuple[str, ...]:
    """Sentences that say what an image shows, found without drawing it."""
    _, *what = self._drawn(index)
    return tuple(caption(prompt, *what) for prompt in PROMPTS)

  def _drawn(self, index):
    """A generator for the rest of an image, and what it shows."""
    if not 0 <= index < self.count:
      raise IndexError(f"index must be from 0 to {self.count - 1}, got {index}")
    rng = np.random.default_rng((self.stream, index))
    pair = self.combinations[index % len(self.combinations)]
    return rng, *pair, int(rng.integers(len(SIZES)))

  def name(self, index: int) -> str:
    """The id of an example, found without drawing it."""
    return f"shape {self.stream}/{index}"

  def view(
    self, image: np.ndarray, size: int, rng: np.random.Generator | None
  ) -> np.ndarray:
    """Shows an image at `size`; as every one is new, none is changed."""
    del rng
    shown = Image.fromarray(image).resize((size, size), Image.Resampling.BOX)
    return np.asarray(shown)


def open_shapes(which: str, split: str) -> Shapes:
  """Returns the drawn shapes.

  Args:
    which: "" for the combinations to learn from, labelled by attribute;
      "unseen" for the others, or "all", labelled by combination.
    split: "train" or "val", which share no image.

  Raises:
    ValueError: if `which` is none of these.
  """
  every = [(c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES))]
  kept = {
    "": [pair for pair in every if not is_unseen(*pair)],
    "unseen": [pair for pair in every if is_unseen(*pair)],
    "all": every,
  }
  if which not in kept:
    raise ValueError(
      f"shapes must be shapes, shapes:unseen or shapes:all, got {which!r}"
    )
  return Shapes(
    combinations=tuple(kept[which]),
    stream=_STREAMS[split],
    count=_COUNTS.get(which, _FEWER)[split],
    by_attribute=not which,
  )


def names(colour: int, shape: int) -> tuple[str, str]:
  """The words for a combination."""
  return tuple(COLOURS)[colour], SHAPES[shape]


def caption(prompt: str, colour: int, shape: int, size: int | None) -> str:
  """A prompt filled in; without a size the word is left out.

  Example:
    >>> caption(PROMPTS[0], 0, 4, 1)
    'a large red ring'
    >>> caption(PROMPTS[3], 0, 4, None)
    'this ring is red'
  """
  first, second = names(colour, shape)
  if size is None:
    prompt = prompt.replace("{size} and ", "").replace("{size} ", "")
  word = "" if size is None else tuple(SIZES)[size]
  return prompt.format(colour=first, shape=second, size=word)


def draw(
  rng: np.random.Generator, colour: int, shape: int, size: int
) -> np.ndarray:
  """Draws one shape somewhere, turned a little, on a dark noisy ground.

  Returns:
    `[64, 64, 3]` uint8.
  """
  ground = rng.uniform(0, 60, 3) + rng.normal(0, 12, (_SIDE, _SIDE, 3))
  image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
  radius = _SIDE * rng.uniform(*tuple(SIZES.values())[size])
  centre = rng.uniform(radius, _SIDE - radius, 2)
  angle = rng.uniform(-0.2, 0.2)
  paint = np.array(tuple(COLOURS.values())[colour]) + rng.integers(-15, 16, 3)
  fill = tuple(paint.clip(0, 255).tolist())
  pen = ImageDraw.Draw(image)
  if SHAPES[shape] in ("circle", "ring"):
    box = [*(centre - radius), *(centre + radius)]
    if SHAPES[shape] == "circle":
      pen.ellipse(box, fill=fill)
    else:
      pen.ellipse(box, outline=fill, width=max(2, round(radius * 0.4)))
    return np.asarray(image)
  points = _outline(SHAPES[shape]) * radius
  turn = np.array(
    [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
  )
  pen.polygon([tuple(p) for p in (points @ turn.T + centre)], fill=fill)
  return np.asarray(image)


def _outline(shape: str) -> np.ndarray:
  """Corners `[n, 2]` within the unit circle."""
  if shape == "cross":
    a, b = 0.95, 0.3
    corners = [(b, a), (b, b), (a, b), (a, -b), (b, -b), (b, -a)]
    return np.array(corners + [(-x, -y) for x, y in corners])
  count, inner = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (5, 0.4)}[
    shape
  ]
  start = math.pi / 4 if shape == "square" else -math.pi / 2
  turns = start + 2 * math.pi * np.arange(count) / count
  outer = np.stack([np.cos(turns), np.sin(turns)], axis=1)
  if inner == 1.0:
    return outer
  between = turns + math.pi / count
  dents = inner * np.stack([np.cos(between), np.sin(between)], axis=1)
  return np.stack([outer, dents], axis=1).reshape(-1, 2)
