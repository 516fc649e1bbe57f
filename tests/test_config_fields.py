import dataclasses
import json

import pytest

from examples.config_fields import assignment, build, merged, read_file
from examples.presets import PRESETS, changed, from_json
from models.param_groups import ParamGroup

DIGITS = PRESETS["digits"]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("bath=8", "no key 'bath'; did you mean 'batch'?"),
    ("peak_lr=1", "no key 'peak_lr'; did you mean 'optimizer.peak_lr'?"),
    (
      "optimizer.peek_lr=1",
      "no key 'optimizer.peek_lr'; did you mean 'optimizer.peak_lr'?",
    ),
    ("batch.size=8", "batch must be a whole number, got {'size': 8}"),
    ("batch=eight", "batch must be a whole number, got 'eight'"),
    ("batch=8.5", "batch must be a whole number, got 8.5"),
    ("batch=true", "batch must be a whole number, got True"),
    ("batch=0", "batch must be at least 1, got 0"),
    ("remat=1", "remat must be true or false, got 1"),
    ("data=7", "data must be text, got 7"),
    ("los=softmax", "no key 'los'; did you mean 'loss'?"),
    ("loss=softmx", "loss must be one of sigmoid, softmax, got 'softmx'"),
    ("layout=rows", "layout must be one of tokens, features, got 'rows'"),
    (
      "schedule=best",
      "schedule must be one of auto, unoverlapped, async, one_way, two_way, "
      "got 'best'",
    ),
    ("mesh=2,4,1", "mesh must have 2 values, got [2, 4, 1]"),
    ("mesh=2,x", "mesh[1] must be a whole number, got 'x'"),
    ("model=3", "model must hold keys and values, got 3"),
    ("optimizer.peak_lr=0", "peak_lr must be above 0, got 0.0"),
    ("ema_decay=1", "ema_decay must be in (0, 1), got 1.0"),
    ("checkpoint_minutes=0", "checkpoint_minutes must be above 0, got 0.0"),
    ("skip_nonfinite=-1", "skip_nonfinite must be at least 0, got -1"),
    (
      'optimizer.groups=[{"patern": "head/.*"}]',
      "no key optimizer.groups[0].'patern'; did you mean 'pattern'?",
    ),
    (
      'optimizer.groups=[{"lr": 2}]',
      "key 'optimizer.groups[0].pattern' is missing",
    ),
    ("batch", "must be key=value"),
    ("=8", "must be key=value"),
  ],
)
def test_what_cannot_be_set(text, message):
  with pytest.raises(ValueError) as caught:
    changed(DIGITS, assignment(text))
  assert str(caught.value) == message


def test_what_can_be_set():
  config = DIGITS
  for text in (
    "optimizer.total_steps=1e4",
    "optimizer.peak_lr=1",
    "mesh=2,4",
    "schedule=two_way,async",
    "ema_decay=0.99",
    "data=folder:a=b",
    'optimizer.groups=[{"pattern": "head/.*", "lr": 10}]',
    "augment.area=0.5,1",
  ):
    config = changed(config, assignment(text))
  assert config == dataclasses.replace(
    DIGITS,
    optimizer=dataclasses.replace(
      DIGITS.optimizer,
      total_steps=10_000,
      peak_lr=1.0,
      groups=(ParamGroup(pattern="head/.*", lr=10.0),),
    ),
    mesh=(2, 4),
    schedule=("two_way", "async"),
    ema_decay=0.99,
    data="folder:a=b",
    augment=dataclasses.replace(DIGITS.augment, area=(0.5, 1.0)),
  )
  assert changed(config, assignment("mesh=null")).mesh is None
  assert from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_key_that_is_missing():
  with pytest.raises(ValueError, match="key 'name' is missing"):
    from_json({"data": "digits"})


def test_merging_goes_into_mappings_and_changes_neither():
  fields = {"a": {"b": 1, "c": 2}, "d": [1]}
  changes = {"a": {"c": 3}, "d": [2]}
  assert merged(fields, changes) == {"a": {"b": 1, "c": 3}, "d": [2]}
  assert fields == {"a": {"b": 1, "c": 2}, "d": [1]}


def test_files_of_both_kinds(tmp_path):
  toml = tmp_path / "a.toml"
  toml.write_text(
    """
batch = 32
[optimizer]
peak_lr = 1e-3
[[optimizer.groups]]
pattern = "head/.*"
lr = 10
"""
  )
  fields = read_file(toml)
  (tmp_path / "a.json").write_text(json.dumps(fields))
  assert read_file(tmp_path / "a.json") == fields
  assert changed(DIGITS, fields).optimizer.groups[0].lr == 10


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("a.yaml", "batch: 8", "must end in .toml or .json, got '.yaml'"),
    ("a.toml", "batch = ", "Invalid value"),
    ("a.json", "[1]", "must hold keys and values"),
    ("a.json", "{", "Expecting property name"),
  ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=message):
    read_file(tmp_path / name)


def test_a_dataclass_keeps_its_defaults():
  assert build(ParamGroup, {"pattern": "x"}) == ParamGroup(pattern="x")
