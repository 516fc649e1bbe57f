"""How fast a folder of JPEGs becomes training batches, beside bare decoding.

    python -m examples.data.bench

Draws JPEGs of 341 x 256 pixels, photographs at a shorter side of 256, with the
1/f spectrum of photographs and some grain: at quality 95 they have 0.6 bytes a
pixel, where ImageNet's files have 0.8. Then takes turns between a loop that
does nothing but decode them to arrays with Pillow and the trainer's pipeline:
decode, random crop, 224 x 224, flip, batches of uint8, of which the devices
make float32. Both use the same number of threads; a turn is of 2048 images.
"""

import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from examples.data.feed import prefetched
from examples.data.folder import open_folder
from examples.data.pipeline import train_batches
from models.vit_config import get_config
from profiling import command

_SIZE = (341, 256)
_GRAIN = 9.0  # standard deviation, of 255 levels
_BATCH = 32
_IMAGES = 8192
_DRAWN = 256
_TURN = 2048  # images that each decodes before the other's turn


def draw(
  rng: np.random.Generator, size: tuple[int, int] = _SIZE
) -> Image.Image:
  """Draws an image with the spectrum of a photograph and a film's grain."""
  width, height = size
  total = np.zeros((height, width, 3), np.float32)
  cells = 4
  while cells <= height:
    octave = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    octave = Image.fromarray(octave).resize(size, Image.BICUBIC)
    # Equal contrast in each octave is a 1/f spectrum; a bit less as it is
    # finer, since interpolation leaves some of a coarse octave's to it.
    total += (np.asarray(octave, np.float32) - 127.5) / cells**0.9
    cells *= 2
  total = 120 + 55 * total / total.std()
  total += rng.normal(0, _GRAIN, (height, width, 1))
  return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def write_folder(root: Path, count: int, quality: int = 95) -> None:
  """Writes JPEGs of two classes: `count`, and one of each held out.

  Only the first 256 are drawn, which takes longer than reading them; the others
  are further names of these.
  """
  rng = np.random.default_rng(0)
  for name in ("train/a", "train/b", "val/a", "val/b"):
    (root / name).mkdir(parents=True, exist_ok=True)
  drawn = []
  for index in range(count):
    path = root / f"train/{'ab'[index % 2]}/{index}.jpg"
    if index < _DRAWN:
      draw(rng).save(path, quality=quality)
      drawn.append(path)
    else:
      os.link(drawn[index % _DRAWN], path)
  for name in "ab":
    os.link(drawn[0], root / f"val/{name}/0.jpg")


def measure(
  root: Path, *, threads: int, rounds: int
) -> tuple[list[float], list[float]]:
  """Returns the rates of the bare loop and of the pipeline, in each round.

  Args:
    root: a folder as of `write_folder`.
    threads: of both.
    rounds: in which the two take turns.

  Returns:
    Images a second, one number a round.
  """
  source = open_folder(str(root), "train")
  cfg = get_config("vit_b", classes=len(source.classes))
  batches = train_batches(source, cfg, batch=_BATCH, seed=0, levels=True)
  paths = [root / source.name(i) for i in range(min(_TURN, len(source)))]
  steps = len(paths) // _BATCH

  def decode(some):
    for path in some:
      with Image.open(path) as image:
        np.asarray(image.convert("RGB"))

  def bare():
    workers = [
      threading.Thread(target=decode, args=(paths[i::threads],))
      for i in range(threads)
    ]
    for worker in workers:
      worker.start()
    for worker in workers:
      worker.join()

  def pipeline(first=0):
    for _ in prefetched(batches, first, first + steps, threads=threads):
      pass

  def rate(body):
    start = time.perf_counter()
    body()
    return len(paths) / (time.perf_counter() - start)

  rate(bare), rate(pipeline)  # files into the page cache, threads' own state
  rates = [(rate(bare), rate(pipeline)) for _ in range(rounds)]
  return tuple(map(list, zip(*rates, strict=True)))


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""

  def body():
    parser = command.Parser("examples.data.bench", __doc__)
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cores, help="[cores]")
    parser.add_argument("--rounds", type=int, default=7, help="[7]")
    parser.add_argument("--quality", type=int, default=95, help="[95]")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
      root = Path(folder)
      write_folder(root, _IMAGES, given.quality)
      files = list(root.glob("train/*/*.jpg"))
      size = statistics.mean(p.stat().st_size for p in files)
      bare, ours = measure(root, threads=given.threads, rounds=given.rounds)
    ratios = [b / a for a, b in zip(bare, ours, strict=True)]
    print(
      f"{len(files)} JPEGs of {_SIZE[0]} x {_SIZE[1]}, {size / 1000:.1f} kB; "
      f"{given.threads} threads on {cores} cores, {platform.machine()}; "
      f"Pillow {PIL.__version__}; median of {given.rounds} rounds"
    )
    for name, rates in (("bare Pillow decode", bare), ("pipeline", ours)):
      print(
        f"{name:<20} {statistics.median(rates):7.0f} images/s "
        f"({min(rates):.0f} to {max(rates):.0f})"
      )
    print(
      f"{'ratio':<20} {statistics.median(ratios):7.2f} "
      f"({min(ratios):.2f} to {max(ratios):.2f})"
    )

  return command.run("examples.data.bench", body)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
