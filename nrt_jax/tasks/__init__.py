"""Built-in tasks: examples made by rule, and graders. Pure Python and NumPy; a task knows no tokens and no devices."""

import dataclasses
from typing import Protocol

from nrt_jax import errors
from nrt_jax.tasks.grading import exact_match as exact_match
from nrt_jax.tasks.running_sum import RunningSum


class Task(Protocol):
  """A frozen dataclass whose fields, `split` among them, are its options. Example i depends on them and i alone."""

  split: str

  @property
  def words(self) -> tuple[str, ...]:
    """Every word its texts are made of, for prompts.word_tokenizer."""

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Question, answer, and a trace where this example shows one."""

  def grade(self, completion: str, reference: str) -> bool:
    """Whether the answer text of a completion is right. Must return fast and never raise, whatever the model wrote."""


TASKS = {"running_sum": RunningSum}


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
