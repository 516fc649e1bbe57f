"""Configs from files and the command line: keys checked, values converted."""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_WORDS = {int: "a whole number", float: "a number", str: "text"}


def build(cls: type, fields: Mapping[str, Any]) -> Any:
  """Returns a dataclass from what JSON or TOML make of one.

  Nested dataclasses are mappings, tuples are lists.

  Args:
    cls: a dataclass whose fields are numbers, text, bools, literals, tuples,
      dataclasses, or unions of them.
    fields: by name; fields that are missing get their defaults.

  Raises:
    ValueError: if a key is unknown, naming the nearest that there is; if a
      value is not what the field holds; or from the dataclass itself.

  Example:
    >>> from models.optimizer import OptimizerConfig
    >>> build(OptimizerConfig, {"peak_lr": 1}).peak_lr
    1.0
    >>> build(OptimizerConfig, {"peek_lr": 1})
    Traceback (most recent call last):
    ValueError: no key 'peek_lr'; did you mean 'peak_lr'?
  """
  _check_keys(cls, fields)
  return _dataclass(cls, fields, "")


def merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict:
  """Returns `fields` with `changes` over it, mapping by mapping."""
  both = dict(fields)
  for name, value in changes.items():
    old = both.get(name)
    nested = isinstance(old, Mapping) and isinstance(value, Mapping)
    both[name] = merged(old, value) if nested else value
  return both


def read_file(path: Path) -> dict:
  """Returns the fields in a `.toml` or `.json` file.

  Raises:
    ValueError: if it is neither or cannot be read as one.
    OSError: if it cannot be read at all.
  """
  parsers = {".toml": tomllib.loads, ".json": json.loads}
  if path.suffix not in parsers:
    raise ValueError(f"must end in .toml or .json, got {path.suffix!r}")
  fields = parsers[path.suffix](path.read_text())
  if not isinstance(fields, dict):
    raise ValueError(f"must hold keys and values, got {fields!r}")
  return fields


def assignment(text: str) -> dict:
  """Returns the fields that `key.key=value` sets; a value is JSON or text.

  Raises:
    ValueError: if there is no key or no "=".

  Example:
    >>> assignment("optimizer.peak_lr=1e-3")
    {'optimizer': {'peak_lr': 0.001}}
    >>> assignment("data=folder:photos")
    {'data': 'folder:photos'}
  """
  key, equals, value = text.partition("=")
  if not key or not equals:
    raise ValueError("must be key=value")
  fields = _parsed(value)
  for name in reversed(key.split(".")):
    fields = {name: fields}
  return fields


def _parsed(value: str) -> Any:
  try:
    return json.loads(value)
  except ValueError:
    return value


def _check_keys(cls, fields):
  known = list(_keys(cls))
  for key in _given(cls, fields):
    if key not in known:
      last = key.split(".")[-1]
      # A key of the right name at another place is nearer than any other.
      near = [k for k in known if k.split(".")[-1] == last]
      near += difflib.get_close_matches(key, known, n=1, cutoff=0)
      raise ValueError(f"no key {key!r}; did you mean {near[0]!r}?")


def _keys(cls, prefix="") -> Iterator[str]:
  """Every key of a dataclass and of those in it, with dots."""
  for name, kind in typing.get_type_hints(cls).items():
    yield prefix + name
    if dataclasses.is_dataclass(kind):
      yield from _keys(kind, f"{prefix}{name}.")


def _given(cls, fields, prefix="") -> Iterator[str]:
  kinds = typing.get_type_hints(cls)
  for name, value in fields.items():
    yield prefix + name
    kind = kinds.get(name)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
      yield from _given(kind, value, f"{prefix}{name}.")


def _dataclass(cls, fields, where):
  kinds = typing.get_type_hints(cls)
  unknown = [name for name in fields if name not in kinds]
  if unknown:  # in a list of dataclasses, which `_check_keys` does not enter
    (near,) = difflib.get_close_matches(unknown[0], list(kinds), 1, cutoff=0)
    raise ValueError(f"no key {where}{unknown[0]!r}; did you mean {near!r}?")
  needed = [
    f.name
    for f in dataclasses.fields(cls)
    if f.default is f.default_factory is dataclasses.MISSING
  ]
  for name in needed:
    if name not in fields:
      raise ValueError(f"key {where + name!r} is missing")
  return cls(
    **{
      name: _converted(kinds[name], value, where + name)
      for name, value in fields.items()
    }
  )


def _converted(kind, value, where):
  if dataclasses.is_dataclass(kind):
    if not isinstance(value, Mapping):
      raise ValueError(f"{where} must hold keys and values, got {value!r}")
    return _dataclass(kind, value, f"{where}.")
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if origin in (types.UnionType, typing.Union):
    return _one_of(args, value, where)
  if origin is typing.Literal:
    if value not in args:
      names = ", ".join(map(str, args))
      raise ValueError(f"{where} must be one of {names}, got {value!r}")
    return value
  if origin is tuple:
    return _tuple(args, value, where)
  if kind is int and isinstance(value, float) and value.is_integer():
    value = int(value)  # as 1e4
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    word = _WORDS.get(kind, "true or false")
    raise ValueError(f"{where} must be {word}, got {value!r}")
  return value


def _one_of(kinds, value, where):
  if value is None and types.NoneType in kinds:
    return None
  errors = []
  for kind in kinds:
    if kind is not types.NoneType:
      try:
        return _converted(kind, value, where)
      except ValueError as error:
        errors.append(error)
  raise errors[0]


def _tuple(args, value, where):
  if isinstance(value, str):
    value = [_parsed(part) for part in value.split(",")]
  if not isinstance(value, list | tuple):
    raise ValueError(f"{where} must be a list, got {value!r}")
  kinds = [args[0]] * len(value) if args[-1] is ... else args
  if len(value) != len(kinds):
    raise ValueError(f"{where} must have {len(kinds)} values, got {value!r}")
  return tuple(
    _converted(kind, part, f"{where}[{i}]")
    for i, (kind, part) in enumerate(zip(kinds, value, strict=True))
  )
