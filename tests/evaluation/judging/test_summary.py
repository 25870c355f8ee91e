"""Rates and intervals against their twins; a judge that prefers a place is seen as that, not as a winner."""

import itertools

import numpy as np
import pytest
import reference

from nrt_jax.evaluation import estimates
from nrt_jax.evaluation.judging import asking, prompts, summary
from nrt_jax.evaluation.judging.cache import Reply
from nrt_jax.evaluation.judging.items import Item

VERDICTS = ("A", "B", "tie")


def made(verdicts, groups=None, lengths=None, probabilities=None):
  """(items, judgements) of pairs with these verdicts in both orders; None: unreadable."""
  groups = range(len(verdicts)) if groups is None else groups
  lengths = [(3, 2)] * len(verdicts) if lengths is None else lengths
  items = [Item(f"q{g}", "r", ("x" * a, "y" * b), i, g) for i, (g, (a, b)) in enumerate(zip(groups, lengths))]
  judgements = []
  for i, both in enumerate(verdicts):
    for swapped, verdict in enumerate(both):
      status = asking.UNREADABLE if verdict is None else asking.READ
      reply = Reply("", probabilities=() if probabilities is None else probabilities[i][swapped])
      judgements.append(asking.Judgement(i, bool(swapped), "", status, verdict, reply, 1))
  return items, judgements


def test_every_outcome_of_a_pair_agrees_with_the_twin():
  every = list(itertools.product(VERDICTS, VERDICTS))
  for both in every:
    metrics = summary.pairwise(*made([both]))["metrics"]
    outcome, score, consistent = reference.pair_outcome(*both)
    assert {name: metrics[name] for name in ("win", "tie", "loss")} == {n: n == outcome for n in ("win", "tie", "loss")}
    assert (metrics["score"], metrics["consistent"]) == (score, consistent)
  found = summary.pairwise(*made(every))["metrics"]
  outcomes = [reference.pair_outcome(*both) for both in every]
  assert found["win"] == pytest.approx(sum(one[0] == "win" for one in outcomes) / 9)
  assert found["score"] == pytest.approx(np.mean([one[1] for one in outcomes]))
  assert found["consistent"] == pytest.approx(3 / 9)


def test_a_judge_that_always_names_the_first_place_lets_nobody_win():
  found = summary.pairwise(*made([("A", "A")] * 10))["metrics"]
  assert (found["win"], found["loss"], found["tie"], found["score"]) == (0, 0, 1, 0.5)
  assert (found["consistent"], found["first_in_both"], found["second_in_both"], found["first_named"]) == (0, 1, 0, 1)
  found = summary.pairwise(*made([("B", "B")] * 10))["metrics"]
  assert (found["consistent"], found["first_in_both"], found["second_in_both"], found["first_named"]) == (0, 0, 1, 0)


def test_sides_exchanged_exchange_wins_and_losses():
  verdicts = [("A", "B"), ("A", "A"), ("B", "tie"), ("tie", "tie"), ("A", "B")]
  items, judgements = made(verdicts)
  one = summary.pairwise(items, judgements)["metrics"]
  turned = [Item(i.question, i.reference, i.answers[::-1], i.sample, i.group) for i in items]
  other = summary.pairwise(turned, [asking.Judgement(j.item, not j.swapped, "", j.status, j.verdict, j.reply)
                                    for j in judgements])["metrics"]  # fmt: skip
  assert (one["win"], one["loss"]) == (other["loss"], other["win"]) == (2 / 5, 0)
  assert one["score"] == pytest.approx(1 - other["score"])
  assert all(one[name] == other[name] for name in ("tie", "consistent", "first_in_both", "first_named"))


def test_intervals_have_the_question_as_unit():
  verdicts = [("A", "B"), ("A", "B"), ("B", "A"), ("A", "A"), ("B", "A"), ("B", "A")]
  groups = [0, 0, 0, 1, 1, 2]
  found = summary.pairwise(*made(verdicts, groups))
  assert found["intervals"]["win"] == list(estimates.wilson([2, 0, 0], [3, 2, 1], 3))
  assert found["intervals"]["score"] == list(estimates.wilson([4, 1, 0], [6, 4, 2], 6))
  # one sample of each question: Wilson's plain interval
  found = summary.pairwise(*made(verdicts))
  assert found["intervals"]["win"] == pytest.approx(reference.score_interval(2 / 6, 6, estimates.Z), abs=1e-9)
  low, high = found["intervals"]["length_a"]
  assert low == high == 3


