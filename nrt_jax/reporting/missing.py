"""The commands that would fill the empty cells of tables."""

import os
import pathlib
import re
import shlex
from typing import NamedTuple

from nrt_jax.reporting.tables import Cell, Column

MODELS, DATA = "MODELS", "DATA"  # in commands, stand for the user's directories of models and of data sets
RUNS = "runs/tables"
EVALUATION = "--config.evaluation."
NAME = f"{EVALUATION}name="


class Commands(NamedTuple):
  """What makes the cells that are marked with this number."""

  number: int
  title: str
  lines: list  # commands for a shell, in order


class Run:
  """One run, or model as it is: how it is made, and what is to be measured of it."""

  def __init__(self, number: int, config: str, cell: Cell, workdirs: list, place: str):
    """workdirs: of runs that are there; place: the directory for what is not."""
    self.number, self.title = number, f"{cell.row.name}, {cell.model or 'your model'}"
    self._config, self._changes = config, [f"--config.{one}" for one in cell.overrides]
    self._model = f"{MODELS}/{cell.model or 'MODEL'}"
    self._trains = not cell.row.untrained and not workdirs
    self._places = workdirs or [place if cell.row.untrained else f"{place}/seed_0"]
    self._from_model = cell.row.untrained
    self._measured = {}  # (command, flags) -> names of sets or tasks

  def measure(self, column: Column) -> None:
    for part in column.mean_of or (column,):
      if part.harness:
        names = self._measured.setdefault(("harness", ()), [])
      elif part.set or part.evaluate:
        names = self._measured.setdefault(("evaluate", part.evaluate), [])
      else:
        continue
      names += [name for name in (part.harness or part.set,) if name and name not in names]

  def lines(self) -> list[str]:
    """Training, where there is no run yet, and then evaluations: one for all sets that are asked alike."""
    found = []
    if self._trains:
      flags = ["--workdir", self._places[0], f"--config.model.path={self._model}", "--config.seed=0"]
      found.append(line(["nrt-jax", "train", "--config", self._config, *flags, *self._changes]))
    for place in self._places:
      source = ("--model", self._model) if self._from_model else ("--checkpoint", place)
      for (command, flags), names in self._measured.items():
        output = ("--output", f"{place}/evaluations/{file_name(command, flags, names)}.json")
        if command == "harness":
          found.append(line(["nrt-jax", command, *source, "--tasks", ",".join(names), *output]))
          continue
        sets = ("--sets", *names, "--sets_directory", DATA) if names else ()
        found.append(
          line(["nrt-jax", command, "--config", self._config, *source, *sets, *self._changes, *flags, *output])
        )
    return found


class Book:
  """Numbers what is missing: one number for each run, whatever tables its cells are in."""

  def __init__(self, file: pathlib.Path):
    self._file = file
    self._runs = {}  # what is run -> Run

  def add(self, cell: Cell, runs: list) -> int | None:
    """The number of the commands that lead to a cell, None if there are none. runs: its runs, which lack the number."""
    config, workdirs = config_path(self._file, cell.row.config), [one.place for one in runs]
    key = (config, cell.overrides, cell.model, cell.row.untrained, *workdirs)
    number = len(self._runs) + 1
    place = f"{RUNS}/{self._file.stem}/{number:02d}_{slug(cell.row.name)}"
    run = self._runs.get(key) or Run(number, config, cell, workdirs, place)
    run.measure(cell.column)
    if not run.lines():
      return None
    self._runs[key] = run
    return run.number

  def entries(self) -> list[Commands]:
    return [Commands(run.number, run.title, run.lines()) for run in self._runs.values()]


def file_name(command: str, flags: tuple, names: list) -> str:
  """A name of its own for each evaluation of a run: its sets and what is set beside them."""
  named = [flag.removeprefix(NAME) for flag in flags if flag.startswith(NAME)]
  beside = [flag.removeprefix(EVALUATION) for flag in flags] if not named else []
  return slug(" ".join([*(["harness"] if command == "harness" else ()), *names, *named, *beside]))


def config_path(file: pathlib.Path, config: str) -> str:
  """Where a config that a table's file names is, from here if it is below."""
  path = os.path.normpath(os.path.join(file.parent, config))
  shorter = os.path.relpath(path)
  return path if shorter.startswith("..") else shorter


def line(words: list[str]) -> str:
  return " ".join(map(shlex.quote, words))


def slug(name: str) -> str:
  return re.sub(r"[^a-z0-9@]+", "_", name.lower()).strip("_")
