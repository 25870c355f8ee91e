"""The tables of tasks and graders: `data.source = "task:NAME"` picks a row of TASKS, `grader` keys one of GRADERS."""

import dataclasses
from typing import Protocol

from nrt_jax import errors
from nrt_jax.tasks import countdown, grading, math_answers, multiple_choice
from nrt_jax.tasks.long_answer import LongAnswer
from nrt_jax.tasks.running_sum import RunningSum
from nrt_jax.tasks.verse import Verse


class Task(Protocol):
  """A frozen dataclass whose fields, `split` among them, are its options. Example i depends on them and i alone.

  `grade` (see GRADERS) is None for a task without right answers.
  """

  split: str
  length: int | None  # how many examples there are; None = as many as one asks for

  @property
  def words(self) -> tuple[str, ...]:
    """Every word its texts are made of, for prompts.word_tokenizer."""

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Question, answer, and a trace where this example shows one."""

  def grade(self, completion: str, reference: str) -> bool:
    """Whether the answer text of a completion is right. Must return fast and never raise, whatever the model wrote."""


TASKS = {
  "running_sum": RunningSum,
  "countdown": countdown.Countdown,
  "countdown_small": countdown.SmallCountdown,
  "long_answer": LongAnswer,
  "verse": Verse,
}

# name -> (answer text of a completion, reference answer) -> bool, for data that brings no grader of its own. Each
# returns fast and never raises, whatever the texts are. "none" is for answers that nobody can check.
GRADERS = {
  "exact_match": grading.exact_match,
  "normalised": grading.normalised_match,
  "multiple_choice": multiple_choice.grade,
  "gsm8k": math_answers.grade_gsm8k,
  "math": math_answers.grade_math,
  "countdown": countdown.grade,
  "none": None,
}


def make_task(name: str, split: str, options: dict) -> Task:
  """Builds a task. Raises UserError for an unknown name, an unknown option or a value that the task refuses."""
  errors.require_choice("data.source: task", name, TASKS)
  defaults = {field.name: field.default for field in dataclasses.fields(TASKS[name]) if field.name != "split"}
  for key, value in options.items():
    errors.require_choice(f"data.task_options of {name}", key, defaults)
    kinds = (int, float) if isinstance(defaults[key], float) else (type(defaults[key]),)
    if type(value) not in kinds:
      raise errors.UserError(f"data.task_options.{key}: found {value!r}, allowed: {kinds[-1].__name__}")
  return TASKS[name](split=split, **options)
