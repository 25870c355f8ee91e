"""What a model wrote to each question, kept in a file as it comes, so that an evaluation goes on where it stopped.

A file belongs to everything that determines what is written but the questions: weights, format, sampling, seed. Its
lines belong to single questions. Grades are not kept: they are given anew, so a grader may change. Questions are put in
fixed batches, and one is only skipped if all of it is known: what is written then is what it would have been without an
interruption, bit for bit.
"""

import dataclasses
import math
import os

from nrt_jax.files import append_json_line, digest, json_safe, read_json_lines

DIGITS = 16  # of a file's name


@dataclasses.dataclass(frozen=True)
class Written:
  """All that the program gave for one question; lists have an entry for each sample."""

  tokens: list  # token ids
  reference_logp: list | None = None  # see held_out.Completion
  reference_logp_empty_trace: float | None = None
  earned: list | None = None
  verdict: list | None = None


class Store:
  """The file of one set and its settings. What other processes add to it later is not seen."""

  def __init__(self, directory: str, name: str, settings: dict):
    self._settings = json_safe(settings)
    self.path = os.path.join(directory, f"{name}.{digest(self._settings)[:DIGITS]}.jsonl")
    self._known = {}
    for line in read_json_lines(self.path):
      if isinstance(line, dict) and (known := _read(line)) is not None:
        self._known[line["question"]] = known

  def find(self, dataset, index: int) -> Written | None:
    """What is known of a question of a TokenDataset."""
    return self._known.get(question(dataset, index))

  def add(self, dataset, index: int, written: Written) -> None:
    """Appends a line. What holds a number that JSON can't is left out."""
    values = {name: value for name, value in dataclasses.asdict(written).items() if value is not None}
    if not _finite(values):
      return
    if not os.path.exists(self.path):
      os.makedirs(os.path.dirname(self.path), exist_ok=True)
      append_json_line(self.path, {"settings": self._settings})
    key = question(dataset, index)
    append_json_line(self.path, {"question": key, **values})
    self._known[key] = written


def question(dataset, index: int) -> str:
  """Names a question by its place, which seeds its samples, and by its tokens."""
  columns = (dataset.prompts, dataset.answers, dataset.hints)
  return digest([index, *(None if column is None else column[index].tolist() for column in columns)])


def _read(line: dict) -> Written | None:
  """None for what is no line of ours, as the settings are."""
  values = {name: value for name, value in line.items() if name != "question"}
  if "question" not in line or not values.keys() <= {field.name for field in dataclasses.fields(Written)}:
    return None
  tokens = values.get("tokens")
  whole = isinstance(tokens, list) and all(isinstance(ids, list) for ids in tokens)
  return Written(**values) if whole else None


def _finite(value) -> bool:
  values = value.values() if isinstance(value, dict) else value
  if isinstance(values, (int, float)):
    return math.isfinite(values)
  return all(map(_finite, values))
