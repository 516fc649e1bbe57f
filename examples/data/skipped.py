"""Images that cannot be used: named once each, counted, too many refused."""

import logging
import threading

from examples.usage import UsageError

_LOG = logging.getLogger(__name__)


class BadImage(ValueError):
  """An image that cannot be used; its message starts with its name.

  Attributes:
    name: the image's id, or the path of its file.
  """

  def __init__(self, name: str, reason: str):
    super().__init__(f"{name}: {reason}")
    self.name = name


class Skipped:
  """What this process has left out so far.

  The limit is on different images, so that one that comes again in the next
  epoch counts once. A process counts what it reads itself, from its start on.

  Attributes:
    max_bad: how many may be left out.
    reasons: the message of each, by name.

  Example:
    >>> skipped = Skipped(max_bad=1)
    >>> skipped.add(BadImage("cat/1.jpg", "it is truncated"))
    >>> skipped.add(BadImage("cat/2.jpg", "it is empty"))
    Traceback (most recent call last):
    examples.usage.UsageError: more than max_bad=1 images cannot be used: ...
  """

  def __init__(self, max_bad: int = 10):
    self.max_bad = max_bad
    self.reasons: dict[str, str] = {}
    self._lock = threading.Lock()

  def add(self, error: BadImage) -> None:
    """Counts an image and logs its name, the first time that it comes.

    Raises:
      UsageError: if it is one more than `max_bad`.
    """
    with self._lock:
      if error.name in self.reasons:
        return
      self.reasons[error.name] = str(error)
      count = len(self.reasons)
    if count > self.max_bad:
      raise UsageError(
        f"more than max_bad={self.max_bad} images cannot be used: {error}"
      )
    _LOG.warning(
      "skipped image %d of at most %d: %s", count, self.max_bad, error
    )
