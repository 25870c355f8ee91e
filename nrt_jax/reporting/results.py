"""What a table is filled from: runs, and what evaluations of them wrote, each with the config that it is of.

Evaluations are those of `nrt-jax evaluate --output` and of `nrt-jax harness --output`; numbers of the latter are called
harness/TASK/METRIC,FILTER.
"""

import dataclasses
import json
import os
import pathlib
from dataclasses import dataclass

from nrt_jax import config
from nrt_jax.errors import UserError, at
from nrt_jax.reporting import runs

SKIPPED = ("checkpoints", "compiled", "export", "tensorboard", "tokenizer", "wandb")  # folders of a workdir
EVAL = "eval/"  # starts the names of what evaluations measure
WROTE = "`nrt-jax evaluate --output` or `nrt-jax harness --output` wrote"
DEVIATIONS = 1.96  # of a standard error, on both sides: 95 %


@dataclass
class Found:
  """A run, or a model as it is, and what was measured of it."""

  place: str  # its workdir or model directory
  model: str | None  # model.path of the run, or the same place
  stages: list  # RunConfigs; none: a model as it is
  step: int = 0  # that it has come to
  metrics: dict = dataclasses.field(default_factory=dict)  # name -> value
  intervals: dict = dataclasses.field(default_factory=dict)  # name -> [low, high] | None
  own: set = dataclasses.field(default_factory=set)  # names of those that a run measured of itself, in training

  @property
  def seed(self) -> int:
    return self.stages[-1].seed if self.stages else 0

  @property
  def steps(self) -> int:
    """Of the whole run; 0 of a model as it is."""
    return sum(stage.total_steps for stage in self.stages)

  @property
  def finished(self) -> bool:
    return self.step >= self.steps or os.path.isdir(os.path.join(self.place, "export"))


def read(paths) -> tuple[list[Found], list[str]]:
  """All runs and evaluated models in and below the paths, and notes on what can't be used.

  UserError for a path that is not there, or holds neither.
  """
  found, notes, outputs = {}, [], []
  for path in map(pathlib.Path, paths):
    workdirs, files = search(path)
    for workdir in workdirs:
      _add_run(found, workdir, notes)
    outputs += files
  for file, values in dict(outputs).items():
    _add_output(found, file, values, notes)
  return list(found.values()), notes


def search(path: pathlib.Path) -> tuple[list, list]:
  """(workdirs, (file, values) of evaluations' outputs) of a path."""
  if path.is_file():
    values = read_output(path)
    if values is None:
      raise UserError(f"RUN: {path}: found another file, allowed: what {WROTE}")
    return [], [(path, values)]
  if not path.is_dir():
    raise UserError(f"RUN: {path}: no such file or directory")
  workdirs, outputs = [], []
  for folder, folders, names in os.walk(path):
    folders[:] = sorted(name for name in folders if name not in SKIPPED)
    place = pathlib.Path(folder)
    if "metrics.jsonl" in names:
      workdirs.append(place)
    files = [place / name for name in sorted(names) if name.endswith(".json")]
    outputs += [(file, values) for file in files if (values := read_output(file)) is not None]
  if not workdirs and not outputs:
    raise UserError(f"RUN: {path}: holds neither a run nor what {WROTE}")
  return workdirs, outputs


def read_output(path: pathlib.Path) -> dict | None:
  """What an evaluation wrote, as `nrt-jax evaluate` does; None if the file is something else."""
  try:
    values = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return None
  if not isinstance(values, dict) or not any(isinstance(values.get(key), str) for key in ("checkpoint", "model")):
    return None
  if isinstance(values.get("results"), dict):
    values |= of_harness(values["results"])
  elif isinstance(values.get("sets"), dict):
    values |= of_sets(values["sets"])
  fits = isinstance(values.get("metrics"), dict) and isinstance(values.setdefault("intervals", {}), dict)
  return values if fits and values["metrics"] else None


def of_sets(sets: dict) -> dict:
  """metrics and intervals of all sets of {set: {"metrics": ..., "intervals": ...}}."""
  found = {"metrics": {}, "intervals": {}}
  for part in sets.values():
    for key, numbers in found.items():
      own = part.get(key) if isinstance(part, dict) else None
      numbers |= own if isinstance(own, dict) else {}
  return found


def of_harness(results: dict) -> dict:
  """metrics and intervals, by our names, of {task: {"METRIC,FILTER": value, "METRIC_stderr,FILTER": its error}}."""
  metrics, intervals = {}, {}
  for task, found in results.items():
    for key, value in found.items() if isinstance(found, dict) else ():
      metric, comma, name = key.partition(",")
      if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
        continue
      error = found.get(f"{metric}_stderr,{name}")
      metrics[f"harness/{task}/{key}"] = value
      if isinstance(error, (int, float)):
        intervals[f"harness/{task}/{key}"] = [value - DEVIATIONS * error, value + DEVIATIONS * error]
  return {"metrics": metrics, "intervals": intervals}


def _add_run(found: dict, workdir: pathlib.Path, notes: list) -> Found | None:
  """The run of a workdir, with the last values of its own evaluations. One that can't be used becomes a note."""
  key = os.path.realpath(workdir)
  if key in found:
    return found[key]
  try:
    lines = runs.read_metrics(str(workdir))
    stages = read_stages(workdir)
  except UserError as error:
    notes.append(f"{workdir} is left out: {error}")
    return None
  pairs = [pair for line in lines for pair in line.items()]
  metrics = {name: value for name, value in pairs if name.startswith(EVAL) and value is not None}
  step = max(line["step"] for line in lines)
  found[key] = Found(str(workdir), stages[0].model.path, stages, step, metrics, own=set(metrics))
  return found[key]


def read_stages(workdir: pathlib.Path) -> list:
  """The RunConfigs of a run. UserError if it has no config.json that can be read today."""
  path = workdir / "config.json"
  try:
    values = json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: unreadable: {error}") from error
  with at(str(path)):
    return config.stages_of(values)


def _add_output(found: dict, path: pathlib.Path, values: dict, notes: list) -> None:
  """Lays an evaluation's numbers over what is known of its run or model."""
  if isinstance(values.get("checkpoint"), str):
    workdir = workdir_of(path, values["checkpoint"])
    one = None if workdir is None else _add_run(found, workdir, notes)
    if workdir is None:
      notes.append(f"{path} is left out: its checkpoint {values['checkpoint']} is in no workdir that is still there")
  else:
    place = values["model"]
    one = found.setdefault(f"model {place}", Found(place, place, []))
  if one is None:
    return
  if values.get("step") not in (None, one.step):
    notes.append(f"{path} is of step {values['step']}; its run has come to {one.step}")
  one.metrics |= {name: value for name, value in values["metrics"].items() if isinstance(value, (int, float))}
  one.own -= set(values["metrics"])
  one.intervals |= values["intervals"]


def workdir_of(path: pathlib.Path, checkpoint: str) -> pathlib.Path | None:
  """The workdir that a checkpoint was in, or else the one that its evaluation's output lies in."""
  named = pathlib.Path(checkpoint)
  for place in (named, *list(named.parents)[:2], *path.parents):
    if (place / "metrics.jsonl").is_file() and (place / "config.json").is_file():
      return place
  return None
