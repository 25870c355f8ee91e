"""The score at equal lengths against its twin, and where length explains all or nothing."""

import numpy as np
import pytest
import reference

from nrt_jax.evaluation.judging.lengths import equal_length_score


def sample(seed, count=40, bias=0.0, length=0.0):
  rng = np.random.default_rng(seed)
  differences = rng.normal(3.0, 20.0, count).round()
  chance = 1 / (1 + np.exp(-(bias + length * np.tanh(differences / differences.std()))))
  return (rng.random(count) < chance).astype(float), differences, rng


@pytest.mark.parametrize("seed", [0, 1])
def test_score_and_interval_agree_with_the_twin(seed):
  points, differences, rng = sample(seed, bias=0.4, length=1.5)
  points = np.where(rng.random(len(points)) < 0.2, 0.5, points)
  groups = np.arange(len(points)) // 2  # two samples of each question
  score, interval = equal_length_score(points, differences, groups)
  expected = reference.score_at_equal_length(points, differences, groups)
  assert score == pytest.approx(expected[0], abs=1e-6)
  assert interval == pytest.approx(expected[1:], abs=1e-4) and interval[0] < score < interval[1]


def test_a_judge_that_sees_length_alone_finds_no_difference_at_equal_length():
  differences = np.array([30, 20, 10, 5, 3, 2, 40, -10.0])
  score, _ = equal_length_score(differences > 0, differences, range(8))
  assert 0.5 < score < 0.875 == np.mean(differences > 0)


def test_without_differences_in_length_it_is_the_plain_score():
  score, interval = equal_length_score([1, 0, 0.5, 1], [0, 0, 0, 0], range(4))
  assert score == pytest.approx(0.625) and interval[0] < 0.625 < interval[1]


@pytest.mark.parametrize("points", [[1, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5]])
def test_where_nothing_varies_there_is_no_interval(points):
  assert equal_length_score(points, [1, 2, -3], range(3)) == (pytest.approx(points[0]), None)


def test_a_single_question_has_no_interval():
  assert equal_length_score([1, 0, 1], [1, 2, 3], [0, 0, 0])[1] is None


def test_separable_samples_have_a_finite_fit():
  score, interval = equal_length_score([1] * 10 + [0] * 10, [10] * 10 + [-10] * 10, range(20))
  assert score == pytest.approx(0.5, abs=1e-6) and np.isfinite(interval).all()
