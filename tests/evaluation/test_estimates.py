"""Estimates from n samples of a question, against plain twins and identities; intervals by formula and by coverage."""

import numpy as np
import pytest
import reference

from nrt_jax.evaluation import estimates


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(samples):
  for right in range(samples + 1):
    flags = [True] * right + [False] * (samples - right)
    for k in range(1, samples + 1):
      assert estimates.pass_at_k(samples, right, k) == pytest.approx(reference.pass_at_k(flags, k), abs=1e-15)
    assert estimates.pass_at_k(samples, right, 1) == pytest.approx(right / samples, abs=1e-15)
    assert estimates.pass_at_k(samples, right, samples) == (right > 0)


def test_pass_at_k_is_unbiased_and_exact_for_many_samples():
  """Over the binomial distribution of c, its mean is 1 - (1 - p)^k."""
  n, p, k = 12, 0.3, 4
  weights = np.array([np.prod([(n - i) / (i + 1) for i in range(c)]) * p**c * (1 - p) ** (n - c) for c in range(n + 1)])
  mean = weights @ [estimates.pass_at_k(n, c, k) for c in range(n + 1)]
  assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
  assert estimates.pass_at_k(10_000, 1, 100) == pytest.approx(0.01, abs=1e-15)


def test_sizes_are_powers_of_two_and_all_samples():
  assert [estimates.sizes(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_a_majority_is_the_first_of_the_most_frequent():
  assert estimates.majority(["4", "5", "5", None, None, None]) == 1
  assert estimates.majority(["4", "5", "5", "4"]) == 0
  assert estimates.majority([None, None]) == 0
  assert estimates.majority([None, "4"]) == 1


def test_log_mean_exp_neither_underflows_nor_loses_its_bound():
  logps = [-0.5, -3.0, -1.25]
  assert estimates.log_mean_exp(logps) == pytest.approx(reference.log_mean_exp(logps), abs=1e-12)
  assert estimates.log_mean_exp([-2000.0, -2000.0]) == -2000
  assert estimates.log_mean_exp([-2000.0, -4000.0]) == pytest.approx(-2000 - np.log(2), abs=1e-9)
  assert estimates.log_mean_exp([-np.inf, -np.inf]) == -np.inf


@pytest.mark.parametrize("right", [0, 1, 7, 20])
def test_one_sample_per_question_has_wilsons_interval(right):
  found = estimates.wilson([1] * right + [0] * (20 - right), [1] * 20, 1)
  assert found == pytest.approx(reference.score_interval(right / 20, 20, estimates.Z), abs=1e-9)
  assert 0 <= found[0] <= right / 20 <= found[1] <= 1 and found[0] < found[1]


def test_samples_count_as_far_as_they_differ():
  """Questions that are all right or all wrong count once; those that all have the same share count every sample."""
  once = estimates.wilson([1, 1, 0, 0], [1] * 4, 1)
  assert estimates.wilson([8, 8, 0, 0], [8] * 4, 8) == pytest.approx(once)
  assert estimates.wilson([4, 4, 4, 4], [8] * 4, 8) == pytest.approx(estimates.wilson([1, 0] * 16, [1] * 32, 1))
  tops = [8, 6, 2, 0]  # between both
  share, variance = 0.5, np.var(np.array(tops) / 8) / 4
  expected = reference.score_interval(share, share * (1 - share) / variance, estimates.Z)
  assert estimates.wilson(tops, [8] * 4, 8) == pytest.approx(expected, abs=1e-9)


def test_other_means_have_the_normal_interval_over_questions():
  values = [3.0, 5.0, 10.0]
  low, high = estimates.normal(values, [1] * 3)
  assert (low + high) / 2 == pytest.approx(6)
  assert (high - low) / 2 == pytest.approx(1.959964 * np.sqrt(13 / 3), rel=1e-6)
  tops, bottoms = [-3.0, -9.0, -2.0, -8.0], [2, 4, 1, 3]
  low, high = estimates.normal(tops, bottoms)
  assert (high - low) / 2 == pytest.approx(estimates.Z * reference.ratio_deviation(tops, bottoms), rel=1e-12)
  assert (low + high) / 2 == pytest.approx(-2.2)
  assert estimates.normal([4.0], [1]) is None


def test_intervals_hold_the_truth_about_as_often_as_they_say():
  """100 questions, each with a chance of its own, 4 samples of each; 2,000 intervals."""
  rng, hits, count = np.random.default_rng(0), np.zeros(2), 2000
  for _ in range(count):
    chance = rng.beta(0.5, 0.5, 100)
    right = rng.binomial(4, chance)
    passed = [estimates.pass_at_k(4, int(c), 2) for c in right]
    found = estimates.wilson(right, [4] * 100, 4), estimates.wilson(passed, [1] * 100, 4)
    truth = 0.5, 1 - 0.375  # E[p], 1 - E[(1 - p)^2] of Beta(1/2, 1/2)
    hits += [low <= value <= high for (low, high), value in zip(found, truth)]
  assert (abs(hits / count - 0.95) < 0.02).all()


def test_the_mean_of_groups_counts_each_the_same():
  """Groups of 4, 10 and 6 questions, with one sample or several each."""
  rng = np.random.default_rng(0)
  flags = [rng.random(n) < p for n, p in ((4, 0.5), (10, 0.2), (6, 0.9))]
  mean, (low, high) = estimates.macro([(group.tolist(), [1] * len(group)) for group in flags])
  assert (mean, low, high) == pytest.approx(reference.macro_interval(flags))
  tops = [rng.integers(0, 4, n) for n in (4, 10)]
  mean, (low, high) = estimates.macro([(group.tolist(), [3] * len(group)) for group in tops])
  assert (mean, low, high) == pytest.approx(reference.macro_interval([group / 3 for group in tops]))
  assert estimates.macro([([1, 0], [1, 1]), ([1], [1])]) == (0.75, None)
