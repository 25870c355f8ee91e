"""Built-in evaluation sets: where each lies, how its rows are read, asked and graded. A new one is a row of SETS.

`read` turns a row of a file into an Example; its `trace` is a worked solution, which examples in front of a question
show. Licences are those of the sources; nothing of them is part of this package.
"""

import dataclasses
import pathlib
from collections.abc import Callable

from nrt_jax.data import columns, readers, sources
from nrt_jax.data.sources import DataConfig, Example
from nrt_jax.errors import UserError, require_choice
from nrt_jax.tasks import math_answers
from nrt_jax.tasks import table as tasks

HUB = "hub"  # in the place of a directory: the table's data sets of the Hugging Face hub
OF_A_TASK, WORKED = 1000, 100  # questions, and worked examples to draw from, of a task that makes any number


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
  """One row of SETS. Files are named below the directory of all sets; a pattern names one file for each group."""

  source: str  # where it was published
  licence: str
  files: str | None = None  # None: a built-in task
  read: Callable | None = None  # (row, where) -> Example
  grader: str | None = None  # of tasks.GRADERS; None = the task's own
  question: str = "{question}"  # how its question is put
  shots: int = 0  # worked examples, unless evaluation.shots says how many
  train: str | None = None  # a file of worked examples; None = they are taken out of the set itself
  group_column: str | None = None
  groups: int = 0  # how many groups the whole set has, where each is a file
  hub: str | None = None  # "hub:owner/name[:config]"
  hub_split: str = "test"
  hub_train: str | None = None  # its training split, if it has one
  runs_code: bool = False  # grading runs what the model wrote


# ---- Rows ----------------------------------------------------------------------------------------------------------


def number(row, name: str, where: str) -> str:
  """A column as text; a float that is whole, as tables have them, without its ".0"."""
  value = row.get(name)
  return str(int(value)) if isinstance(value, float) and value.is_integer() else columns.text(row, name, where)


def gsm8k(row, where: str) -> Example:
  """The calculator's notes, <<6*7=42>>, are left out of the worked solution."""
  whole = columns.text(row, "answer", where)
  answer = columns.behind(whole, "####", where)
  trace = "".join(part.partition("<<")[0] for part in whole.rpartition("####")[0].split(">>")).strip()
  return Example(columns.text(row, "question", where), answer, trace or None, where)


def mathematics(row, where: str) -> Example:
  r"""`problem` or `question`; the answer as `answer`, else as the last box of `solution`, which is the trace."""
  asked = "problem" if "problem" in row else "question"
  solution = None if columns.missing(row, "solution") else columns.text(row, "solution", where)
  if columns.missing(row, "answer"):
    answer = math_answers.last_boxed(solution or "")
    if answer is None:
      raise UserError(f"{where}: found neither an answer nor a \\boxed{{...}} in the solution")
  else:
    answer = number(row, "answer", where)
  return Example(columns.text(row, asked, where), answer, solution, where)


def olympiad(row, where: str) -> Example:
  """`final_answer` and `solution` are lists; what a question builds on is its `context`."""
  answers, solutions = columns.column(row, "final_answer", where), row.get("solution") or [None]
  if not isinstance(answers, list) or not answers or not isinstance(solutions, list):
    raise UserError(f"{where}: columns 'final_answer' and 'solution' must hold lists")
  asked = [row["context"]] if row.get("context") else []
  asked.append(columns.text(row, "question", where))
  return Example("\n\n".join(asked), ", ".join(map(str, answers)), solutions[0], where)


def svamp(row, where: str) -> Example:
  body = columns.text(row, "Body", where).strip()
  asked = f"{body if body[-1] in '.!?' else body + '.'} {columns.text(row, 'Question', where)}"
  return Example(asked, number(row, "Answer", where), None, where)


def big_bench_hard(row, where: str) -> Example:
  return Example(columns.text(row, "input", where), columns.text(row, "target", where).strip(), None, where)


def choices(row, where: str) -> Example:
  return Example(*sources.letter_choices(row, ("question", "choices", "answer"), where), None, where)


def human_eval(row, where: str) -> Example:
  """The answer is the whole function, as the question asks for it."""
  prompt = columns.text(row, "prompt", where)
  for name in ("test", "entry_point"):
    columns.text(row, name, where)
  return Example(prompt, prompt + columns.text(row, "canonical_solution", where), None, where)


# ---- The table -----------------------------------------------------------------------------------------------------

LETTER = "{question}\n\nAnswer with the letter of the right choice."
QWEN = "github QwenLM/Qwen2.5-Math, evaluation/data"

