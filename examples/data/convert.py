"""Packs a folder of images into shards: one file for thousands of examples.

    python -m examples.data.convert --from=folder:PATH --to=records:OUT

Writes `OUT/train-00000-of-00003.array_record` and so on, with the image files
as they are, and `OUT/classes.json`, in that order: shards without it were
interrupted. `tfrecords:OUT` writes TFRecord files. Labels are those of the
folder, with its hierarchy. Every image is decoded once, so that those that are
broken are named now and left out. The order is drawn, for readers that go
through a shard from its start.
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tqdm
from array_record.python.array_record_module import ArrayRecordWriter

from examples.data import example_proto, tfrecord
from examples.data.decode import Encoded
from examples.data.skipped import BadImage, Skipped
from examples.data.source import EncodedSource
from examples.data.sources import SPLITS, open_source
from profiling import command

_SUFFIXES = {"records": "array_record", "tfrecords": "tfrecord"}


def convert(
  origin: str,
  target: str,
  *,
  per_shard: int = 5000,
  skipped: Skipped | None = None,
) -> dict[str, int]:
  """Writes all parts of a data set as shards.

  Args:
    origin: what to read, as for `open_source`; its images are files.
    target: "records:PATH" or "tfrecords:PATH", a folder that is empty or not
      there yet.
    per_shard: examples of one file, at most.
    skipped: counts images left out, and says when they are too many.

  Returns:
    How many examples each part has.

  Raises:
    ValueError: if `origin` cannot be read, or `target` not be written.
    UsageError: if more images than `skipped` allows are bad.
  """
  kind, _, path = target.partition(":")
  if kind not in _SUFFIXES or not path:
    raise ValueError(
      f"shards are records:PATH or tfrecords:PATH, got {target!r}"
    )
  if per_shard < 1:
    raise ValueError(f"a shard must hold at least 1 image, got {per_shard}")
  folder = Path(path)
  if folder.exists() and any(folder.iterdir()):
    raise ValueError(f"{folder} must be empty or not there yet")
  sources = {split: open_source(origin, split) for split in SPLITS}
  if not all(isinstance(s, EncodedSource) for s in sources.values()):
    raise ValueError(f"the images of {origin!r} are not files to be packed")
  folder.mkdir(parents=True, exist_ok=True)
  if skipped is None:
    skipped = Skipped()
  counts = {}
  for split, source in sources.items():
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    shards = -(-len(order) // per_shard)
    counts[split] = 0
    with tqdm.tqdm(
      total=len(order), desc=split, unit="image", disable=None
    ) as bar:
      for shard in range(shards):
        name = f"{split}-{shard:05d}-of-{shards:05d}.{_SUFFIXES[kind]}"
        with _WRITERS[kind](folder / name) as write:
          for index in order[shard::shards]:
            counts[split] += _copy(source, index, write, skipped)
            bar.update()
  (folder / "classes.json").write_text(
    json.dumps(sources["train"].classes, indent=0, ensure_ascii=False) + "\n"
  )
  return counts


def _copy(source, index, write, skipped) -> bool:
  example = source.read(index)
  try:
    Encoded(example["image"], example["id"]).decode(3)
  except BadImage as error:
    skipped.add(error)
    return False
  write(example_proto.encode(example))
  return True


@contextmanager
def _array_record(path: Path):
  # Random access wants a record a group, and images are compressed already.
  writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
  try:
    yield writer.write
  finally:
    writer.close()


@contextmanager
def _tfrecord(path: Path):
  with tfrecord.Writer(path) as writer:
    yield writer.write


_WRITERS = {"records": _array_record, "tfrecords": _tfrecord}


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""

  def body():
    parser = command.Parser("examples.data.convert", __doc__)
    parser.add_argument(
      "--from", dest="origin", required=True, help="folder:PATH"
    )
    parser.add_argument(
      "--to", required=True, help="records:PATH or tfrecords:PATH"
    )
    parser.add_argument(
      "--per-shard", type=int, default=5000, help="examples of one file [5000]"
    )
    parser.add_argument(
      "--max-bad", type=int, default=10, help="images that may be broken [10]"
    )
    given = parser.parse_args(argv)
    counts = convert(
      given.origin,
      given.to,
      per_shard=given.per_shard,
      skipped=Skipped(given.max_bad),
    )
    said = " and ".join(f"{n} {split}" for split, n in counts.items())
    print(f"{given.to}: {said} examples")

  return command.run("examples.data.convert", body)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
