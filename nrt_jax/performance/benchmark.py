"""The cost of a run's step: times the program that training compiles, on the run's own batches, and its phases.

The report is a plain dict (`--json`), which report.py formats as text.
"""

import contextlib
import dataclasses
import datetime
import statistics
import sys
import time

import jax
import numpy as np

from nrt_jax import startup
from nrt_jax.config import RunConfig
from nrt_jax.data import batches
from nrt_jax.errors import UserError
from nrt_jax.performance import ceilings, memory, phases
from nrt_jax.performance.compilations import Compilations
from nrt_jax.rollout import draws
from nrt_jax.startup import Stage
from nrt_jax.step import host_grading, programs, throughput

PROFILED_STEPS = 2


def benchmark(
  runs: list[RunConfig], stage_name: str | None = None, repeats: int = 5, profile: str | None = None, keep=None
) -> dict:
  """Times `repeats` steps of a stage (None: the last) after a warmup step, then its phases; returns the report.

  profile: a directory for the profiler trace of PROFILED_STEPS more steps. keep: is called with the report of the
  steps, whose phases are an empty list, before the phases are compiled, which can take longer than all before it.
  Raises UserError as training does.
  """
  names = [run.stage for run in runs]
  if stage_name is not None and stage_name not in names:
    raise UserError(f"--stage: found {stage_name!r}, allowed: {', '.join(names)}")
  tokenizer, opened = startup.open_stages(runs)
  stage = opened[names.index(stage_name) if stage_name else -1]
  setup = stage.setup
  peaks = ceilings.find(setup.model.compute_dtype)
  with contextlib.nullcontext() if setup.mesh is None else jax.set_mesh(setup.mesh):
    say(f"stage {setup.run.stage}: reading the parameters")
    states = startup.fresh_states(stage, startup.first_params(setup), jax.random.key(setup.run.seed))
    batch = startup.read_batch(stage, batches.Position())

    say("compiling the step")
    compiled, compiling = compile_step(setup, states, batch)
    work = throughput.Work(setup, throughput.phases_in(compiled), peaks.flops)
    say(f"timing {repeats} steps")
    step = host_grading.assemble(setup, tokenizer, *compiled)
    states, batch, steps = time_steps(stage, step, states, batch, repeats)
    peak = throughput.peak_bytes()  # before the phases, which may need more
    if profile:
      states = trace(step, states, batch, profile)
    report = {
      "run": describe_run(setup),
      "compile": {**compiling, "recompiles": steps["recompiles"]},
      "ceilings": peaks._asdict(),
      "memory": {"peak_bytes": peak, **memory_of(compiled)},
      "step": describe_step(work, steps, peaks),
      "phases": [],
    }
    if keep is not None:
      keep(report)

    say(f"a step takes {report['step']['seconds']['median']:.3f} s; timing its phases")
    grading = (compiled[0], tokenizer, host_grading.grader(setup.run)) if setup.grades_on_host else None
    measured = phases.measure(setup, states, batch, work.phases, repeats, grading)
  return {**report, "phases": describe_phases(work, measured, steps, peaks)}


