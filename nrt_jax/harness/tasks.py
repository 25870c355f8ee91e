"""Which tasks the harness knows, and its errors in one line."""

import difflib
import os

from lm_eval.tasks import TaskManager

from nrt_jax.errors import UserError


class Tasks(TaskManager):
  """The harness's index of tasks. What can't be loaded, such as data that needs a network, raises UserError."""

  def load(self, task_list):
    try:
      return super().load(task_list)
    except Exception as error:  # YAML, imports, data sets: tasks may raise whatever they like
      reason = next(iter(str(error).strip().splitlines()), "")
      raise UserError(f"--tasks: {', '.join(task_list)}: can't be loaded: {type(error).__name__}: {reason}") from error


def open_tasks(names: list, include_path: str | None = None) -> Tasks:
  """The index of all tasks; that of `include_path` alone where it has all of `names`, for the library takes seconds.

  UserError where the directory is missing, or a name is no task, group or tag.
  """
  if not names:
    raise UserError("--tasks: found '', allowed: names of tasks, with commas between them")
  if include_path is not None:
    if not os.path.isdir(include_path):
      raise UserError(f"--include_path: {include_path}: no such directory")
    own = Tasks(include_path=include_path, include_defaults=False)
    if set(names) <= set(own.all_subtasks):
      return own
  tasks = Tasks(include_path=include_path)
  for name in names:
    if not tasks.match_tasks([name]):
      near = difflib.get_close_matches(name, tasks.all_tasks, n=3)
      hint = f" (did you mean {' or '.join(near)}?)" if near else ""
      raise UserError(f"--tasks: found {name!r}, allowed: tasks, groups and tags of the harness{hint}")
  return tasks
