"""What an evaluation reports of one and of several samples per question."""

import numpy as np
import pytest
import reference

from nrt_jax.data.sources import DataConfig
from nrt_jax.evaluation import estimates, summary
from nrt_jax.evaluation.held_out import Completion, EvaluationConfig

# Three questions of four samples: votes, of which "4" is right; the log-probabilities of the reference, 2 tokens long.
VOTES = [["4", "5", "4", None], ["5", "5", "4", "4"], ["5", "6", None, "5"]]
LOGPS = [[-1.0, -3.0, -2.0, -8.0], [-5.0, -4.0, -0.5, -1.0], [-9.0, -7.0, -6.0, -8.0]]


def completions(votes=VOTES, tokens=2, graded=True):
  return [
    Completion("2 + 2", "4", "", vote, n + 1, vote == "4" if graded else None, tokens, logp, -4.0, sample=n, vote=vote)
    for of_one, logps in zip(votes, LOGPS)
    for n, (vote, logp) in enumerate(zip(of_one, logps))
  ]


def test_several_samples():
  found = summary.summarise("x", completions(), 4)
  flags = [[vote == "4" for vote in of_one] for of_one in VOTES]
  for k in (1, 2, 4):
    assert found[f"eval/x/pass@{k}"] == pytest.approx(np.mean([reference.pass_at_k(one, k) for one in flags]))
  assert found["eval/x/pass@1"] == pytest.approx(found["eval/x/accuracy"]) == pytest.approx(4 / 12)
  assert found["eval/x/avg@4"] == found["eval/x/accuracy"]
  assert found["eval/x/pass@4"] == pytest.approx(np.mean([any(one) for one in flags])) == pytest.approx(2 / 3)
  assert found["eval/x/maj@4"] == pytest.approx(1 / 3)  # the second question is a tie, whose first answer is wrong
  assert found["eval/x/marker_fraction"] == 10 / 12 and found["eval/x/trace_length"] == 2.5
  assert found["eval/x/answer_logp"] == pytest.approx(np.sum(LOGPS) / 24)
  expected = sum(map(reference.log_mean_exp, LOGPS)) / 6
  assert found["eval/x/answer_logp@4"] == pytest.approx(expected) and expected > found["eval/x/answer_logp"]
  assert found["eval/x/answer_logp_empty_trace"] == -2
  config = EvaluationConfig(name="x", data=DataConfig(), samples=4, temperature=1.0)
  assert set(found) == set(summary.metric_names(config)) - {"eval/x/earned", "eval/x/verdict"}


def test_every_metric_has_an_interval_that_holds_it():
  found, pairs = summary.summarise("x", completions(), 4), summary.intervals("x", completions(), 4)
  assert list(pairs) == list(found)
  assert all(low <= found[name] <= high for name, (low, high) in pairs.items())
  shares = [name for name in pairs if name.split("/")[2].startswith(summary.SHARES)]
  assert len(shares) == 7 and all(0 <= pairs[name][0] < pairs[name][1] <= 1 for name in shares)
  assert pairs["eval/x/maj@4"] == pytest.approx(estimates.wilson([1, 0, 0], [1] * 3, 1))
  assert pairs["eval/x/pass@1"] == pytest.approx(pairs["eval/x/accuracy"])


def test_samples_of_a_question_are_not_as_many_questions():
  """Three questions that are all right or all wrong, four times over: as wide an interval as with one sample."""
  same = [Completion("q", "4", "", "4", 1, right) for right in (True, False, True) for _ in range(4)]
  once = summary.intervals("x", same[::4], 1)["eval/x/accuracy"]
  assert summary.intervals("x", same, 4)["eval/x/accuracy"] == pytest.approx(once)


def test_one_question_alone_says_nothing_of_what_has_no_bounds():
  pairs = summary.intervals("x", completions([["4"]]), 1)
  assert pairs["eval/x/trace_length"] is None and pairs["eval/x/accuracy"][0] > 0.2


def test_nobody_grades():
  found = summary.summarise("x", completions(graded=False), 4)
  assert not [name for name in found if "@" in name and "logp" not in name] and "eval/x/accuracy" not in found
  assert "eval/x/answer_logp@4" in found
  assert not [name for name in summary.summarise("x", completions(tokens=0), 4) if "logp" in name]


def test_one_sample_has_no_names_of_several():
  found = summary.summarise("x", completions(), 1)
  assert not [name for name in found if "@" in name] and found["eval/x/accuracy"] == pytest.approx(4 / 12)
  names = summary.metric_names(EvaluationConfig(data=DataConfig()))
  assert "eval/heldout/accuracy" in names and not [name for name in names if "@" in name]
  assert summary.metric_names(EvaluationConfig()) == []


def test_groups_are_told_apart():
  """Two questions of one group around one of another, two samples each: their own metrics, and the mean of groups."""
  flags = [(True, True), (False, True), (False, False)]
  rows = [Completion("q", "4", "", "4", 1, right) for pair in flags for right in pair]
  found = summary.by_group("x", rows, ["a", "b", "a"], 2)
  assert {group: (part["questions"], part["metrics"]["eval/x/accuracy"]) for group, part in found.items()} == {
    "a": (2, 0.5), "b": (1, 0.5),
  }  # fmt: skip
  assert found["a"]["metrics"] == summary.summarise("x", [*rows[:2], *rows[4:]], 2)
  assert found["a"]["intervals"] == summary.intervals("x", [*rows[:2], *rows[4:]], 2)
  assert summary.macro("x", rows, ["a", "b", "b"], 2)[0] == {"eval/x/macro_accuracy": (1 + 0.25) / 2}
  ungraded = [Completion("q", "4", "", "4", 1, None)] * 2
  assert summary.macro("x", ungraded, ["a", "b"]) == ({}, {})
