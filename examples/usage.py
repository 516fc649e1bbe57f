"""What a command says when it cannot do what it was asked: one line."""

import contextlib


class UsageError(ValueError):
  """A request that cannot be carried out; its message names the flag."""


@contextlib.contextmanager
def blame(flags: str):
  """Turns an error of the body into a `UsageError` that starts with `flags`.

  Args:
    flags: the flags to put right, as the user would type them.

  Raises:
    UsageError: if the body raises ValueError, NotImplementedError or OSError.

  Example:
    >>> with blame("--steps=ten"):
    ...   int("ten")
    Traceback (most recent call last):
    examples.usage.UsageError: --steps=ten: invalid literal for int() ...
  """
  try:
    yield
  except OSError as error:
    reason = f"{error.strerror}: {error.filename}"
    raise UsageError(f"{flags}: {reason}") from error
  except (ValueError, NotImplementedError) as error:
    raise UsageError(f"{flags}: {error}") from error
