"""What n samples of each question say: pass@k, a majority vote, a log-mean-exp; and intervals of 95 %.

docs/evaluation.md has the equations. Questions are drawn independently; the samples of one question are not
independent of one another where questions differ in difficulty, so an interval is over questions, never over samples.
"""

import math
from collections import Counter

import numpy as np

Z = 1.959963984540054  # the standard normal's 97.5 % quantile


def sizes(samples: int) -> list[int]:
  """The k of pass@k: powers of two up to the number of samples, and that number."""
  return sorted({*(2**i for i in range(samples.bit_length())), samples})


def pass_at_k(samples: int, right: int, k: int) -> float:
  """The probability that k of these samples, drawn without replacement, hold a right one (arXiv 2107.03374).

  1 - C(n - c, k) / C(n, k), in exact integers: unbiased for the chance that one of k fresh samples is right.
  """
  return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(answers: list) -> int:
  """The index of the first sample with the most frequent answer; None is nobody's vote. 0 where nobody votes.

  Samples are exchangeable, so the first of the tied answers is a fair draw among them.
  """
  counts = Counter(answer for answer in answers if answer is not None)
  best = max(counts.values(), default=0)
  return next((i for i, answer in enumerate(answers) if answer is not None and counts[answer] == best), 0)


def log_mean_exp(logps: list) -> float:
  """The log of the mean probability, without underflow."""
  most = max(logps)
  return most if math.isinf(most) else most + math.log(sum(math.exp(logp - most) for logp in logps) / len(logps))


def wilson(tops: list, bottoms: list, samples: int) -> tuple[float, float]:
  """The interval of a share, Σ tops / Σ bottoms, of which each question has one of both, with 0 <= top <= bottom.

  Wilson's, for the number of questions that, each with one sample, would make the share vary as much: their own number
  where each is all right or all wrong, never more than all samples.
  """
  share, variance, questions = _ratio(tops, bottoms)
  spread = share * (1 - share)
  count = spread / variance if spread > 0 and variance > 0 else math.inf if spread > 0 else questions
  count = min(max(count, questions), questions * samples)
  middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
  half = Z / (1 + Z**2 / count) * math.sqrt(spread / count + Z**2 / (4 * count**2))
  return max(0.0, middle - half), min(1.0, middle + half)


def normal(tops: list, bottoms: list) -> tuple[float, float] | None:
  """The interval of Σ tops / Σ bottoms, of which each question has one of both; None for a single question.

  The normal approximation, with the variance of a ratio (linearised); for equal bottoms, that of a mean over questions.
  """
  ratio, variance, questions = _ratio(tops, bottoms)
  if questions < 2:
    return None
  half = Z * math.sqrt(variance * questions / (questions - 1))
  return ratio - half, ratio + half


def macro(parts: list) -> tuple[float, tuple[float, float] | None]:
  """(the mean of the ratios of several sets of questions, its interval); parts: (tops, bottoms) of each, as `normal`.

  The variance of a mean of independent ratios, by the normal approximation; None where a part is a single question.
  """
  ratios = [_ratio(*part) for part in parts]
  mean = sum(ratio for ratio, _, _ in ratios) / len(ratios)
  if any(questions < 2 for _, _, questions in ratios):
    return mean, None
  half = Z * math.sqrt(sum(variance * n / (n - 1) for _, variance, n in ratios)) / len(ratios)
  return mean, (mean - half, mean + half)


def _ratio(tops, bottoms):
  """(Σ tops / Σ bottoms, its variance over questions, how many there are)."""
  top, bottom = np.asarray(tops, np.float64), np.asarray(bottoms, np.float64)
  ratio = top.sum() / bottom.sum()
  return float(ratio), float(np.square(top - ratio * bottom).sum() / bottom.sum() ** 2), len(top)
