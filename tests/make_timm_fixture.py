"""Writes `tests/data/timm`: weights that timm has loaded, and its logits.

    python -m venv .venv-timm
    .venv-timm/bin/pip install -e '.[train]' timm torch
    PYTHONPATH=.:tests .venv-timm/bin/python tests/make_timm_fixture.py

Not run by the tests, which need neither timm nor torch. Our exporter writes the
`.npz`; timm's own loader reads it by the names of the public files, and timm
computes the logits. The same parameters go through our `.safetensors` in timm's
names and `load_state_dict(strict=True)`, and must give the same logits. The
versions that did it are in `logits.npz`.
"""

import sys
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, _load_weights
from weight_cases import CASES, DATA, some_images, some_params

from examples.weights import flax_npz, tensors


def model_of(cfg) -> VisionTransformer:
  """timm's model of the same shape, with other random weights."""
  pool = "map" if cfg.pool else "token" if cfg.cls else "avg"
  act = torch.nn.GELU
  if cfg.gelu == "tanh":
    act = lambda: torch.nn.GELU(approximate="tanh")  # noqa: E731
  return VisionTransformer(
    img_size=cfg.image,
    patch_size=cfg.patch,
    in_chans=cfg.channels,
    num_classes=cfg.classes,
    global_pool=pool,
    embed_dim=cfg.width,
    depth=cfg.depth,
    num_heads=cfg.heads,
    mlp_ratio=cfg.mlp / cfg.width,
    class_token=cfg.cls,
    fc_norm=False,
    act_layer=act,
  ).eval()


@torch.no_grad()
def logits_of(model, cfg) -> np.ndarray:
  """timm's logits of the images of a case."""
  images = torch.from_numpy(some_images(cfg)).permute(0, 3, 1, 2)
  return model(images).numpy()


def main() -> int:
  """Writes every case."""
  torch.manual_seed(0)
  DATA.mkdir(parents=True, exist_ok=True)
  logits = {"versions": f"timm {timm.__version__}, torch {torch.__version__}"}
  for seed, (name, (cfg, scanned)) in enumerate(CASES.items()):
    params = some_params(cfg, seed)
    path = DATA / f"{name}.npz"
    flax_npz.write(path, cfg, params, scanned=scanned)
    from_npz = model_of(cfg)
    with torch.no_grad():
      _load_weights(from_npz, str(path))
    logits[name] = logits_of(from_npz, cfg)

    state = path.with_suffix(".safetensors")
    tensors.write_timm(state, cfg, params)
    from_state = model_of(cfg)
    from_state.load_state_dict(load_file(state), strict=True)
    difference = np.abs(logits_of(from_state, cfg) - logits[name]).max()
    spread = logits[name].std()
    print(f"{name}: spread {spread:.3f}, by state dict off {difference:.1e}")
    if difference > 1e-6 or spread < 0.1:
      return 1
    if name != "cls":  # one is enough to keep
      state.unlink()
  np.savez(Path(DATA / "logits.npz"), **logits)
  return 0


if __name__ == "__main__":
  sys.exit(main())
