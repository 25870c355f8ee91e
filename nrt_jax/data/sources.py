"""Question-answer pairs as text: from files, the hub or built-in tasks, by the keys `data` of a config."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nrt_jax import errors
from nrt_jax.data import columns, prompts, readers
from nrt_jax.tasks import multiple_choice
from nrt_jax.tasks import table as tasks

TASK = "task:"
OVERLONG_TRACE = ("drop", "cut", "error")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where the examples come from and which of them are used."""

  source: str = "task:running_sum"  # .jsonl, .json, .csv or .parquet file; "hub:owner/name[:config]"; "task:<name>"
  split: str = "train"  # of a hub data set or a task; a file has none
  question_column: str = "question"  # a text, or a conversation whose last turn is the user's
  answer_column: str = "answer"  # "reward_model.ground_truth" reaches into a column that holds an object
  answer_after: str | None = None  # the answer is what follows the last such text: "####" for GSM8K's numbers
  trace_column: str | None = None  # a given trace; an example without one (absent, null or "") has none
  choices_column: str | None = None  # list of choices, shown as "(A) ..." below the question; the answer is its letter
  messages_column: str | None = None  # replaces question and answer: the last assistant turn is the answer (tulu 3)
  document_column: str | None = None  # replaces question and answer: plain text, cut at a random token
  horizon: int = 1  # tokens of a document behind the cut: the answer, without end token
  world_column: str | None = None  # what an environment knows of an example: see docs/environments.md
  weight_column: str | None = None  # how often an example is drawn: in proportion to this number; None = all alike
  shuffle_seed: int | None = None  # shuffles the source before offset and limit; None = its own order
  offset: int = 0  # examples skipped at the start
  limit: int | None = None  # examples used at most; None = all
  examples: int = 10000  # how many a task makes (at most, if it has a given number); of no meaning elsewhere
  task_options: tuple = ()  # a task's own options, as a mapping or (name, value) pairs
  max_trace_length: int = 0  # tokens, columns for given traces; 0 = given traces are not used
  packing: int = 0  # columns of a row that holds as many whole examples as fit (sft); 0 = one per row. Steps count rows
  overlong_trace: str = "drop"  # "drop" the example, "cut" the trace's end, or "error"

  def __post_init__(self):
    object.__setattr__(self, "task_options", errors.pairs("data.task_options", self.task_options))
    leasts = {"offset": 0, "limit": 1, "examples": 1, "max_trace_length": 0, "packing": 0, "shuffle_seed": 0}
    leasts["horizon"] = 1
    for key, least in leasts.items():
      value = getattr(self, key)
      if value is not None and value < least:
        raise errors.UserError(f"data.{key}: found {value}, allowed: {least} or more")
    errors.require_choice("data.overlong_trace", self.overlong_trace, OVERLONG_TRACE)
    without_texts = self.choices_column or self.source.startswith(TASK)
    if self.answer_after == "" or (self.answer_after and without_texts):
      found = f"found {self.answer_after!r} with source {self.source!r}, choices_column {self.choices_column!r}"
      raise errors.UserError(f"data.answer_after: {found}, allowed: null, or a text in answers of a file or the hub")
    others = ("answer_after", "trace_column", "choices_column", "messages_column")
    other = next((key for key in others if getattr(self, key)), None)
    if self.document_column and (other or self.source.startswith(TASK)):
      beside = f"data.{other}" if other else "a task, which has no columns"
      raise errors.UserError(f"data.document_column: found {self.document_column!r} with {beside}, allowed: null")
    if self.weight_column and (self.packing or self.source.startswith(TASK)):
      without = "a task, which has no columns" if self.source.startswith(TASK) else "data.packing"
      raise errors.UserError(f"data.weight_column: found {self.weight_column!r} with {without}, allowed: null")


@dataclasses.dataclass(frozen=True)
class Example:
  """One question-answer pair as text."""

  question: str | tuple  # a text, or the turns before the answer as dicts of role and content
  answer: str
  trace: str | None
  where: str  # "file:line", for messages
  weight: float = 1.0  # how often it is drawn, compared with others
  world: str | None = None  # what an environment knows of it
  shots: tuple = ()  # worked Examples in front of the question
  group: str | None = None  # the part of the data set that it belongs to, where results are told apart


class Source(NamedTuple):
  """Random access to a data set of `length` examples."""

  length: int
  example: Callable[[int], Example]


