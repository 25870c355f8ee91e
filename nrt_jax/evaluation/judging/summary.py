"""What judgements say together: rates with intervals over questions, and how far the judge can be believed.

A pair counts as won only if the answer is preferred in both orders; all else that was read is a tie (MT-Bench, arXiv
2306.05685, section 3.4). `score` counts every verdict by itself instead, a tie half. Pairs that lack a verdict are in
neither, and are counted.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from nrt_jax.evaluation import estimates
from nrt_jax.evaluation.judging import asking, lengths, prompts

MEANS = {"preferences": "preference", "said": "verdict_probability"}  # what Compared has in each order -> its mean


@dataclass(frozen=True)
class Compared:
  """A pair with a verdict in each order."""

  group: int  # its question
  points: tuple  # of A, in the order A B and in the order B A: 1, 0 or, for a tie, 1/2
  judged: bool  # False: `asking.without_judge` knew
  preferences: tuple = ()  # see `preference`, in either order; () where no probabilities were read
  said: tuple = ()  # the probability of any verdict, likewise
  lengths: tuple = (0, 0)  # characters of either answer

  @property
  def won(self) -> bool:
    return self.points == (1, 1)

  @property
  def lost(self) -> bool:
    return self.points == (0, 0)

  @property
  def first_named(self) -> tuple:
    """Of A B and B A, whether the answer shown first was named; None for a tie."""
    either = (self.points[0], 1 - self.points[1])
    return tuple(None if points == 0.5 else points == 1 for points in either)


def compare(items: list, judgements: list) -> list[Compared]:
  """The pairs that have a verdict in both orders, or need none."""
  by_item = {}
  for one in judgements:
    by_item.setdefault(one.item, []).append(one)
  found = []
  for number, item in enumerate(items):
    known = asking.without_judge(item)
    if known is not None:
      found.append(Compared(item.group, (points(known, False),) * 2, False))
    elif all(one.status == asking.READ for one in by_item[number]):
      both = sorted(by_item[number], key=lambda one: one.swapped)
      found.append(
        Compared(
          item.group,
          tuple(points(one.verdict, one.swapped) for one in both),
          True,
          tuple(preference(one.reply.probabilities, one.swapped) for one in both if one.reply.probabilities),
          tuple(sum(one.reply.probabilities) for one in both if one.reply.probabilities),
          tuple(map(len, item.answers)),
        )
      )
  return found


def points(verdict: str, swapped: bool) -> float:
  """What a verdict is worth for A's answer, which stands second where swapped."""
  return 0.5 if verdict == prompts.TIE else float((verdict == prompts.A) != swapped)


def preference(probabilities: tuple, swapped: bool) -> float:
  """The probability that A's answer is named, and half of a tie's, given that it is one of the three."""
  first, second, tie = probabilities
  return ((second if swapped else first) + tie / 2) / max(sum(probabilities), 1e-300)


