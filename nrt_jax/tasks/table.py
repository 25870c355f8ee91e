"""The tables of tasks and graders: `data.source = "task:NAME"` selects from TASKS, `grader` keys from GRADERS."""

import dataclasses
from typing import Protocol

from nrt_jax import errors
from nrt_jax.tasks import countdown, grading, math_answers, multiple_choice
from nrt_jax.tasks.befunge import Befunge
from nrt_jax.tasks.brainfuck import Brainfuck
from nrt_jax.tasks.facts import Facts
from nrt_jax.tasks.long_answer import LongAnswer
from nrt_jax.tasks.look_up import LookUp
from nrt_jax.tasks.machine import Machine
from nrt_jax.tasks.modular_chain import ModularChain
from nrt_jax.tasks.nim import Nim
from nrt_jax.tasks.orthogonality import Orthogonality
from nrt_jax.tasks.parity import Parity
from nrt_jax.tasks.rearrange import Rearrange
from nrt_jax.tasks.running_sum import RunningSum
from nrt_jax.tasks.verse import Verse
from nrt_jax.tasks.zigzag import Zigzag


class Task(Protocol):
  """A frozen dataclass whose fields, including `split`, are its options. Example i depends only on them and on i.

  `grade` (see GRADERS) is None for a task without right answers.
  """

  split: str
  length: int | None  # number of examples; None = unlimited

  @property
  def words(self) -> tuple[str, ...]:
    """All words in its texts, for prompts.word_tokenizer."""

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Question, answer, and a trace if this example shows one."""

  def grade(self, completion: str, reference: str) -> bool:
    """Whether the answer text of a completion is right. Must be fast and never raise, for any text."""

  def chance(self) -> float | None:
    """The probability that random words in the format of an answer are right (chance.py); None where not known."""

  # And where an environment may read it: world(index) -> str, what it knows of an example.


TASKS = {
  "running_sum": RunningSum,
  "countdown": countdown.Countdown,
  "countdown_small": countdown.SmallCountdown,
  "facts": Facts,
  "long_answer": LongAnswer,
  "verse": Verse,
  "zigzag": Zigzag,
  "parity": Parity,
  "modular_chain": ModularChain,
  "rearrange": Rearrange,
  "look_up": LookUp,
  "orthogonality": Orthogonality,
  "machine": Machine,
  "nim": Nim,
  "brainfuck": Brainfuck,
  "befunge": Befunge,
}

# name -> (answer text of a completion, reference answer) -> bool, for data without a grader of its own. All are fast
# and never raise, for any texts. "none" is for answers that cannot be checked.
GRADERS = {
  "exact_match": grading.exact_match,
  "normalised": grading.normalised_match,
  "multiple_choice": multiple_choice.grade,
  "gsm8k": math_answers.grade_gsm8k,
  "math": math_answers.grade_math,
  "countdown": countdown.grade,
  "none": None,
}


# name -> answer text of a completion -> the text by which a majority vote counts it: what its grader compares. None: no
# vote. A task may have a method `normal_form`, else its answers count by their words.
NORMAL_FORMS = {
  "exact_match": grading.words,
  "normalised": grading.normalised_form,
  "multiple_choice": multiple_choice.normal_form,
  "gsm8k": math_answers.gsm8k_form,
  "math": math_answers.math_form,
  "countdown": countdown.normal_form,
  "none": None,
}


def may_time_out(grade) -> bool:
  """Whether a grader may leave questions open for want of time: they count as wrong, and in a metric."""
  return grade is math_answers.grade_math


def make_task(name: str, split: str, options: dict) -> Task:
  """Builds a task. Raises UserError for an unknown name, an unknown option or a value that the task rejects."""
  errors.require_choice("data.source: task", name, TASKS)
  defaults = {field.name: field.default for field in dataclasses.fields(TASKS[name]) if field.name != "split"}
  for key, value in options.items():
    errors.require_choice(f"data.task_options of {name}", key, defaults)
    kinds = (int, float) if isinstance(defaults[key], float) else (type(defaults[key]),)
    if type(value) not in kinds:
      raise errors.UserError(f"data.task_options.{key}: found {value!r}, allowed: {kinds[-1].__name__}")
  return TASKS[name](split=split, **options)


def shifted(task: Task) -> dict[str, Task]:
  """The task out of its distribution: a name for each of its shifts -> the task with these options.

  What was drawn for a question decides its split, not how it is written: a question of the test split, written with
  other symbols or by another convention, is not a training question either. {} for a task without shifts.
  """
  shifts = task.shifts() if hasattr(task, "shifts") else {}
  return {name: dataclasses.replace(task, **options) for name, options in shifts.items()}


def vocabulary(task: Task) -> tuple[str, ...]:
  """The words of a task and of all its shifts, for one tokenizer in and out of distribution."""
  return tuple(dict.fromkeys(word for one in (task, *shifted(task).values()) for word in one.words))
