"""Draws a plan as a heat map: meshes across, layouts and schedules down."""

import logging
from pathlib import Path

import numpy as np


def draw(ranked: list, title: str, path: Path) -> None:
  """Writes a PNG of the modelled MFU of every way, with its memory.

  Args:
    ranked: pairs of `plan_model.Candidate` and `plan_model.Modelled`.
    title: of the picture.
    path: of the PNG.
  """
  # A font cache that another environment left names fonts that are gone.
  logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
  from matplotlib.figure import Figure

  steps = {(_mesh(way), _name(way)): step for way, step in ranked}
  meshes = sorted({mesh for mesh, _ in steps}, key=lambda mesh: mesh[1])
  names = sorted({name for _, name in steps}, reverse=True)
  grid = np.full((len(names), len(meshes)), np.nan)
  figure = Figure(figsize=(3 + 1.1 * len(meshes), 1.5 + 0.45 * len(names)))
  axes = figure.add_subplot()
  for row, name in enumerate(names):
    for column, mesh in enumerate(meshes):
      if (step := steps.get((mesh, name))) is not None:
        grid[row, column] = 100 * step.mfu
        memory = f"{step.hbm_bytes / 2**30:.0f} GiB"
        text = f"{100 * step.mfu:.1f} %\n{memory}"
        axes.text(
          column,
          row,
          text if step.fits else f"{text}, too much",
          ha="center",
          va="center",
          fontsize=6,
          color="black" if step.fits else "red",
        )
  image = axes.imshow(grid, aspect="auto", cmap="YlGn", alpha=0.6)
  axes.set_xticks(range(len(meshes)), [f"{d} x {m}" for d, m in meshes])
  axes.set_yticks(range(len(names)), names)
  axes.set_xlabel("mesh, data x model")
  axes.set_title(title, fontsize=9)
  figure.colorbar(image, label="MFU, %")
  figure.savefig(path, dpi=150, bbox_inches="tight")


def _mesh(way) -> tuple[int, int]:
  return way.data, way.model


def _name(way) -> str:
  return f"{way.layout}, {way.schedule.replace(',', ' / ')}"