def say(text: str) -> None:
  print(f"benchmark: {text}", file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------------- the step


def compile_step(setup, states, batch) -> tuple[tuple, dict]:
  """The step's compiled programs, and the time of compiling."""
  start = time.perf_counter()
  with Compilations() as seen:
    compiled = host_grading.compile_programs(setup, states, batch)
  return compiled, {"seconds": time.perf_counter() - start, "programs": seen.count, "read_from_cache": seen.cached}


def time_steps(stage: Stage, step, states, batch, repeats: int):
  """(states, next batch, measurements) of `repeats` steps, each on its own batch, after one that is not counted.

  As in training, the host reads the next batch while the devices run.
  """
  run, position = stage.setup.run, batches.Position()
  steps = {"seconds": [], "host": [], "metrics": []}
  with Compilations() as seen:
    for number in range(repeats + 1):
      compiled_before = seen.count
      start = time.perf_counter()
      states, metrics, _ = step(states, batch)
      begin = time.perf_counter()
      drawn = run.prompts_per_step * draws.made(metrics, stage.setup.max_draws)
      position = batches.advance(stage.train_data, position, drawn)
      batch = jax.block_until_ready(startup.read_batch(stage, position))
      read = time.perf_counter() - begin
      jax.block_until_ready(states)
      seconds = time.perf_counter() - start
      values = metrics_on_host(stage.setup, metrics)
      if number == 0:
        steps |= {"first_seconds": seconds, "recompiles": 0}
        continue
      steps["recompiles"] += seen.count - compiled_before
      for name, value in (("seconds", seconds), ("host", read), ("metrics", values)):
        steps[name].append(value)
  return states, batch, steps


def metrics_on_host(setup, metrics) -> dict:
  metrics = programs.unreplicate(metrics) if setup.axis_name else metrics
  return {name: float(value) for name, value in jax.device_get(metrics).items()}


def trace(step, states, batch, directory: str):
  """Runs PROFILED_STEPS under the profiler, writes its trace to `directory`, and returns the states after them."""
  with jax.profiler.trace(directory):
    for number in range(PROFILED_STEPS):
      with jax.profiler.StepTraceAnnotation("train_step", step_num=number):
        states = jax.block_until_ready(step(states, batch)[0])
  return states


# ------------------------------------------------------------------------------------------------------------- report


def spread(seconds: list) -> dict:
  return {"median": statistics.median(seconds), "low": min(seconds), "high": max(seconds), "all": seconds}


def describe_run(setup) -> dict:
  run, device = setup.run, jax.devices()[0]
  return {
    "algorithm": run.algorithm_name,
    "stage": run.stage,
    "prompts_per_step": run.prompts_per_step,
    "samples_per_prompt": setup.samples_per_prompt,
    "lengths": {
      "prompt": run.prompt.max_prompt_length,
      "trace": run.sampling.max_trace_length if setup.algorithm.samples_traces else run.data.max_trace_length,
      "answer": run.prompt.max_answer_length,
    },
    "model": dataclasses.asdict(setup.model),
    "parallel": dataclasses.asdict(run.parallel),
    "devices": jax.device_count(),
    "device_kind": device.device_kind,
    "platform": device.platform,
    "jax": jax.__version__,
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  }


def memory_of(compiled) -> dict:
  """Bytes per device of the step's largest program, as planned by the compiler, without the program's code."""
  plans = [program.memory_analysis() for program in compiled]
  if any(plan is None for plan in plans):
    return {"planned_bytes": None}
  platform = jax.devices()[0].platform
  largest = max((memory.read(plan, platform)._replace(code=0) for plan in plans), key=lambda one: one.total)
  parts = {name: getattr(largest, name) for name in ("arguments", "outputs", "temporaries")}
  return {"planned_bytes": {**parts, "total": largest.total}}


def describe_step(work, steps: dict, peaks) -> dict:
  """Rates are computed per step, then the median is taken, since token counts differ between steps."""
  tokens = [throughput.take_tokens(dict(values)) for values in steps["metrics"]]
  flops = [sum(throughput.model_flops(work, counts).values()) for counts in tokens]
  report = {"seconds": spread(steps["seconds"]), "first_seconds": steps["first_seconds"]}
  for name in ("generated", "trained"):
    if name in tokens[0]:
      report[f"{name}_tokens"] = statistics.median(counts[name] for counts in tokens)
      per_second = [counts[name] / s for counts, s in zip(tokens, steps["seconds"])]
      report[f"{name}_tokens_per_s"] = statistics.median(per_second)
  report["model_flops"] = statistics.median(flops)
  report["mfu"] = statistics.median(f / s / peaks.flops for f, s in zip(flops, steps["seconds"]))
  padded = [values["update/padded_fraction"] for values in steps["metrics"] if "update/padded_fraction" in values]
  report["padded_fraction"] = statistics.median(padded) if padded else None
  return report


def describe_phases(work, measured: phases.Measured, steps: dict, peaks) -> list[dict]:
  """One entry per phase, in the order of the step; phases of a draw are multiplied by the mean number of draws."""
  flops = throughput.model_flops(work, measured.tokens)
  draws = float(np.mean([values.get("draws/count", 1.0) for values in steps["metrics"]]))
  report = []
  for name, phase in measured.phases.items():
    times = 1.0 if name in ("rollout_weights", "score_batch", "score_start", "update") else draws
    seconds = spread([times * s for s in phase.seconds])
    entry = {"name": name, "seconds": seconds}
    if phase.tokens is not None:
      entry |= {"tokens": times * phase.tokens, "tokens_per_s": times * phase.tokens / seconds["median"]}
    parts = ("decode", "score_answer") if name == "decode_in_slots" else (name,)
    done = times * sum(flops.get(part, 0.0) for part in parts)
    if done:
      entry |= {"model_flops": done, "mfu": done / seconds["median"] / peaks.flops}
    if phase.moved is not None:
      rate = times * phase.moved / seconds["median"]
      entry |= {"bytes": times * phase.moved, "bytes_per_s": rate, "bandwidth_share": rate / peaks.bandwidth}
    report.append(entry)
  return [*report, {"name": "host_batch", "seconds": spread(steps["host"])}]