def pairwise(items: list, judgements: list) -> dict:
  """{"metrics", "intervals", "counts"} of pairs. Metrics that nothing can be said of are left out."""
  found = compare(items, judgements)
  judged = [one for one in found if one.judged]
  named = [(one.group, sum(n is True for n in one.first_named), sum(n is not None for n in one.first_named))
           for one in judged]  # fmt: skip
  metrics, intervals = {}, {}

  def add(name, rows):
    rows = _by_question(rows)
    if rows:
      tops, bottoms = zip(*rows)
      metrics[name] = sum(tops) / sum(bottoms)
      intervals[name] = list(estimates.wilson(tops, bottoms, max(bottoms)))

  add("win", [(one.group, one.won, 1) for one in found])
  add("tie", [(one.group, not one.won and not one.lost, 1) for one in found])
  add("loss", [(one.group, one.lost, 1) for one in found])
  add("score", [(one.group, sum(one.points), 2) for one in found])
  if any(one.preferences for one in judged):
    for name in ("preferences", "said"):
      values = [(one.group, sum(getattr(one, name)) / 2) for one in judged if one.preferences]
      metrics[MEANS[name]], intervals[MEANS[name]] = _mean(values)
  add("consistent", [(one.group, one.points[0] == one.points[1], 1) for one in judged])
  add("first_in_both", [(one.group, one.first_named == (True, True), 1) for one in judged])
  add("second_in_both", [(one.group, one.first_named == (False, False), 1) for one in judged])
  add("first_named", named)
  longer = [(one.group, one.won == (one.lengths[0] > one.lengths[1]), 1) for one in judged
            if (one.won or one.lost) and one.lengths[0] != one.lengths[1]]  # fmt: skip
  add("longer_wins", longer)
  if judged:
    metrics["score_at_equal_length"], interval = lengths.equal_length_score(
      [sum(one.points) / 2 for one in judged],
      [one.lengths[0] - one.lengths[1] for one in judged],
      [one.group for one in judged],
    )
    intervals["score_at_equal_length"] = interval
    for side, name in enumerate(("length_a", "length_b")):
      metrics[name], intervals[name] = _mean([(one.group, one.lengths[side]) for one in judged])
  counts = {"compared": len(found), "without_judge": len(found) - len(judged), "left_out": len(items) - len(found)}
  if found and counts["left_out"]:
    won, total = sum(sum(one.points) / 2 for one in found), len(items)
    metrics["score_if_left_out_lose"], metrics["score_if_left_out_win"] = (
      won / total, (won + counts["left_out"]) / total
    )  # fmt: skip
  return {"metrics": metrics, "intervals": intervals, "counts": counts | verdicts(judgements)}


def scalar(items: list, judgements: list) -> dict:
  """{"metrics", "intervals", "counts", "scores"} of single answers; one that is missing has the lowest score."""
  by_item = {one.item: one for one in judgements}
  known = [asking.without_judge(item) for item in items]
  scores = [by_item[i].verdict if score is None else score for i, score in enumerate(known)]
  scored = [(item, score) for item, score in zip(items, scores) if score is not None]
  metrics, intervals = {}, {}
  if scored:
    metrics["score"], intervals["score"] = _mean([(item.group, score) for item, score in scored])
  given = [(item, score) for item, score in scored if item.answers[0] is not None]
  if given:
    sizes = [len(item.answers[0]) for item, _ in given]
    metrics["length"], intervals["length"] = _mean([(item.group, size) for (item, _), size in zip(given, sizes)])
    values = [score for _, score in given]
    if np.std(sizes) > 0 and np.std(values) > 0:
      metrics["length_correlation"] = float(np.corrcoef(sizes, values)[0, 1])
  counts = {"scored": len(scored), "without_judge": len(known) - known.count(None)}
  counts["left_out"] = len(items) - len(scored)
  histogram = Counter(score for _, score in scored)
  given = {str(score): histogram[score] for score in prompts.SCORES}
  return {"metrics": metrics, "intervals": intervals, "counts": counts | verdicts(judgements), "scores": given}


def verdicts(judgements: list) -> dict:
  """How many judgements ended in which way."""
  found = Counter(one.status for one in judgements)
  again = sum(one.attempts > 1 for one in judgements)
  ways = (asking.READ, asking.UNREADABLE, asking.REFUSED, asking.UNANSWERED, asking.LEFT)
  return {"verdicts": len(judgements), **{way: found[way] for way in ways}, "asked_again": again}


def _mean(rows: list):
  """(mean, 95 % interval over questions) of (question, value)."""
  tops, bottoms = zip(*_by_question([(group, value, 1) for group, value in rows]))
  pair = estimates.normal(tops, bottoms)
  return sum(tops) / sum(bottoms), None if pair is None else list(pair)


def _by_question(rows: list) -> list:
  """(Σ tops, Σ bottoms) of each question that has any bottom."""
  sums = {}
  for group, top, bottom in rows:
    before = sums.get(group, (0, 0))
    sums[group] = before[0] + top, before[1] + bottom
  return [(top, bottom) for top, bottom in sums.values() if bottom]
