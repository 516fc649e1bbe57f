"""Model card: `python -m examples.eval.model_card --checkpoint=runs/NAME`.

Fills the paper's model card (Appendix C, after Mitchell et al. 2019) from the
folder of a run, and writes `model_card.md` into it: the model and its training
from `config.json`, the last evaluation from `metrics.jsonl`, and what the
evaluation commands left, from `--results`, by default the run's own folder.
What a run cannot know, such as what it is for, is asked for in the card.
Nothing is computed; no device is needed.
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags

from examples.eval import command
from examples.usage import UsageError, blame

_TO_FILL = "*To be filled in.*"


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns its exit code."""
  return command.main(argv, __doc__, evaluate, define)


def define(values: flags.FlagValues) -> None:
  """Adds the flags of this command."""
  flags.DEFINE_string(
    "results", None, "folder of evaluations [the run's]", flag_values=values
  )


def evaluate(given) -> Path:
  """Writes the card; returns its path."""
  if given.checkpoint is None:
    raise UsageError("--checkpoint must name the folder of a run")
  run = Path(given.checkpoint)
  with blame(f"--checkpoint={run}"):
    text = card(run, Path(given.results) if given.results else run)
  path = (Path(given.out) if given.out else run) / "model_card.md"
  with blame(f"--out={path.parent}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  print(f"written: {path}")
  return path


def card(run: Path, results: Path) -> str:
  """Returns the model card of a run, as Markdown.

  Args:
    run: its folder.
    results: folder in which, at any depth, evaluations left their JSON.

  Raises:
    UsageError: if `run` is not the folder of a run.
    ValueError: naming the line of `metrics.jsonl` that cannot be read.
  """
  from examples.run_folder import read_config

  config = read_config(run)
  sections = {
    "Model summary": _summary(config),
    "Model usage": _usage(config),
    "System type": _system(config),
    "Implementation frameworks": _frameworks(config),
    "Model characteristics": _characteristics(config),
    "Data overview": _data(config),
    "Evaluation results": _results(run, results),
    "Limitations and ethical considerations": {
      "Sensitive use": _TO_FILL,
      "Known limitations": _TO_FILL,
      "Potential risks": _TO_FILL,
    },
  }
  lines = [f"# Model card: {config.name}", ""]
  for title, rows in sections.items():
    lines += [f"## {title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines.append("")
  return "\n".join(lines)


def _summary(config):
  model = config.model
  block = "parallel" if model.parallel else "sequential"
  parts = [
    f"{block} blocks",
    "query-key normalisation" if model.qk_norm else "no query-key norm",
    f"biases on q, k, v: {'yes' if model.attention_bias else 'no'}",
    f"biases on LayerNorms: {'yes' if model.norm_bias else 'no'}",
    "attention pooling" if model.pool else "no attention pooling",
  ]
  return {
    "Model architecture": (
      f"Vision Transformer, {model.depth} layers of width {model.width}, "
      f"{model.heads} heads, MLP {model.mlp}; {', '.join(parts)}"
    ),
    "Input(s)": (
      f"images of {model.image} x {model.image} pixels, {model.channels} "
      f"channel{'s' if model.channels > 1 else ''}, in patches of {model.patch}"
    ),
    "Output(s)": (
      f"{model.classes} logits, each the sigmoid of one class"
      if model.classes
      else f"{model.width} features"
    ),
  }


def _usage(config):
  return {
    "Application": _TO_FILL,
    "Known caveats": _TO_FILL,
    "Trained as": f"preset {config.name}, data set {config.data}",
  }


def _system(config):
  del config
  return {
    "System description": "stand-alone model",
    "Upstream dependencies": "none",
    "Downstream dependencies": _TO_FILL,
  }


def _frameworks(config):
  from profiling.flops import vit_flops_per_token

  examples = config.steps * config.batch
  flops = vit_flops_per_token(config.model) * config.model.tokens * examples
  mesh = " x ".join(map(str, config.mesh)) if config.mesh else "not fixed"
  return {
    "Hardware and software: hardware": f"mesh (data x model): {mesh}",
    "Hardware and software: software": (
      "JAX with collective_mm; layout "
      f"{config.layout}, schedule {config.schedule}, {config.compute_dtype}"
    ),
    "Compute requirements: training": (
      f"{config.steps:,} steps of {config.batch:,} images: {examples:.3g} "
      f"images, {flops:.3g} model FLOPs"
    ),
  }


def _characteristics(config):
  from models.params import count_params

  optimizer = dataclasses.asdict(config.optimizer)
  kind = optimizer.pop("kind")
  settings = ", ".join(f"{name} {value}" for name, value in optimizer.items())
  return {
    "Model initialization": f"from scratch, seed {config.seed}",
    "Model status": "static, trained once",
    "Model stats": (
      f"{count_params(config.model, 'all'):,} parameters, "
      f"{count_params(config.model, 'matmul'):,} in the kernels of the blocks"
    ),
    "Optimizer": f"{kind}: {settings}",
  }


def _data(config):
  return {
    "Training dataset": config.data,
    "Instrumentation": _TO_FILL,
    "Evaluation dataset": f"the held-out part of {config.data}",
  }


def _results(run, results):
  rows = {}
  last = _last_evaluation(run / "metrics.jsonl")
  for name, value in last.items():
    rows[f"held-out part: {name}"] = f"{value:.4g}"
  for path in sorted(results.rglob("*.json")):
    try:
      record = json.loads(path.read_text())
      found = record["name"], record["ours"], record["paper"]
    except (ValueError, KeyError, TypeError):
      continue  # another program's
    name, ours, paper = found
    for what, value in ours.items():
      theirs = paper.get(what)
      note = "" if theirs is None else f" (paper: {theirs})"
      rows[f"{name}: {what}"] = f"{value:.4g}{note}"
  return rows or {"Results": "none found"}


def _last_evaluation(path: Path) -> dict[str, float]:
  """The newest "eval/..." scalars of the run's log."""
  last = {}
  if not path.exists():
    return last
  for number, line in enumerate(path.read_text().splitlines(True), 1):
    if not line.endswith("\n"):
      break  # a killed run leaves half a line
    try:
      record = json.loads(line)
    except ValueError as error:
      raise ValueError(f"{path} line {number} is no record") from error
    found = {
      name.removeprefix("eval/"): value
      for name, value in record.items()
      if name.startswith("eval/")
    }
    if found:
      last = {"step": record["step"]} | found
  return last


if __name__ == "__main__":
  sys.exit(main(sys.argv))
