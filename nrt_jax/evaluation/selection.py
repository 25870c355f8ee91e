"""One answer out of N samples of a question: a critic's tournament, a majority vote, the likeliest one, or luck.

The tournament is single elimination, as RARO's at test time (arXiv 2511.21667), whose N, votes and treatment of ties
are unknown; those here are ours.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nrt_jax.evaluation import estimates


@dataclass(frozen=True)
class Candidate:
  """One sample."""

  answer: str | None  # None: it gave none
  token_ids: tuple  # of the answer
  logp: float  # mean log-probability of its completion's tokens
  correct: bool | None


def majority(candidates: list) -> int:
  """See estimates.majority."""
  return estimates.majority([one.answer for one in candidates])


def likeliest(candidates: list) -> int:
  """The one with an answer whose completion was likeliest, per token."""
  return max(range(len(candidates)), key=lambda i: (candidates[i].answer is not None, candidates[i].logp))


def tournaments(questions: list, judge: Callable, rng) -> list[int]:
  """The winner of each question's candidates, a power of two in number, by single elimination.

  judge: list of (question, answer ids, other answer ids) -> list of (votes for the first, votes for the second), both
  orders of a pair being shown equally often. All matches of a round are judged together. A drawn match goes to the
  answer that more of the question's candidates gave, then to chance; the same or a missing answer needs no match.
  """
  left = [list(range(len(candidates))) for candidates in questions]
  frequency = [Counter(one.answer for one in candidates) for candidates in questions]
  while any(len(one) > 1 for one in left):
    matches = [(q, one[i], one[i + 1]) for q, one in enumerate(left) for i in range(0, len(one), 2) if len(one) > 1]
    winners = [_without_match(questions[q][a], questions[q][b], a, b) for q, a, b in matches]
    open_ = [m for m, winner in enumerate(winners) if winner is None]
    asked = [(matches[m][0], *(questions[matches[m][0]][i].token_ids for i in matches[m][1:])) for m in open_]
    for m, (for_a, for_b) in zip(open_, judge(asked) if asked else [], strict=True):
      q, a, b = matches[m]
      often = [frequency[q][questions[q][i].answer] for i in (a, b)]
      chance = rng.random()
      winners[m] = a if (for_a, often[0], chance) > (for_b, often[1], 0.5) else b
    left = [[w for (q, *_), w in zip(matches, winners) if q == number] or one for number, one in enumerate(left)]
  return [one[0] for one in left]


def _without_match(first: Candidate, second: Candidate, a: int, b: int) -> int | None:
  if second.answer is None or first.answer == second.answer:
    return a
  return b if first.answer is None else None


def compare(questions: list, judge: Callable, seed: int = 0) -> dict:
  """Accuracies of all ways to choose among the first 1, 2, 4, ... samples: {"tournament@4": 0.6, ...}.

  "sample@n" is the mean over the samples, "any@n" whether any is right: what choosing can't beat.
  """
  n, found = len(questions[0]), {}
  for count in (2**k for k in range(n.bit_length())):
    first = [candidates[:count] for candidates in questions]
    rng = np.random.default_rng((seed, count))
    chosen = {
      "tournament": tournaments(first, judge, rng),
      "majority": [majority(one) for one in first],
      "likeliest": [likeliest(one) for one in first],
    }
    right = {name: [one[i].correct for one, i in zip(first, places)] for name, places in chosen.items()}
    right["sample"] = [np.mean([one.correct for one in candidates]) for candidates in first]
    right["any"] = [any(one.correct for one in candidates) for candidates in first]
    found |= {f"{name}@{count}": float(np.mean(values)) for name, values in right.items()}
  return found
