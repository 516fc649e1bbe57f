"""Images with captions, in the layouts that they are published in."""

import json
from pathlib import Path
from typing import Protocol

from examples.data.shapes import open_shapes
from examples.data.source import EncodedSource, Source

KINDS = ("shapes", "coco", "flickr30k", "jsonl")


class Captioned(Source, Protocol):
  """A source whose images have one or more captions each."""

  def captions(self, index: int) -> tuple[str, ...]:
    """The captions of an image, found without reading it."""


class CaptionedFiles(EncodedSource):
  """Files with captions; they have no labels.

  Attributes:
    classes: one, which no image has.
  """

  classes = ("none",)

  def __init__(self, root: Path, found: list[tuple[str, tuple[str, ...]]]):
    """Args:
    root: the folder that the files lie in.
    found: of each its path and its captions.
    """
    self._root, self._found = root, found

  def __len__(self) -> int:
    return len(self._found)

  def read(self, index: int) -> dict:
    name = self.name(index)
    data = (self._root / name).read_bytes()
    return {"image": data, "label": [], "id": name}

  def name(self, index: int) -> str:
    return self._found[index][0]

  def captions(self, index: int) -> tuple[str, ...]:
    return self._found[index][1]


def open_captions(spec: str, split: str) -> Captioned:
  """Returns one part of a captioned data set.

      shapes        drawn ones; also shapes:unseen, shapes:all
      coco:PATH     train2017/ and val2017/, with annotations/captions_*.json
      flickr30k:PATH  flickr30k-images/ and Karpathy's dataset_flickr30k.json
      jsonl:PATH    train.jsonl and val.jsonl of {"image": ..., "caption": ...}

  Args:
    spec: the kind and where it is.
    split: "train" or "val"; Flickr30k's "val" is Karpathy's test split.

  Raises:
    NotImplementedError: if the kind is none of these.
    ValueError: if there is something wrong with what it names.
  """
  kind, _, path = spec.partition(":")
  if kind == "shapes":
    return open_shapes(path, split)
  readers = {"coco": _coco, "flickr30k": _flickr, "jsonl": _jsonl}
  if kind not in readers or not path:
    raise NotImplementedError(
      f"captions of {spec!r} cannot be read, only shapes and "
      f"{', '.join(f'{k}:PATH' for k in readers)}"
    )
  source = readers[kind](Path(path), split)
  if not len(source):
    raise ValueError(f"{path} has no captioned image for {split}")
  first = Path(path) / source._root / source.name(0)
  if not first.is_file():
    raise ValueError(f"{spec} must have its images, but {first} is not there")
  return source


def _coco(root: Path, split: str) -> CaptionedFiles:
  listing = root / "annotations" / f"captions_{split}2017.json"
  found = _read(listing, "COCO captions (2017)")
  texts: dict[int, list[str]] = {}
  for note in found["annotations"]:
    texts.setdefault(note["image_id"], []).append(note["caption"])
  return CaptionedFiles(
    root / f"{split}2017",
    [
      (image["file_name"], tuple(texts[image["id"]]))
      for image in found["images"]
      if image["id"] in texts
    ],
  )


def _flickr(root: Path, split: str) -> CaptionedFiles:
  found = _read(root / "dataset_flickr30k.json", "Flickr30k (Karpathy's split)")
  wanted = {"train": "train", "val": "test"}[split]
  return CaptionedFiles(
    root / "flickr30k-images",
    [
      (image["filename"], tuple(s["raw"] for s in image["sentences"]))
      for image in found["images"]
      if image["split"] == wanted
    ],
  )


def _jsonl(root: Path, split: str) -> CaptionedFiles:
  path = root / f"{split}.jsonl"
  if not path.is_file():
    raise ValueError(f"captions must be in {path}, which is not there")
  texts: dict[str, list[str]] = {}
  for number, line in enumerate(path.read_text().splitlines(), 1):
    try:
      pair = json.loads(line)
      texts.setdefault(pair["image"], []).append(pair["caption"])
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f'{path}, line {number}: must be {{"image": ..., "caption": ...}}'
      ) from error
  return CaptionedFiles(root, [(k, tuple(v)) for k, v in texts.items()])


def _read(path: Path, what: str) -> dict:
  if not path.is_file():
    raise ValueError(f"{what} must have {path}, which is not there")
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is not JSON") from error
