"""The study of likelihood rewards on long answers: its configs hold, and its table is of the runs' own metrics."""

import sys

import numpy as np
import pytest
from paths import EXPERIMENTS

from nrt_jax.config import stages_of
from nrt_jax.errors import UserError
from nrt_jax.files import json_lines
from nrt_jax.tasks.long_answer import LongAnswer

sys.path.append(str(EXPERIMENTS / "miniature"))
import long_answers


def metrics(logp: float, trace: float, sampled: bool) -> list[dict]:
  """Lines of a run of twelve steps whose last ten have traces of this length, evaluated before and after."""
  first, last = ({"step": s, "eval/heldout/answer_logp": -9.0, "eval/heldout/trace_length": 7.0} for s in (0, 12))
  first |= {"eval/heldout/answer_logp_empty_trace": -1.5}
  last |= {"eval/heldout/answer_logp_empty_trace": logp}
  own = {"trace/length_mean": trace, "answer/logp_gain": 0.25} if sampled else {}
  earlier = {"trace/length_mean": 8.0, "answer/logp_gain": 9.0} if sampled else {}
  return [first, *({"step": s, "loss/total": 1.0, **(own if s > 2 else earlier)} for s in range(1, 13)), last]


def test_methods_differ_in_the_method_alone():
  for name, (algorithm, own) in long_answers.METHODS.items():
    (run,) = stages_of(long_answers.method(name, "model", "start", 3, 7))
    assert (run.algorithm_name, run.seed, run.total_steps, run.from_checkpoint) == (algorithm, 3, 7, "start")
    assert (run.prompts_per_step, run.samples_per_prompt) == (8, 4)  # the paper's
    assert run.algorithm.reward == own["algorithm.reward"] if own else True
    assert run.data.task_options == run.evaluation.data.task_options == tuple(sorted(long_answers.OPTIONS.items()))
  (start,) = stages_of(long_answers.pretraining("model", 3))
  assert dict(start.data.task_options)["trace_share"] == long_answers.SHOWN and start.algorithm_name == "sft"


def test_an_answer_is_longer_than_its_probability_can_be_held():
  task = LongAnswer(**long_answers.OPTIONS)
  assert float(task.n_colours) ** -task.n_noisy < np.finfo(np.float32).tiny
  assert len(task.example(0)[1].split()) == task.n_easy + task.n_noisy + task.n_hard == 65


def test_the_table_is_read_off_the_runs(tmp_path):
  lines = [
    {"method": name, "seed": seed, "steps": 12, "cpu_seconds": 10.0} for name in ("prob", "sft") for seed in (0, 1)
  ]
  for line in lines:
    place = tmp_path / f"{line['method']}_12_{line['seed']}"
    place.mkdir()
    (place / "metrics.jsonl").write_text(
      json_lines(metrics(-1.0 - line["seed"], 2.0 + line["seed"], line["method"] == "prob"))
    )
  head, rule, sft, prob = long_answers.report(lines, str(tmp_path)).splitlines()
  assert len({row.count("|") for row in (head, rule, sft, prob)}) == 1
  assert prob.split(" | ")[1:] == [
    "2", "-1.500 ± 0.000", "-1.500 ± 0.707", "0.250 ± 0.000", "8.0 ± 0.0", "2.5 ± 0.7", "2.0 / 3.0", "10 |",
  ]  # fmt: skip
  assert sft.split(" | ")[2:7] == ["-1.500 ± 0.000", "-1.500 ± 0.707", "", "7.0 ± 0.0", "7.0 ± 0.0"]


def test_an_unknown_method_is_named():
  with pytest.raises(UserError, match="--methods: found 'magic'"):
    long_answers.main(["--methods", "magic"])
