"""What `profiling.aot` says of a program: a dict for JSON, and a summary."""

import dataclasses
import math

from profiling import flops
from profiling.aot_compile import Compiled, DoesNotFit, gib
from profiling.aot_programs import Program
from profiling.axis_waits import Stretch


def describe(program: Program, compiled: Compiled) -> dict:
  """The report of a program that fits; times are simulated.

  Args:
    program: what was compiled.
    compiled: what came of it.
  """
  run, devices = compiled.replayed, list(program.mesh.devices.flat)
  rates = flops.throughput(
    program.tokens / run.step_time_s,
    program.model_flops / program.tokens,
    devices,
  )
  return {
    "fits": True,
    "hbm_bytes": compiled.hbm,
    "flops": {
      "model_per_step": program.model_flops,
      "products_per_step": program.flops,
      "products_per_device": program.flops
      // math.prod(program.mesh.shape.values()),
      "compiler_per_device_loops_once": compiled.flops,
    },
    "simulated": {
      "step_time_s": run.step_time_s,
      "compute_s": run.compute_s,
      "guessed_s": run.guessed_s,
      "exposed_s": run.exposed_s,
      "exposed_by_axes_s": run.exposed_by_axes_s,
      "stretches": [dataclasses.asdict(s) for s in run.stretches],
      "exposed_communication_s": run.exposed_communication_s,
      "exposed_communication_share": run.exposed_fraction,
      "mfu": rates.mfu,
      "mfu_note": rates.mfu_note,
      "tokens_per_s": program.tokens / run.step_time_s,
      "tokens_per_s_per_device": rates.tokens_per_s_per_device,
      "tokens_per_s_per_chip": rates.tokens_per_s_per_chip,
      "tokens_per_s_per_tensor_core": rates.tokens_per_s_per_tensor_core,
    },
  }


def modes(
  program: Program, found: dict[str, Compiled | DoesNotFit]
) -> dict[str, dict]:
  """A short report of each set of compiler options that was tried."""
  reports = {}
  for name, result in found.items():
    if isinstance(result, DoesNotFit):
      reports[name] = misfit(result)
      continue
    whole = describe(program, result)
    names = ("step_time_s", "exposed_communication_share", "mfu")
    reports[name] = {
      "fits": True,
      "hbm_peak_bytes": whole["hbm_bytes"]["peak"],
      **{n: whole["simulated"][n] for n in names},
    }
  return reports


def misfit(error: DoesNotFit) -> dict:
  """The report of a program that does not fit."""
  return {"fits": False, "hbm_bytes": error.hbm}


def summary(report: dict) -> str:
  """A few lines of a report that `describe` is part of."""
  hbm, run = report["hbm_bytes"], report["simulated"]
  step = run["step_time_s"]
  if "op" in report:
    what = f"{report['op']} of {' x '.join(map(str, report['shape']))}"
  else:
    what = f"{report['model']}, {report['batch']:,} images a step,"

  def share(seconds):
    return f"{100 * seconds / step:.1f} %"

  parts = [f"{kind} {share(s)}" for kind, s in run["compute_s"].items()]
  waits = [f"{kind} {share(s)}" for kind, s in run["exposed_s"].items()]
  held = ", ".join(
    f"{name} {gib(hbm[name])}" for name in ("arguments", "temporaries", "code")
  )
  tried = [
    f"{name}: "
    + (
      f"{mode['step_time_s']:.4g} s, MFU {mode['mfu']:.1%}"
      if mode["fits"]
      else "does not fit"
    )
    for name, mode in report.get("modes", {}).items()
  ]
  return "\n".join(
    (
      f"{what} on {report['topology']}, mesh {report['mesh']}; jax "
      f"{report['versions']['jax']}, libtpu {report['versions']['libtpu']}",
      f"memory: {gib(hbm['peak'])} of {gib(hbm['usable'])} GiB on each device "
      f"({held})",
      f"simulated step: {step:.4g} s: {', '.join(parts)}; waits for "
      f"{', '.join(waits) or 'nothing'}",
      f"exposed communication: {share(run['exposed_communication_s'])}"
      + "".join(
        f", over {axes} {share(s)}"
        for axes, s in run["exposed_by_axes_s"].items()
      ),
      *(str(Stretch(**s)) for s in run["stretches"]),
      f"MFU {run['mfu']:.2%} ({run['mfu_note']}); tokens/s: "
      f"{run['tokens_per_s_per_chip']:,.0f} per chip, "
      f"{run['tokens_per_s_per_tensor_core']:,.0f} per TensorCore",
      *tried,
    )
  )
