"""The commands that would fill the empty cells of tables."""

import os
import pathlib
import re
import shlex
from typing import NamedTuple

from nrt_jax.reporting.tables import Cell, Column

MODELS = "MODELS"  # stands for the user's directory of models, as DATA does for that of data sets, in commands
RUNS = "runs/tables"
NAME = "--config.evaluation.name="
SETS = "--sets"


class Commands(NamedTuple):
  """What makes the cells that are marked with this number."""

  number: int
  title: str
  lines: list  # commands for a shell, in order


class Book:
  """Numbers what is missing: one number for each run, whatever tables its cells are in."""

  def __init__(self, file: pathlib.Path):
    self._file = file
    self._entries = {}  # what is run -> Commands
    self._places = {}  # what is run -> directory for what its commands write

  def add(self, cell: Cell, runs: list) -> int | None:
    """The number of the commands that lead to a cell, None if there are none. runs: its runs, which lack the number."""
    config = config_path(self._file, cell.row.config)
    key = (config, cell.overrides, cell.model, cell.row.untrained, tuple(one.place for one in runs))
    number = len(self._entries) + 1
    place = self._places.get(key, f"{RUNS}/{self._file.stem}/{number:02d}_{slug(cell.row.name)}")
    lines = commands(config, cell, [one.place for one in runs], place)
    if not lines:
      return None
    self._places[key] = place
    entry = self._entries.setdefault(key, Commands(number, f"{cell.row.name}, {cell.model or 'your model'}", []))
    entry.lines.extend(line for line in lines if line not in entry.lines)
    return entry.number

  def entries(self) -> list[Commands]:
    return list(self._entries.values())


def commands(config: str, cell: Cell, workdirs: list, place: str) -> list[str]:
  """The commands for one cell, in order: training, where there is no run yet, and the column's evaluation.

  place: the directory for what they write.
  """
  changes = [f"--config.{one}" for one in cell.overrides]
  model = f"{MODELS}/{cell.model}" if cell.model else f"{MODELS}/MODEL"
  lines, sources = [], [("--checkpoint", workdir) for workdir in workdirs]
  if cell.row.untrained:
    sources = [("--model", model)]
  elif not workdirs:
    workdirs, sources = [f"{place}/seed_0"], [("--checkpoint", f"{place}/seed_0")]
    flags = [f"--config.model.path={model}", "--config.seed=0"]
    lines.append(line(["nrt-jax", "train", "--config", config, "--workdir", workdirs[0], *flags, *changes]))
  for source, folder in zip(sources, workdirs or [place]):
    for name, flags in evaluations(cell.column):
      output = ("--output", f"{folder}/evaluations/{name}")
      lines.append(line(["nrt-jax", "evaluate", "--config", config, *source, *changes, *flags, *output]))
  return lines


def evaluations(column: Column) -> list[tuple[str, tuple]]:
  """(name of a file, flags) of each evaluation of a column; columns of one evaluation have the same."""
  parts = column.mean_of or (column,)
  return [(f"{slug(_name(part))}.json", part.evaluate) for part in parts if part.evaluate]


def _name(column: Column) -> str:
  """Of what is evaluated, a built-in set or data with a name; else of the column."""
  if SETS in column.evaluate:
    return column.evaluate[column.evaluate.index(SETS) + 1]
  return next((flag.removeprefix(NAME) for flag in column.evaluate if flag.startswith(NAME)), column.name)


def config_path(file: pathlib.Path, config: str) -> str:
  """Where a config that a table's file names is, from here if it is below."""
  path = os.path.normpath(os.path.join(file.parent, config))
  shorter = os.path.relpath(path)
  return path if shorter.startswith("..") else shorter


def line(words: list[str]) -> str:
  return " ".join(map(shlex.quote, words))


def slug(name: str) -> str:
  return re.sub(r"[^a-z0-9@]+", "_", name.lower()).strip("_")
