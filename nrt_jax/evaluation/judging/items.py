"""What is judged: the answers of one or two files of completions, paired by question and sample."""

import json
import pathlib
from collections import Counter
from dataclasses import dataclass

from nrt_jax.data import readers
from nrt_jax.errors import UserError

REFERENCE = "reference"


@dataclass(frozen=True)
class Row:
  """The part of a Completion (evaluation/held_out.py) that is read here."""

  question: str  # as text; turns of a conversation behind one another
  reference: str | None
  answer: str | None  # None: the model gave none
  sample: int
  group: tuple  # (question as JSON, how many rows of this question and sample stand before)


@dataclass(frozen=True)
class Item:
  """One answer to score, or two to compare."""

  question: str
  reference: str | None
  answers: tuple  # (of A,) or (of A, of B); None where there is none
  sample: int
  group: int  # the question's number: samples of one question share it


def read(path: str, traces: bool = False) -> list[Row]:
  """The rows of a file that `nrt-jax evaluate --completions` wrote. traces: answers begin with theirs.

  UserErrors name file and line.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise UserError(f"{path}: no such file, allowed: a file of nrt-jax evaluate --completions")
  seen, rows = Counter(), []
  for where, line in readers.read_jsonl(file):
    row = _row(where, line, traces)
    again = seen[row.group, row.sample]
    seen[row.group, row.sample] += 1
    rows.append(Row(row.question, row.reference, row.answer, row.sample, (row.group, again)))
  if not rows:
    raise UserError(f"{path}: holds no completion")
  return rows


def _row(where: str, line: dict, traces: bool) -> Row:
  asked, answer, sample, trace = (line.get(key) for key in ("question", "answer", "sample", "trace"))
  if "answer" not in line or not isinstance(answer, str | None):
    raise UserError(f"{where}: answer: found {_shown(line, 'answer')}, allowed: a text, or null for none")
  if not isinstance(sample, int | None) or isinstance(sample, bool):
    raise UserError(f"{where}: sample: found {sample!r}, allowed: a whole number")
  if traces and not isinstance(trace, str):
    raise UserError(f"{where}: trace: found {_shown(line, 'trace')}, allowed with --traces: a text")
  text = _question(where, line)
  reference = line.get("reference")
  if answer is not None and not answer.strip():
    answer = None
  if traces and answer is not None:
    answer = f"{trace.strip()}\n\n{answer}"
  return Row(text, reference if isinstance(reference, str) else None, answer, sample or 0, json.dumps(asked))


def _question(where: str, line: dict) -> str:
  asked = line.get("question")
  if isinstance(asked, str):
    return asked
  turns = asked if isinstance(asked, list) and asked else [None]
  if not all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns):
    raise UserError(f"{where}: question: found {_shown(line, 'question')}, allowed: a text, or a list of messages")
  return "\n\n".join(f"{turn.get('role', 'user')}: {turn['content']}" for turn in turns)


def _shown(line: dict, key: str) -> str:
  return repr(line[key])[:60] if key in line else "nothing"


def pair(rows: list, others: list | None = None, against: str | None = None, limit: int | None = None):
  """(Items, how many rows of either file have no partner): alone, against `others`, or against the reference answers.

  limit: of so many questions, the first ones. UserError where no row has a partner, or a reference is missing.
  """
  numbers = {group: i for i, group in enumerate(dict.fromkeys(row.group for row in rows))}
  if limit is not None:
    rows = [row for row in rows if numbers[row.group] < limit]
    others = others and [row for row in others if numbers.get(row.group, 0) < limit]
  if others is None:
    if against == REFERENCE and not all(row.reference for row in rows):
      raise UserError("--against: found reference, but a completion has none, allowed: rows with a reference each")
    made = [(row, (row.answer, row.reference) if against == REFERENCE else (row.answer,)) for row in rows]
    return [_item(row, answers, numbers) for row, answers in made], (0, 0)
  partner = {(row.group, row.sample): row for row in others}
  both = [row for row in rows if (row.group, row.sample) in partner]
  if not both:
    raise UserError("the two files share no question with the same sample number, allowed: answers to the same data")
  items = [_item(row, (row.answer, partner[row.group, row.sample].answer), numbers) for row in both]
  return items, (len(rows) - len(both), len(others) - len(both))


def _item(row: Row, answers: tuple, numbers: dict) -> Item:
  return Item(row.question, row.reference, answers, row.sample, numbers[row.group])
