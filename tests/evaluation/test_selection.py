"""Choosing one of N samples: tournaments with scripted judges, votes and likelihoods."""

import numpy as np
import pytest

from nrt_jax.evaluation import selection
from nrt_jax.evaluation.selection import Candidate


def candidates(*answers, right=(), logps=None):
  """Candidates with these answers, whose token ids are made up; `right` are the answers that are."""
  logps = logps or [-1.0] * len(answers)
  ids = [() if answer is None else (sum(map(ord, answer)),) for answer in answers]
  return [Candidate(a, i, p, a in right) for a, i, p in zip(answers, ids, logps, strict=True)]


class Judge:
  """Votes for the answer that `better(question, ids, other ids)` names; keeps what it was asked."""

  def __init__(self, better, votes=4):
    self.better, self.votes, self.rounds = better, votes, []

  def __call__(self, matches):
    self.rounds.append(matches)
    first = [self.better(*match) for match in matches]
    return [(self.votes, 0) if one else (0, self.votes) for one in first]


def lower(question, ids, other):
  return ids[0] < other[0]


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_a_perfect_judge_finds_the_best_wherever_it_stands(count):
  """In log2 N rounds of half as many matches each."""
  for place in range(count):
    answers = ["z"] * count
    answers = [chr(ord("b") + i) for i in range(count)]
    answers[place] = "a"
    judge = Judge(lower)
    (winner,) = selection.tournaments([candidates(*answers)], judge, np.random.default_rng(0))
    assert winner == place
    assert [len(matches) for matches in judge.rounds] == [count // 2**k for k in range(1, count.bit_length())]


def test_questions_are_judged_together_and_apart():
  """One call a round for all questions; a match never mixes two of them."""
  judge = Judge(lower)
  questions = [candidates("d", "c", "b", "a"), candidates("e", "f", "g", "h")]
  assert selection.tournaments(questions, judge, np.random.default_rng(0)) == [3, 0]
  assert [len(matches) for matches in judge.rounds] == [4, 2]
  ids = [{one.token_ids for one in own} for own in questions]
  assert all({a, b} <= ids[q] for matches in judge.rounds for q, a, b in matches)


def test_equal_and_missing_answers_need_no_match():
  judge = Judge(lower)
  questions = [candidates("b", "b", None, "c"), candidates(None, None, None, "d"), candidates(None, None)]
  assert selection.tournaments(questions, judge, np.random.default_rng(0)) == [0, 3, 0]
  assert [len(matches) for matches in judge.rounds] == [1]  # b against c


def test_draws_go_to_the_answer_that_more_samples_gave():
  def none(matches):
    return [(2, 2)] * len(matches)

  questions = [candidates("a", "b", "b", "a", "b", "c", "b", "d")]
  for seed in range(5):
    (winner,) = selection.tournaments(questions, none, np.random.default_rng(seed))
    assert questions[0][winner].answer == "b"
  chance = [selection.tournaments([candidates("a", "b")], none, np.random.default_rng(seed))[0] for seed in range(40)]
  assert 8 < sum(chance) < 32


def test_majority_and_likelihood():
  assert selection.majority(candidates("a", "b", "b", None, None, None)) == 1
  assert selection.majority(candidates(None, None)) == 0
  assert selection.majority(candidates("c", "b", "b", "c")) == 0  # of two equally frequent ones the first
  assert selection.likeliest(candidates("a", "b", None, logps=[-2.0, -1.0, -0.1])) == 1


def test_accuracies_against_the_number_of_samples():
  """By hand: two questions, four samples each; the judge always knows."""
  right = ("a",)
  questions = [candidates("b", "a", "b", "b", right=right), candidates("c", "b", "b", "a", right=right)]
  found = selection.compare(questions, Judge(lower))
  assert {key: found[f"tournament@{key}"] for key in (1, 2, 4)} == {1: 0.0, 2: 0.5, 4: 1.0}
  assert {key: found[f"any@{key}"] for key in (1, 2, 4)} == {1: 0.0, 2: 0.5, 4: 1.0}
  assert {key: found[f"sample@{key}"] for key in (1, 2, 4)} == {1: 0.0, 2: 0.25, 4: 0.25}
  assert found["majority@4"] == 0.0 and found["likeliest@1"] == 0.0
  assert len(found) == 5 * 3