def test_pairs_that_lack_a_verdict_are_counted_and_bounded():
  found = summary.pairwise(*made([("A", "B"), ("A", None), (None, None), ("B", "A")]))
  assert found["metrics"]["win"] == found["metrics"]["loss"] == 0.5
  counts = found["counts"]
  assert (counts["compared"], counts["left_out"]) == (2, 2)
  assert (counts["verdicts"], counts["read"], counts["unreadable"]) == (8, 5, 3)
  assert (found["metrics"]["score_if_left_out_lose"], found["metrics"]["score_if_left_out_win"]) == (0.25, 0.75)
  assert "score_if_left_out_win" not in summary.pairwise(*made([("A", "B")]))["metrics"]
  assert summary.pairwise(*made([(None, None)]))["metrics"] == {}


def test_pairs_that_need_no_judge_count_as_pairs_but_say_nothing_of_it():
  items, judgements = made([("A", "A")])
  items += [Item("q", "r", ("a", None), 0, 7), Item("q", "r", (None, "b"), 0, 8), Item("q", "r", ("a", "a"), 0, 9)]
  found = summary.pairwise(items, judgements)
  assert (found["metrics"]["win"], found["metrics"]["tie"], found["metrics"]["loss"]) == (1 / 4, 2 / 4, 1 / 4)
  assert found["metrics"]["consistent"] == 0 and found["counts"]["without_judge"] == 3


def test_lengths_are_told():
  lengths = [(9, 1), (1, 9), (5, 5), (8, 2)]
  found = summary.pairwise(*made([("A", "B"), ("B", "A"), ("A", "B"), ("B", "A")], lengths=lengths))["metrics"]
  assert (found["length_a"], found["length_b"]) == (23 / 4, 17 / 4)
  assert found["longer_wins"] == pytest.approx(2 / 3)  # of decided pairs of different lengths
  assert found["score_at_equal_length"] == pytest.approx(
    reference.score_at_equal_length(np.array([1, 0, 1, 0.0]), np.array([8, -8, 0, 6.0]), np.arange(4))[0], abs=1e-6
  )


def test_probabilities_of_both_orders_are_averaged():
  probabilities = [((0.7, 0.2, 0.1), (0.3, 0.15, 0.05))]
  found = summary.pairwise(*made([("A", "A")], probabilities=probabilities))["metrics"]
  assert found["preference"] == pytest.approx((0.75 + (0.15 + 0.025) / 0.5) / 2)
  assert found["verdict_probability"] == pytest.approx(0.75)
  assert "preference" not in summary.pairwise(*made([("A", "A")]))["metrics"]


def test_scores_are_means_over_all_answers_with_missing_ones_lowest():
  items = [Item("q", None, (answer,), i, i // 2) for i, answer in enumerate(("a", "bbb", None, "cc", "d"))]
  judgements = [asking.Judgement(i, False, "", asking.READ, score, Reply("")) for i, score in ((0, 4), (1, 10), (3, 5))]
  judgements.append(asking.Judgement(4, False, "", asking.UNREADABLE, None, Reply("")))
  found = summary.scalar(items, judgements)
  assert found["metrics"]["score"] == (4 + 10 + 1 + 5) / 4 and found["metrics"]["length"] == 2
  assert found["intervals"]["score"] == list(estimates.normal([14, 6], [2, 2]))
  counts = found["counts"]
  assert (counts["scored"], counts["without_judge"], counts["left_out"], counts["unreadable"]) == (4, 1, 1, 1)
  assert {k: v for k, v in found["scores"].items() if v} == {"1": 1, "4": 1, "5": 1, "10": 1}
  assert found["metrics"]["length_correlation"] == pytest.approx(np.corrcoef([1, 3, 2], [4, 10, 5])[0, 1])
  assert prompts.SCORES[0] == 1
