import sys

import harness_tasks
import pytest

pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager  # noqa: E402  (the package comes first)

from nrt_jax.errors import UserError  # noqa: E402
from nrt_jax.harness import __main__  # noqa: E402
from nrt_jax.harness.tasks import open_tasks  # noqa: E402


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  return harness_tasks.write_tasks(tmp_path_factory.mktemp("harness") / "tasks")


def test_tasks_of_ones_own_are_found_alone(path):
  tasks = open_tasks(["local_choice", "local_answer"], str(path))
  assert tasks.all_subtasks == sorted(harness_tasks.TASKS)
  assert list(tasks.load(["local_choice"])["tasks"]) == ["local_choice"]


@pytest.fixture
def no_library(monkeypatch):
  """Leaves out the library, whose thousands of files take seconds, where it is not what is asked for."""
  whole = TaskManager.__init__
  monkeypatch.setattr(TaskManager, "__init__", lambda self, **how: whole(self, **{**how, "include_defaults": False}))


def test_a_wrong_name_is_refused_with_the_nearest(path, no_library):
  with pytest.raises(UserError, match=r"--tasks: found 'local_choce', allowed: .*did you mean local_choice.*\?"):
    open_tasks(["local_choce"], str(path))


def test_the_command_line_of_the_harness_knows_our_model(path, no_library, monkeypatch, capsys):
  argv = ["--model", "nrt_jax", "--model_args", "path=gone", "--tasks", "local_choice", "--include_path", str(path)]
  monkeypatch.setattr(sys, "argv", ["lm_eval", "run", *argv])
  assert __main__.main() == 2
  err = capsys.readouterr().err.splitlines()
  (found,) = [line for line in err if line.startswith("nrt-jax: ")]
  assert found.startswith("nrt-jax: tokenizer gone: no such directory")


def test_data_that_are_not_there_are_one_line(path):
  (path / "local_answer.jsonl").rename(path / "gone.jsonl")
  with pytest.raises(UserError, match="--tasks: local_answer: can't be loaded: .*local_answer.jsonl"):
    open_tasks(["local_answer"], str(path)).load(["local_answer"])


@pytest.mark.parametrize("names,where,message", [([], None, "--tasks: found ''"), (["a"], "gone", "no such directory")])
def test_other_mistakes(names, where, message):
  with pytest.raises(UserError, match=message):
    open_tasks(names, where)
