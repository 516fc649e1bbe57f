"""What `ood --demo` evaluates: digits under noise, blur and a label subset."""

import dataclasses
import zlib

import numpy as np
from scipy import ndimage

from examples.data.sources import open_source
from examples.eval import command, demo, tasks
from examples.eval.metrics.label_maps import top1_among

_STEPS = (40, 80)  # that the baselines were trained for
_EVEN = tuple((digit,) for digit in range(0, 10, 2))


@dataclasses.dataclass(frozen=True)
class Shifted:
  """The digits, changed after they are drawn.

  Attributes:
    source: the digits.
    kind: "noise" or "blur".
    severity: 1 to 5.
  """

  source: object
  kind: str
  severity: int

  @property
  def classes(self):
    """Names of the labels."""
    return self.source.classes

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    return self.source[index]

  def name(self, index):
    """The id of an example."""
    return self.source.name(index)

  def view(self, image, size, rng):
    """Draws a scan and changes it; the same scan always alike."""
    shown = self.source.view(image, size, rng)
    if self.kind == "blur":
      return ndimage.gaussian_filter(shown, (self.severity, self.severity, 0))
    rng = np.random.default_rng(zlib.crc32(image.tobytes()))
    noise = rng.normal(0, 0.3 * self.severity, shown.shape)
    return (shown + noise).clip(-1, 1).astype(np.float32)


def evaluate(given):
  """Returns accuracies of the demo's model, of baselines, and the settings."""
  mesh = command.mesh_of(given)
  source = open_source("digits", "val")

  def accuracies(cfg, params, whole=False):
    def read(shown):
      return tasks.read_features(
        cfg, params, mesh, shown, layers=("logits",), batch=given.batch
      )

    clean = read(source)
    found = {"clean": top1_among(clean.x, clean.labels, None)}
    for kind in ("noise", "blur"):
      parts = [read(Shifted(source, kind, severity)) for severity in (1, 2, 3)]
      found[kind] = float(
        np.mean([top1_among(p.x, p.labels, None) for p in parts])
      )
    if not whole:
      return found
    even = clean.classes % 2 == 0
    found["even digits, among themselves"] = top1_among(
      clean.x[even], clean.labels[even][:, ::2], _EVEN
    )
    return found

  ours = accuracies(*demo.digits(), whole=True)
  others = {
    f"{steps} steps": accuracies(*demo.digits(steps=steps)) for steps in _STEPS
  }
  return (
    ours,
    others,
    {
      "data": ("digits, changed here", "ImageNet's variants"),
      "baselines": (f"the same ViT, {_STEPS} steps", "smaller ViTs"),
    },
  )
