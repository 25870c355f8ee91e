"""E6: every task's programs and worlds fit, its interpreter has the task's limits, and an arm runs."""

import dataclasses
import sys

import pytest
from paths import EXPERIMENTS

from nrt_jax.tasks import table

sys.path.append(str(EXPERIMENTS / "get_go"))
import common
import e6_programs as e6


@pytest.mark.parametrize("name", e6.TASKS)
def test_questions_programs_and_test_cases_fit(name, monkeypatch):
  made = {}
  keys = ("root", "sets", "lengths", "env")
  monkeypatch.setattr(common, "Bench", lambda *arguments: made.update(zip(keys, arguments)))
  e6.make_bench(name, "root")
  sets, lengths, world = made["sets"], made["lengths"], made["env"]
  for values in (*sets.train.values(), *sets.test.values()):
    task = table.make_task(values["source"].removeprefix("task:"), values.get("split", "train"), values["task_options"])
    limits = task.limits
    assert limits.steps <= world["step_limit"] and limits.outputs <= world["outputs"]
    for i in range(20):
      question, answer, _ = task.example(i)
      assert {*question.split(), *answer.split()} <= {*sets.words}
      assert len(question.split()) <= lengths.prompt and len(answer.split()) < lengths.answer == lengths.trace
      assert len(task.world(i).split()) <= world["max_world_length"] and len(task.cases(i)) == world["cases"]
      assert all(len(given) <= world["inputs"] for given, _ in task.cases(i))


def test_arms_are_configs_that_differ_in_their_teacher(monkeypatch):
  """Whole runs are those of the other studies, and of tests/environments; here they would take long to compile."""
  monkeypatch.setattr(common.Bench, "__init__", lambda self, root, *of: vars(self).update(zip(KEYS, ("model", *of))))
  bench = e6.make_bench("bf_copy", "root")
  runs = {name: bench.config(arm[-1]) for name, arm in e6.ARMS.items()}
  assert runs["rl"].algorithm.verifier == "environment" and not runs["rl"].environment.share
  assert dataclasses.replace(runs["rl_share"], environment=runs["rl"].environment) == runs["rl"] == runs["sft_rl"]
  assert runs["rl_share"].environment.share and runs["sft"].environment is None
  room = bench.lengths.trace + 1 + bench.lengths.answer
  assert [runs[name].sampling.max_trace_length for name in ("rl", "rl_likelihood")] == [room, bench.lengths.trace]


KEYS = ("model_path", "sets", "lengths", "environment")