def load_examples(config: DataConfig) -> list:
  """Reads the examples that `config` names, in order.

  Raises UserError: missing file or hub id, malformed line (with file and line), missing column (with those found),
  empty data set.
  """
  source = _open(config)
  if source.length == 0:
    raise errors.UserError(f"data.source: {config.source} is an empty data set")
  if config.offset >= source.length:
    raise errors.UserError(f"data.offset: found {config.offset}, but {config.source} holds {source.length} examples")
  order = np.arange(source.length)
  if config.shuffle_seed is not None:
    order = np.random.default_rng(config.shuffle_seed).permutation(source.length)
  stop = source.length if config.limit is None else config.offset + config.limit
  examples = [source.example(int(i)) for i in order[config.offset : stop]]
  if config.trace_column and all(example.trace is None for example in examples):
    raise errors.UserError(f"data.trace_column: no example of {config.source} has a {config.trace_column!r}")
  return examples


def _open(config) -> Source:
  if config.source.startswith(TASK):
    return _open_task(config)
  if config.source.startswith(prompts.HUB):
    return _open_hub(config)
  rows = _read_file(config)
  return Source(len(rows), lambda i: _to_example(config, rows[i][1], rows[i][0]))


def _read_file(config):
  path = pathlib.Path(config.source)
  if path.suffix not in readers.READERS:
    others = f"{prompts.HUB}owner/name, {TASK}<{'|'.join(tasks.TASKS)}>"
    found = errors.choices(path.suffix, readers.READERS)
    raise errors.UserError(f"data.source: {config.source}: file type: {found}; other sources: {others}")
  if not path.is_file():
    raise errors.UserError(f"data.source: {path}: no such file")
  return readers.READERS[path.suffix](path)


def task_of(config: DataConfig) -> tasks.Task | None:
  """The task that makes the examples; None where they are read."""
  if not config.source.startswith(TASK):
    return None
  return tasks.make_task(config.source.removeprefix(TASK), config.split, dict(config.task_options))


def _open_task(config) -> Source:
  task = task_of(config)
  length = config.examples if task.length is None else min(config.examples, task.length)
  world = getattr(task, "world", lambda i: None)
  return Source(length, lambda i: Example(*task.example(i), f"{config.source}[{config.split}]:{i}", world=world(i)))


def _open_hub(config) -> Source:
  table = hub_table(config.source, config.split)
  return Source(len(table), lambda i: _to_example(config, table[i], f"{config.source}[{config.split}]: row {i + 1}"))


def hub_table(source: str, split: str):
  """A data set of the hub, "hub:owner/name[:config]", as a sequence of rows. UserError where it can't be loaded."""
  import datasets  # here: it takes seconds to import and most runs don't need it

  name, _, subset = source.removeprefix(prompts.HUB).partition(":")
  try:
    return datasets.load_dataset(name, subset or None, split=split)
  except Exception as error:  # whatever the hub, the network or the files make it raise
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise errors.UserError(f"data.source: {source}: can't be loaded: {reason[0]}") from error


def _to_example(config, row, where) -> Example:
  trace = None
  if config.trace_column and not columns.missing(row, config.trace_column):
    trace = columns.text(row, config.trace_column, where)
  if config.document_column:
    question, answer = columns.text(row, config.document_column, where), ""
  elif config.messages_column:
    question, answer = columns.split_messages(columns.column(row, config.messages_column, where), where)
  elif config.choices_column:
    question, answer = _letter_choices(config, row, where)
  else:
    question = columns.question(row, config.question_column, where)
    answer = columns.text(row, config.answer_column, where)
  if config.answer_after:
    answer = columns.behind(answer, config.answer_after, where)
  weight = columns.weight(row, config.weight_column, where) if config.weight_column else 1.0
  world = columns.text(row, config.world_column, where) if config.world_column else None
  return Example(question, answer, trace, where, weight, world)


def _letter_choices(config, row, where):
  return letter_choices(row, (config.question_column, config.choices_column, config.answer_column), where)


def letter_choices(row, names: tuple, where: str) -> tuple[str, str]:
  """(question with its choices below, letter of the right one); names: the columns of question, choices and answer."""
  choices, answer = (columns.column(row, name, where) for name in names[1:])
  if not isinstance(choices, list) or not 2 <= len(choices) <= 26:
    raise errors.UserError(f"{where}: column {names[1]!r} must hold a list of 2 to 26 choices")
  letter = multiple_choice.letter_of(answer, choices)
  if letter is None:
    raise errors.UserError(f"{where}: found the answer {answer!r}, allowed: index (from 0), letter or text of a choice")
  return multiple_choice.lettered(columns.text(row, names[0], where), choices), letter
