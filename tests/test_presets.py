import dataclasses
import json

import pytest

from examples.presets import PRESETS, TrainConfig, from_json

DIGITS = PRESETS["digits"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
  config = dataclasses.replace(PRESETS[name], mesh=(2, 4))
  fields = json.loads(json.dumps(dataclasses.asdict(config)))
  assert from_json(fields) == config


def test_the_preset_of_vit_22b_is_the_papers():
  config = PRESETS["vit_22b"]
  assert (config.steps, config.batch) == (177_000, 65_536)
  assert config.optimizer.peak_lr == 1e-3
  assert config.optimizer.weight_decay_head == 3.0
  assert config.optimizer.weight_decay_body == 0.03
  # About three epochs of four billion images.
  assert 2.8 < config.steps * config.batch / 4e9 < 3.0


@pytest.mark.parametrize("name", ["batch", "log_every", "keep"])
def test_counts_below_one_are_refused(name):
  with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
    TrainConfig(**vars(DIGITS) | {name: 0})
