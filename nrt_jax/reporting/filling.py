"""Puts runs into the cells of tables: a run belongs to a cell whose config it has, whatever its seed."""

import json
import pathlib
import re
import statistics
from typing import NamedTuple

from nrt_jax import resuming
from nrt_jax.files import json_safe
from nrt_jax.reporting import missing
from nrt_jax.reporting.results import Found
from nrt_jax.reporting.tables import Cell, Column, Table

# Keys that say nothing of what was trained: seeds make a cell's deviation, evaluations are named by their metrics, and
# the rest is where, how fast and in which portions.
IGNORED = (
  *(key for key in resuming.FREE if key not in ("total_steps", "stop")), "seed", "evaluation", "sampling.wave_prompts",
  "sampling.cache_stages",
)  # fmt: skip
SHOWN = 4  # differences of a run that fits nowhere


class Value(NamedTuple):
  """Ours, in the paper's unit."""

  mean: float
  deviation: float | None  # over seeds, unbiased; None for one
  seeds: int
  interval: tuple[float, float] | None  # of the only seed, of 95 %, where its evaluation says so
  places: tuple[str, ...]  # the runs


class Filled(NamedTuple):
  """A cell and what there is for it: a value, or the number of the commands that lead to one, or neither."""

  cell: Cell
  value: Value | None
  number: int | None


class FilledTable(NamedTuple):
  table: Table
  rows: list  # of lists of Filled


class Report(NamedTuple):
  tables: list  # of FilledTables
  commands: list  # of missing.Commands
  notes: list  # of texts, about runs


def fill(tables: list[Table], file: pathlib.Path, found: list[Found], load) -> Report:
  """Fills tables that `file` declares. load(path, overrides) -> RunConfigs, as `nrt-jax train` would read them."""
  commands, notes, used, nearest = missing.Book(file), [], set(), {}
  filled, configs = [], {}
  for table in tables:
    rows = []
    for cells in table.cells():
      line = []
      for cell in cells:
        own = matching(cell, stages_of(cell, file, load, configs), found, nearest)
        used |= {one.place for one in own}
        value = measured(cell, own, notes)
        number = None if value is not None or cell.row.absent else commands.add(cell, own)
        line.append(Filled(cell, value, number))
      rows.append(line)
    filled.append(FilledTable(table, rows))
  notes += [unused(one, nearest.get(one.place)) for one in found if one.place not in used]
  return Report(filled, commands.entries(), list(dict.fromkeys(notes)))


def stages_of(cell: Cell, file: pathlib.Path, load, configs: dict) -> list | None:
  """The RunConfigs of a cell; none for a model as it is, None where no config makes it."""
  if cell.row.config is None:
    return None
  if cell.row.untrained:
    return []
  key = (cell.row.config, cell.overrides)
  if key not in configs:
    configs[key] = load(missing.config_path(file, cell.row.config), [f"--config.{one}" for one in cell.overrides])
  return configs[key]


# ---- Which run is of which cell ------------------------------------------------------------------------------------


def matching(cell: Cell, stages: list | None, found: list[Found], nearest: dict) -> list[Found]:
  """The finished runs of a cell, by seed. Writes down near misses.

  nearest: place -> (differences, the row that they are from), of the row that a run is nearest to.
  """
  own = {}
  for one in found if stages is not None else ():
    differs = differences(stages, cell.model, one)
    if not differs and one.finished:
      own.setdefault(one.seed, []).append(one)
    elif bool(one.stages) == bool(stages) and len(differs) < len(nearest.get(one.place, (differs + [""],))[0]):
      nearest[one.place] = (differs, cell.row.name)
  return [one for seed in sorted(own) for one in own[seed]]


