import dataclasses
from pathlib import Path

import pytest

from examples import train
from examples.hosts import Hosts
from examples.presets import PRESETS
from examples.run_folder import claim
from examples.train_flags import parse
from examples.usage import UsageError

DIGITS = PRESETS["digits"]


def request(*flags):
  return parse(["train", *flags])


def test_help_lists_the_flags(capsys):
  assert train.main(["train", "--help"]) == 0
  out = capsys.readouterr().out
  for flag in ("--preset", "--mesh", "--[no]resume", "--workdir", "--steps"):
    assert flag in out


def test_flags_override_the_preset():
  config = request(
    *("--width=32", "--lr=0.01", "--steps=60", "--mesh=4,2", "--seed=3"),
    *("--layout=features", "--schedule=one_way", "--compute_dtype=bfloat16"),
  ).config
  optimizer = DIGITS.optimizer
  assert config == dataclasses.replace(
    DIGITS,
    model=dataclasses.replace(DIGITS.model, width=32),
    optimizer=dataclasses.replace(optimizer, peak_lr=0.01).stretched(60),
    mesh=(4, 2),
    seed=3,
    layout="features",
    schedule="one_way",
    compute_dtype="bfloat16",
  )
  pair = request("--schedule=two_way,async").config.schedule
  assert pair == ("two_way", "async")
  assert request().config == DIGITS
  assert request("--preset=vit_22b").config == PRESETS["vit_22b"]


def test_flags_win_over_set_and_set_over_files(tmp_path):
  path = tmp_path / "a.toml"
  path.write_text('preset = "images"\nbatch = 8\nseed = 8\nkeep = 8\n')
  config = request(
    f"--config={path}", "--set=seed=9", "--set=keep=9", "--seed=10"
  ).config
  assert (config.batch, config.keep, config.seed) == (8, 9, 10)
  assert config.name == "images"
  assert request(f"--config={path}", "--preset=digits").config.name == "digits"


def test_a_file_names_what_is_wrong_with_it(tmp_path):
  path = tmp_path / "a.toml"
  for text, message in (
    ("[optimizer]\npeek_lr = 1", "no key 'optimizer.peek_lr'; did you mean"),
    ('preset = "vit_99"', "preset must be one of digits, "),
    ("batch = ", "Invalid value"),
  ):
    path.write_text(text)
    with pytest.raises(UsageError, match=f"--config=.*a.toml: {message}"):
      request(f"--config={path}")


def test_auto_resume_takes_the_config_of_the_run_if_there_is_one(tmp_path):
  flags = (f"--workdir={tmp_path}", "--auto_resume")
  assert not request(*flags).resume
  claim(tmp_path, dataclasses.replace(DIGITS, seed=7))
  again = request(*flags)
  assert (again.resume, again.config.seed) == ("auto", 7)
  assert again.workdir == Path(tmp_path)


def test_hosts_are_as_the_flags_say():
  flags = ("--distributed", "--workdir=x", "--coordinator=a:1")
  got = request(*flags, "--num_processes=2", "--process_id=1").hosts
  assert got == Hosts(coordinator="a:1", processes=2, index=1, timeout_s=100)
  assert request().hosts is None
