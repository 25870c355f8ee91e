"""Tables of papers: what each declares, and where each of its numbers comes from. experiments/tables has the papers'.

A file of tables is Python with get_tables() -> list[Table]. filling.py puts runs into them, rendering.py writes them.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from nrt_jax.errors import UserError

UNKNOWN, NONE = "?", "-"  # in Row.paper: nobody told us the paper's number | the paper has no such number


@dataclass(frozen=True)
class Source:
  """Where numbers come from: of which paper they are, and in what they were read."""

  paper: str  # "arXiv 2602.11549"
  read_in: str  # "full text", "the authors' repository", somebody's notes
  table: str = "number unknown"  # which of the paper's tables, as it numbers them

  def __str__(self):
    return f"{self.paper}, table: {self.table}; read in {self.read_in}"


class PaperNumber(NamedTuple):
  """A number as the paper writes it, so that no digit is added or lost. None: not known; "-": it has none there."""

  text: str | None
  source: Source | None

  @property
  def known(self) -> bool:
    return self.text not in (None, NONE)


@dataclass(frozen=True)
class Column:
  """What is measured."""

  name: str
  metrics: tuple[str, ...] = ()  # where our number is found, by name; the first that a run has
  scale: float = 1.0  # ours times this is in the paper's unit
  digits: int = 1  # of ours behind the point
  set: str = ""  # the built-in set with which `nrt-jax evaluate` measures it
  evaluate: tuple[str, ...] = ()  # its other flags, or without a set all of them; neither: it does not
  harness: str = ""  # or the task of lm-evaluation-harness with which `nrt-jax harness` does
  mean_of: tuple["Column", ...] = ()  # or the mean of these, where a run has them all
  model: str | None = None  # of all its cells, where columns are models
  overrides: tuple[str, ...] = ()  # KEY=VALUE of the config in all its cells
  absent: str = ""  # why no command of ours measures it


@dataclass(frozen=True)
class Row:
  """A method: the paper's numbers, and the config with which we would get ours."""

  name: str
  paper: str  # a number for each column, split by blanks; "?" is not known, "-" does not exist
  config: str | None = None  # file with get_config(), relative to the file of the table
  overrides: tuple[str, ...] = ()  # KEY=VALUE
  model: str | None = None  # instead of the table's: the last part of the model's name on the hub
  untrained: bool = False  # the model as it is, evaluated in the form of `config`
  absent: str = ""  # why no config of ours makes it
  source: Source | None = None  # instead of the table's


class Cell(NamedTuple):
  """One place of a table, and what would have to be run for it."""

  row: Row
  column: Column
  paper: PaperNumber
  model: str | None
  overrides: tuple[str, ...]

  @property
  def absent(self) -> str:
    return self.row.absent or self.column.absent


@dataclass(frozen=True)
class Table:
  """One table of a paper."""

  name: str  # a word, for file names and labels
  title: str
  columns: tuple[Column, ...]
  rows: tuple[Row, ...]
  source: Source
  model: str | None = None  # that rows train, where they or the columns name no other
  notes: tuple[str, ...] = ()  # what a reader must know to compare

  def __post_init__(self):
    for what, parts in (("columns", self.columns), ("rows", self.rows)):
      names = [part.name for part in parts]
      twice = sorted({name for name in names if names.count(name) > 1})
      if twice or not names:
        raise UserError(f"table {self.name}: {what}: found {twice or 'none'}, allowed: one or more, each once")
    for row in self.rows:
      where = f"table {self.name}: row {row.name}"
      if len(row.paper.split()) != len(self.columns):
        found = len(row.paper.split())
        raise UserError(f"{where}: paper: found {found} numbers, allowed: {len(self.columns)}, one for each column")
      if (row.config is None) == (not row.absent):
        raise UserError(f"{where}: allowed: either a config, or in `absent` why there is none")

  def cells(self) -> list[list[Cell]]:
    """Rows of cells."""
    return [[self._cell(row, *pair) for pair in zip(self.columns, row.paper.split())] for row in self.rows]

  def _cell(self, row: Row, column: Column, text: str) -> Cell:
    number = PaperNumber(None, None) if text == UNKNOWN else PaperNumber(text, row.source or self.source)
    return Cell(row, column, number, column.model or row.model or self.model, row.overrides + column.overrides)


def require(found, where: str) -> list[Table]:
  """What get_tables() returned, if it is a list of tables. UserError if not."""
  if not isinstance(found, (list, tuple)) or not found or not all(isinstance(one, Table) for one in found):
    raise UserError(f"{where}: get_tables() returned {type(found).__name__}, allowed: a list of one or more Table")
  names = [table.name for table in found]
  if len(set(names)) < len(names):
    raise UserError(f"{where}: get_tables(): found the names {', '.join(names)}, allowed: each once")
  return list(found)


def percent(name: str, *metrics: str, **others) -> Column:
  """A column in per cent of what we have as shares."""
  return Column(name, metrics, scale=100.0, **others)


def with_model(column: Column, name: str, model: str, *overrides: str) -> Column:
  """The same measure of another model, under another name."""
  return dataclasses.replace(column, name=name, model=model, overrides=column.overrides + overrides)