SETS = {
  "gsm8k": EvaluationSet(
    "github openai/grade-school-math, arXiv 2110.14168", "MIT", "gsm8k/test.jsonl", gsm8k, "gsm8k",
    train="gsm8k/train.jsonl", hub="hub:openai/gsm8k:main", hub_train="train",
  ),
  "svamp": EvaluationSet(
    "arXiv 2103.07191", "MIT", "math_eval/svamp.jsonl", svamp, "gsm8k", hub="hub:ChilleD/SVAMP",
  ),
  "math": EvaluationSet(
    "github hendrycks/math, arXiv 2103.03874", "MIT", "math/test.jsonl", mathematics, "math", train="math/train.jsonl",
    hub="hub:HuggingFaceH4/MATH-500",
  ),
  "aime24": EvaluationSet(
    QWEN, "as the competition's", "math_eval/aime24.jsonl", mathematics, "math",
    hub="hub:HuggingFaceH4/aime_2024", hub_split="train",
  ),
  "amc23": EvaluationSet(QWEN, "as the competition's", "math_eval/amc23.jsonl", mathematics, "math"),
  "minerva_math": EvaluationSet(
    f"{QWEN}, arXiv 2206.14858", "MIT OpenCourseWare's", "math_eval/minerva_math.jsonl", mathematics, "math",
  ),
  "olympiadbench": EvaluationSet(
    f"{QWEN}, arXiv 2402.14008", "Apache 2.0", "math_eval/olympiadbench.jsonl", olympiad, "math",
    hub="hub:Hothan/OlympiadBench:OE_TO_maths_en_COMP", hub_split="train",
  ),
  "bbh": EvaluationSet(
    "github suzgunmirac/BIG-Bench-Hard, arXiv 2210.09261", "MIT", "bbh/*.json", big_bench_hard, "multiple_choice",
    shots=3, groups=27,  # what an answer looks like differs between tasks, and only examples say it
  ),
  "mmlu_stem": EvaluationSet(
    f"{QWEN}, arXiv 2009.03300", "MIT", "math_eval/mmlu_stem.jsonl", choices, "multiple_choice", LETTER,
    group_column="type",
  ),
  "mmlu": EvaluationSet(
    "github hendrycks/test, arXiv 2009.03300", "MIT", "mmlu/test.jsonl", choices, "multiple_choice", LETTER,
    group_column="subject", hub="hub:cais/mmlu:all",
  ),
  "humaneval": EvaluationSet(
    "github openai/human-eval, arXiv 2107.03374", "MIT", "humaneval/HumanEval.jsonl.gz", human_eval,
    question="Complete this Python function. Answer with the whole function.\n\n{question}",
    hub="hub:openai/openai_humaneval", runs_code=True,
  ),
  **{name: EvaluationSet("made here", "that of nrt_jax") for name in tasks.TASKS if name != "verse"},  # needs a file
}  # fmt: skip


# ---- Reading -------------------------------------------------------------------------------------------------------

KEY, PLACE = "evaluation.sets (--sets)", "evaluation.sets_directory (--sets_directory)"


def check(names, directory: str | None) -> None:
  """Raises UserError for a set that is unknown, named twice, or has no file in `directory` (None: not given)."""
  for i, name in enumerate(names):
    require_choice(KEY, name, SETS)
    if name in names[:i]:
      raise UserError(f"{KEY}: found {name!r} twice, allowed: each once")
    if SETS[name].files is None:
      continue
    if directory is None:
      raise UserError(f"{PLACE}: found none for {name}, allowed: a directory with {SETS[name].files}, or {HUB}")
    if directory == HUB and SETS[name].hub is None:
      known = ", ".join(sorted(one for one, row in SETS.items() if row.hub))
      raise UserError(f"{KEY}: found {name!r} with {PLACE} {HUB}, allowed there: {known}")
    if directory != HUB:
      _paths(directory, name)


def data_config(name: str, directory: str | None, most: int | None = None) -> DataConfig:
  """The DataConfig that stands for a set, by which graders know its task, if it is one."""
  row = SETS[name]
  if row.files is None:
    return DataConfig(source=f"task:{name}", split="test", examples=OF_A_TASK if most is None else most)
  return DataConfig(source=row.hub if directory == HUB else str(pathlib.Path(directory) / row.files))


def load(name: str, directory: str | None, most: int | None = None) -> tuple[list, dict]:
  """(Examples, {where: row} of a set whose grading runs code, else {}).

  most: how many a task makes; None: OF_A_TASK.
  """
  row = SETS[name]
  if row.files is None:
    return sources.load_examples(data_config(name, directory, most)), {}
  if directory == HUB:
    found = _table(row, row.hub_split)
  else:
    paths = _paths(directory, name)
    found = [(*one, path.stem if "*" in row.files else None) for path in paths for one in _read(path)]
  if not found:
    raise UserError(f"{PLACE}: {name}: found no rows, allowed: one or more")
  return [_example(row, *one) for one in found], {where: one for where, one, _ in found} if row.runs_code else {}


def worked(name: str, directory: str | None) -> list | None:
  """The Examples of the set's training split; None where there is none."""
  row = SETS[name]
  if row.files is None:
    return sources.load_examples(DataConfig(source=f"task:{name}", split="train", examples=WORKED))
  if directory == HUB:
    return [_example(row, *one) for one in _table(row, row.hub_train)] if row.hub_train else None
  path = None if row.train is None else pathlib.Path(directory) / row.train
  return [_example(row, *one, None) for one in _read(path)] if path is not None and path.is_file() else None


def put(row: EvaluationSet, question: str) -> str:
  """The question as the set puts it."""
  return row.question.replace("{question}", question)


def _example(row: EvaluationSet, where: str, found: dict, group: str | None) -> Example:
  example = row.read(found, where)
  if row.group_column:
    group = columns.text(found, row.group_column, where)
  return dataclasses.replace(example, question=put(row, example.question), group=group)


def _table(row: EvaluationSet, split: str) -> list:
  """(where, row, group) of a data set of the hub."""
  return [(f"{row.hub}[{split}]: row {i}", one, None) for i, one in enumerate(sources.hub_table(row.hub, split), 1)]


def _paths(directory: str, name: str) -> list:
  paths = sorted(pathlib.Path(directory).glob(SETS[name].files))
  if not paths:
    raise UserError(f"{PLACE}: {pathlib.Path(directory) / SETS[name].files}: no such file, for the set {name}")
  return paths


def _read(path) -> list:
  return readers.read_jsonl(path) if path.suffix == ".gz" else readers.READERS[path.suffix](path)
