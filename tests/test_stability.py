import pytest

from examples import stability


@pytest.mark.long
def test_logits_grow_without_qk_norm(tmp_path, capsys):
  logits = stability.compare(tmp_path, lr=0.03, steps=20)
  # Normed queries and keys, of about unit scale: sqrt(16) and a little.
  assert logits["with QK-norm"] < 10
  assert logits["without"] > 5 * logits["with QK-norm"]
  assert (tmp_path / "stability.png").stat().st_size > 10_000
  assert "without: largest attention logit" in capsys.readouterr().out


def test_the_arms_differ_in_qk_norm_alone():
  arms = [stability.arm(0.03, 20, qk_norm=on) for on in (True, False)]
  assert arms[0] != arms[1]
  models = [arm.model for arm in arms]
  assert (models[0].qk_norm, models[1].qk_norm) == (True, False)
  assert arms[0].optimizer == arms[1].optimizer


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    ([], "error: --workdir must name the folder of both runs"),
    (["x"], "error: flags look like --name=value, got 'x'"),
    (["--steps=3"], "error: flag --steps=3: "),
  ],
)
def test_refuses_in_one_line(argv, message, capsys):
  assert stability.main(["stability", *argv]) == 2
  error = capsys.readouterr().err
  assert error.startswith(message)
  assert error.count("\n") == 1
