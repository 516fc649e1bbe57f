"""Features of clips, frame by frame, and clips that cannot be read."""

import jax
import numpy as np
import pytest
from PIL import Image

from collective_mm import make_mesh
from examples.data.clips import open_clips
from examples.eval.clip_features import clip_features
from examples.eval.clip_training import accuracy, fit
from examples.eval.features import extract
from examples.usage import UsageError
from models.params import init_params
from models.temporal import TemporalConfig
from models.vit_config import get_config

CFG = get_config(
  "vit_tiny", depth=1, width=16, mlp=32, image=16, channels=3, classes=0
)


@pytest.fixture(scope="module")
def setting():
  mesh = make_mesh(data=1, model=1, devices=jax.devices()[:1])
  return {"params": init_params(jax.random.key(0), CFG), "mesh": mesh}


def write(root, frames):
  rng = np.random.default_rng(0)
  for name in ("run/a", "run/b", "walk/c"):
    folder = root / "train" / name
    folder.mkdir(parents=True)
    for i in range(frames):
      pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(folder / f"{i}.png")
  return open_clips(f"frames:{root}", "train")


def test_a_clip_that_cannot_be_read_is_left_out(setting, tmp_path, caplog):
  source = write(tmp_path, 5)
  (tmp_path / "train/run/b/2.png").write_bytes(b"no picture")
  asked = {"frames": 2, "stride": 2, "views": 2, "batch": 4}
  found, labels = clip_features(
    source, cfg=CFG, **setting, **asked, cache=tmp_path / "kept"
  )
  assert found.shape == (2, 2, 2, 16)
  assert labels.tolist() == [0, 1]
  assert "b/2.png" in caplog.text
  views = [
    source.read(2, 16, count=2, stride=2, view=v, views=2) for v in range(2)
  ]
  alone = extract(
    CFG, setting["params"], setting["mesh"], np.concatenate(views), batch=4
  )
  np.testing.assert_allclose(
    found[1].reshape(4, -1), alone["pre_logits"], atol=1e-5
  )
  with pytest.raises(UsageError, match="more than max_bad=0 images cannot"):
    clip_features(
      source, cfg=CFG, **setting, **asked, cache=tmp_path / "kept", max_bad=0
    )


def test_the_transformer_fits_what_only_the_order_tells():
  rng = np.random.default_rng(0)
  forward = rng.normal(size=(8, 4, 6)).astype(np.float32)
  clips = np.concatenate([forward, forward[:, ::-1]])
  labels = np.repeat([0, 1], 8)
  cfg = TemporalConfig(
    features=6, frames=4, classes=2, width=16, mlp=32, heads=2
  )
  model = fit(clips, labels, cfg, epochs=60, batch=16, lr=0.2)
  assert accuracy(model, clips[:, None], labels) == 1
