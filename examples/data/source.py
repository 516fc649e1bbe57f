"""What a source of examples is, and the kind whose images are files."""

import abc
from typing import Protocol

from examples.data.decode import Encoded


class Source(Protocol):
  """Examples in random access.

  An example is `{"image": [H, W, C], "label": int or list[int], "id": str}`;
  the image is uint8, or float32 in [-1, 1]. A source whose images should not be
  cropped and flipped brings its own `view(image, size, rng)`, which returns
  `[size, size, C]`: for training if `rng` is a generator, for evaluation if it
  is None.

  Attributes:
    classes: names of the labels.
  """

  classes: tuple[str, ...]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict: ...

  def name(self, index: int) -> str:
    """The id of an example, found without decoding its image."""


class EncodedSource(abc.ABC):
  """A source of JPEG and PNG files, each decoded when it is asked for."""

  classes: tuple[str, ...]

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def read(self, index: int) -> dict:
    """Returns an example whose image is the bytes of its file."""

  def name(self, index: int) -> str:
    return self.read(index)["id"]

  def encoded(self, index: int) -> dict:
    """Returns an example whose image is `Encoded`.

    Raises:
      BadImage: if it is not a JPEG or PNG file that can be converted.
    """
    example = self.read(index)
    return example | {"image": Encoded(example["image"], example["id"])}

  def __getitem__(self, index: int) -> dict:
    """Returns an example with its image in RGB.

    Raises:
      BadImage: if the image cannot be decoded.
    """
    example = self.encoded(index)
    return example | {"image": example["image"].decode(3)}
