import re

import pytest

from examples import time_checkpoints


@pytest.mark.long
def test_the_median_step_is_within_a_tenth(capsys):
  assert time_checkpoints.main(["prog"]) == 0
  said = capsys.readouterr().out
  assert float(re.search(r"ms: ([+-][\d.]+)%", said)[1]) < 10, said


def test_what_cannot_be_is_one_line(capsys):
  assert time_checkpoints.main(["prog", "--width=6"]) == 2
  assert capsys.readouterr().err.startswith("error: --width=6 --depth=6: heads")
