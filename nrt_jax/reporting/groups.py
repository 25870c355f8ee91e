"""Which runs are seeds of one another, what tells the others apart, and their curves: means with the range of seeds."""

import fnmatch
import json
import os
import pathlib
from dataclasses import dataclass

from nrt_jax.errors import UserError
from nrt_jax.reporting import runs

SEED = "seed"  # the config key in which runs of one line differ
METHOD = "algorithm.name"
POINTS = 300  # of a curve: what a screen can show
LABEL_KEYS = 3  # as many keys name a line; where more differ, its directory does
ABSENT = "–"  # of a key that a config does not have


@dataclass(frozen=True)
class Run:
  """One workdir: its metrics by name, as (step, value) without nulls, and its config by dotted key."""

  directory: str
  series: dict
  config: dict

  @property
  def seed(self):
    return self.config.get(SEED)


@dataclass(frozen=True)
class Group:
  """Runs whose configs differ in nothing but the seed (and in keys that the user ignores)."""

  label: str
  runs: tuple


def read(directory: str) -> Run:
  """Reads a workdir. One without config.json, as of a run by hand, has an empty config."""
  series = {}
  for line in runs.read_metrics(directory):
    for name, value in line.items():
      if name != "step" and value is not None:
        series.setdefault(name, []).append((line["step"], value))
  return Run(directory, series, read_config(directory))


def read_config(directory: str) -> dict:
  """config.json of a workdir by dotted key; of a list of stages, by the names of these. {} without the file."""
  path = pathlib.Path(directory) / "config.json"
  if not path.is_file():
    return {}
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path}: not JSON: {error}") from error
  if not isinstance(values, dict):
    raise UserError(f"{path}: found {values!r:.60}, allowed: the config of a run")
  return dict(_flat(values, ""))


def _flat(value, prefix: str):
  if isinstance(value, dict) and value:
    for key, item in value.items():
      yield from _flat(item, f"{prefix}.{key}" if prefix else key)
  elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
    for number, item in enumerate(value):
      yield from _flat(item, f"{prefix}.{item.get('name', number)}")
  else:
    yield prefix, value


def grouped(found: list[Run], ignored=()) -> list[Group]:
  """The runs in groups, in order of their first ones. ignored: keys, or patterns as in 'data.*', besides the seed.

  A run without a config is a group of its own.
  """
  kinds = {}
  for run in found:
    own = {key: value for key, value in run.config.items() if not _ignored(key, ignored)}
    kinds.setdefault(json.dumps(own, sort_keys=True) if own else run.directory, []).append(run)
  members = [tuple(kind) for kind in kinds.values()]
  return [Group(label, kind) for label, kind in zip(labels([kind[0] for kind in members], ignored), members)]


def _ignored(key: str, ignored) -> bool:
  return key == SEED or any(fnmatch.fnmatch(key, pattern) for pattern in ignored)


def differing(found: list[Run], ignored=()) -> list[str]:
  """The keys whose values are not the same in all configs, absence being a value."""
  keys = dict.fromkeys(key for run in found for key in run.config if not _ignored(key, ignored))
  return [key for key in keys if len({shown(run.config, key) for run in found}) > 1]


def shown(config: dict, key: str) -> str:
  """A value as it is written in JSON, but text without quotes."""
  if key not in config:
    return ABSENT
  value = config[key]
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def labels(found: list[Run], ignored=()) -> list[str]:
  """A short name for each run that tells it from the others: its method, then the keys that differ within a method."""
  names = [""] * len(found)
  for method in dict.fromkeys(run.config.get(METHOD) for run in found):
    same = [i for i, run in enumerate(found) if run.config.get(METHOD) == method]
    keys = differing([found[i] for i in same], ignored)
    for i in same:
      words = [f"{key.rsplit('.', 1)[-1]}={shown(found[i].config, key)}" for key in keys]
      fits = method is not None and len(keys) <= LABEL_KEYS and max(map(len, words), default=0) <= 40
      names[i] = " ".join([method, *words]) if fits else _last(found[i].directory)
  again = {name for name in names if names.count(name) > 1}
  return [found[i].directory if name in again else name for i, name in enumerate(names)]


def _last(directory: str) -> str:
  return os.path.basename(os.path.normpath(directory)) or directory


# ------------------------------------------------------------------------------------------------------------ curves


def curve(group: Group, name: str, last_step: int) -> list[dict]:
  """The points of a metric, by step: {"s": step, "m": mean over runs, "l" and "h": their range, "n": how many have it}.

  A page of `last_step` steps has POINTS of them at most, each of the means of runs' values since the point before.
  """
  width = max(1, -(-last_step // POINTS))
  places = {}
  for run in group.runs:
    bins = {}
    for step, value in run.series.get(name, ()):
      bins.setdefault(-(-step // width) * width, []).append(value)
    for step, values in bins.items():
      places.setdefault(min(step, last_step), []).append(sum(values) / len(values))
  return [
    {"s": step, "m": sum(own) / len(own), "l": min(own), "h": max(own), "n": len(own)}
    for step, own in sorted(places.items())
  ]


def final(run: Run, name: str, last: int) -> float | None:
  """The mean of a run's last values of a metric, None without one."""
  values = [value for _, value in run.series.get(name, ())][-last:]
  return sum(values) / len(values) if values else None


def spread(group: Group, name: str, last: int) -> tuple | None:
  """(mean, lowest, highest) over a group's runs of their `final` values; None where none has one."""
  values = [value for value in (final(run, name, last) for run in group.runs) if value is not None]
  return (sum(values) / len(values), min(values), max(values)) if values else None
