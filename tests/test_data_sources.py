import pytest

from examples.data.sources import open_source


def test_what_cannot_be_read_is_said_with_what_can():
  with pytest.raises(
    NotImplementedError,
    match=r"'jft_4b' cannot be read .*only digits, .*folder:",
  ):
    open_source("jft_4b", "train")


def test_parts_are_train_and_val():
  with pytest.raises(ValueError, match="train or val, got 'test'"):
    open_source("digits", "test")