def differences(stages: list, model: str | None, run: Found) -> list[str]:
  """What of a run is not as a cell has it, as texts."""
  if len(stages) != len(run.stages):
    return [f"stages ({len(run.stages)}, not {len(stages)})"]
  differs = [] if same_model(model, run.model) else [f"model.path ({shown(run.model)}, not {model})"]
  for wanted, own in zip(stages, run.stages):
    changes = resuming.config_changes(wanted, own, ())
    for key, before, now in ((change.key, change.before, change.now) for change in changes):
      if key != "model.path" and not resuming.within(key, IGNORED) and not same_place(key, before, now):
        differs.append(f"{key} ({shown(now)}, not {shown(before)})")
  return list(dict.fromkeys(differs))


def same_model(name: str | None, path: str | None) -> bool:
  """Whether a path is a directory of the model: one of its parts is the last part of the model's name.

  So it is in copies (models/Llama-3.1-8B) and in the hub's cache (models--meta-llama--Llama-3.1-8B/snapshots/...).
  """
  wanted = (name or "").split("/")[-1].lower()
  return bool(wanted) and wanted in re.split(r"/|--", (path or "").lower())


def same_place(key: str, wanted, own) -> bool:
  """Whether a file is the one that a config names, wherever it lies: they have the same last name."""
  if key not in resuming.PLACES or key == "model.path":
    return False
  return wanted is None or _last(wanted) == _last(own)


def _last(place) -> str:
  name = str(place).removeprefix("hub:").rstrip("/").split("/")[-1]
  return re.sub(r"\.(jsonl|json|csv|parquet|jinja)$", "", name)


def shown(value) -> str:
  text = json.dumps(json_safe(value), ensure_ascii=False)
  return text if len(text) <= 60 else text[:57] + "..."


def unused(run: Found, nearest) -> str:
  """Why a run is in no cell."""
  if nearest is None:
    return f"{run.place} fits no cell"
  differs, row = nearest
  if not differs:
    return f"{run.place} is left out of {row}: it is at step {run.step} of {run.steps}"
  more = f" and {len(differs) - SHOWN} more" if len(differs) > SHOWN else ""
  return f"{run.place} fits no cell; the nearest is {row}, but for {', '.join(differs[:SHOWN])}{more}"


# ---- What they measured --------------------------------------------------------------------------------------------


def measured(cell: Cell, own: list[Found], notes: list) -> Value | None:
  """The mean over the seeds of the runs of a cell that measured it."""
  by_seed = {}
  for one in own:
    value = number_of(cell.column, one)
    if value is None:
      continue
    if one.seed in by_seed:
      first = by_seed[one.seed][0].place
      notes.append(f"{one.place} is left out of {cell.row.name}: {first} has the same seed, {one.seed}")
      continue
    by_seed[one.seed] = (one, value)
    notes += [own_note(cell.column, one)] if metric_of(cell.column, one) in one.own else []
  if not by_seed:
    return None
  values, places = [value for _, value in by_seed.values()], tuple(one.place for one, _ in by_seed.values())
  if len(values) > 1:
    return Value(statistics.fmean(values), statistics.stdev(values), len(values), None, places)
  ((only, value),) = by_seed.values()
  return Value(value, None, 1, interval_of(cell.column, only), places)


def own_note(column: Column, run: Found) -> str:
  """Says that a number is what a run measured of itself, which may be of few questions."""
  limit = run.stages[-1].evaluation.data and run.stages[-1].evaluation.data.limit
  few = f", of {limit} questions" if limit else ""
  return f"{column.name} of {run.place} is of the last evaluation during its training{few}"


def number_of(column: Column, run: Found) -> float | None:
  """Our number of a column, in the paper's unit; None where it was not measured."""
  if column.mean_of:
    parts = [number_of(part, run) for part in column.mean_of]
    return None if None in parts else statistics.fmean(parts)
  name = metric_of(column, run)
  return None if name is None else run.metrics[name] * column.scale


def interval_of(column: Column, run: Found) -> tuple[float, float] | None:
  pair = run.intervals.get(metric_of(column, run))
  return None if pair is None else tuple(end * column.scale for end in pair)


def metric_of(column: Column, run: Found) -> str | None:
  return next((name for name in column.metrics if name in run.metrics), None)
