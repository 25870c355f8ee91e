import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import reference

from nrt_jax.errors import UserError
from nrt_jax.objectives.advantages import CENTERS, SCALES, clip_advantages, group_advantages, group_standardise_tokens

CHOICES = list(itertools.product(CENTERS, SCALES))


def test_by_hand():
  reward_N = jnp.array([1.0, 2.0, 3.0, 6.0])
  # Mean 3, deviations -2 -1 0 3, unbiased std sqrt(14 / 3) = 2.160247; the biased one would give -1.069045 first.
  scaled = [-0.925820, -0.462910, 0, 1.388730]
  np.testing.assert_allclose(group_advantages(reward_N, 4, "mean", "std"), scaled, atol=1e-6)
  np.testing.assert_allclose(group_advantages(reward_N, 4, "mean", "none"), [-2, -1, 0, 3], atol=1e-6)
  # Row 0: 1 - (2 + 3 + 6) / 3 = -8/3.
  np.testing.assert_allclose(group_advantages(reward_N, 4, "leave_one_out", "none"), [-8 / 3, -4 / 3, 0, 4], atol=1e-6)
  np.testing.assert_allclose(group_advantages(reward_N, 4, "none", "std"), reward_N / 2.160247, atol=1e-6)
  np.testing.assert_array_equal(group_advantages(reward_N, 4, "none", "none"), reward_N)


def test_rows_of_a_prompt_are_adjacent():
  reward_N = jnp.array([1.0, 3.0, 10.0, 30.0])  # grouped by n % 2 instead, row 0 would get -4.5
  np.testing.assert_allclose(group_advantages(reward_N, 2, "mean", "none"), [-1, 1, -10, 10])


@pytest.mark.parametrize("center,scale", CHOICES)
def test_twins_with_invalid_rows(center, scale):
  rng = np.random.default_rng(0)
  rewards, valid = rng.normal(2, 3, 24), rng.random(24) < 0.7
  valid[:4], valid[4:8] = False, [True, False, False, False]  # a group without valid rows, and one with a single one
  expected = reference.group_advantages(rewards, 4, center, scale, valid)
  reward_N = jnp.asarray(np.where(valid, rewards, np.nan), jnp.float32)
  advantage_N = group_advantages(reward_N, 4, center, scale, jnp.asarray(valid))
  np.testing.assert_allclose(advantage_N, expected, rtol=1e-5, atol=1e-6)
  assert not advantage_N[~valid].any() and (center == "none" or not advantage_N[4])
  expected = reference.group_advantages(rewards, 4, center, scale, [True] * 24)
  advantage_N = group_advantages(jnp.asarray(rewards, jnp.float32), 4, center, scale)
  np.testing.assert_allclose(advantage_N, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 1 / 3, -2.864704, 1e-30, 1e17, 0.0])
@pytest.mark.parametrize("group_size", [2, 3, 7, 64])
def test_groups_without_variance_get_exactly_zero(group_size, value):
  # mean(0.1, 0.1, 0.1) is not 0.1 in float32: a plain (r - mean) / std then divides rounding by rounding, giving ±1.
  reward_N = jnp.full((2 * group_size,), value, jnp.float32)
  for center, scale in CHOICES:
    if (center, scale) != ("none", "none"):
      np.testing.assert_array_equal(group_advantages(reward_N, group_size, center, scale), np.zeros(2 * group_size))


def test_rounding_is_no_variance_but_small_rewards_are():
  same = np.float32(0.1)
  rounded = jnp.array([same, np.nextafter(same, np.float32(1)), same, same])
  np.testing.assert_array_equal(group_advantages(rounded, 4, "mean", "std"), np.zeros(4))
  np.testing.assert_array_equal(group_advantages(rounded, 4, "leave_one_out", "none"), np.zeros(4))
  # The product of a long answer is tiny for every trace; an absolute tolerance would silence it.
  tiny = jnp.array([1.0, 2.0, 3.0, 6.0]) * 1e-30
  np.testing.assert_allclose(
    group_advantages(tiny, 4, "mean", "std"), [-0.925820, -0.462910, 0, 1.388730], atol=1e-6
  )


def test_scaled_advantages_ignore_shift_and_scale_of_the_reward():
  reward_N = jnp.asarray(np.random.default_rng(1).normal(size=8), jnp.float32)
  expected = group_advantages(reward_N, 4, "mean", "std")
  np.testing.assert_allclose(group_advantages(3 * reward_N - 5, 4, "mean", "std"), expected, rtol=1e-5, atol=1e-5)


def test_leave_one_out_is_unbiased_and_the_mean_shrinks_by_the_group():
  # Every pair of draws from a softmax over 3 actions, weighted by its probability.
  p, rewards = np.array([0.5, 0.3, 0.2]), np.array([1.0, -2.0, 4.0])
  scores = np.eye(3) - p  # ∇ log p of each action by the logits
  exact = (p * rewards) @ scores
  pairs = list(itertools.product(range(3), repeat=2))
  actions = np.array(pairs).reshape(-1)
  weights = np.repeat([p[i] * p[j] for i, j in pairs], 2) / 2
  for center, share in (("leave_one_out", 1.0), ("none", 1.0), ("mean", 0.5)):
    advantage_N = group_advantages(jnp.asarray(rewards[actions], jnp.float32), 2, center, "none")
    estimate = (weights * np.asarray(advantage_N)) @ scores[actions]
    np.testing.assert_allclose(estimate, share * exact, atol=1e-6)


def test_one_sample_per_prompt():
  reward_N = jnp.array([0.5, -3.0])
  np.testing.assert_array_equal(group_advantages(reward_N, 1, "none", "none"), reward_N)
  for center, scale in (("leave_one_out", "none"), ("mean", "std"), ("none", "std"), ("mean", "none")):
    with pytest.raises(UserError, match="samples_per_prompt: found 1"):
      group_advantages(reward_N, 1, center, scale)


def test_wrong_choices_are_user_errors():
  reward_N = jnp.zeros(6)
  with pytest.raises(UserError, match="'rloo', allowed: leave_one_out, mean, multi_sample, none"):
    group_advantages(reward_N, 2, "rloo", "std")
  with pytest.raises(UserError, match="'var', allowed: advantage_std, none, std"):
    group_advantages(reward_N, 2, "mean", "var")
  with pytest.raises(UserError, match="samples_per_prompt: found 4, allowed: a divisor of the 6 rows"):
    group_advantages(reward_N, 4, "mean", "std")


def test_clip_advantages():
  np.testing.assert_array_equal(clip_advantages(jnp.array([-3.0, 0.5, 2.0]), -1, 1), [-1, 0.5, 1])


def test_tokens_are_standardised_over_the_group():
  # One group of tokens 1 2 3 6, split 3 + 1: as in test_by_hand. Per row, the last token would get 0.
  s_NA, mask_NA = reference.padded([[1, 2, 3], [6]], 4, fill=np.nan)
  out = group_standardise_tokens(jnp.asarray(s_NA), jnp.asarray(mask_NA), 2)
  np.testing.assert_allclose(out, [[-0.925820, -0.462910, 0, 0], [1.388730, 0, 0, 0]], atol=1e-6)


def test_standardised_tokens_twin_and_padding():
  rng = np.random.default_rng(2)
  rows = [rng.uniform(size=n) for n in (3, 1, 4, 2, 5, 5)]
  expected, _ = reference.padded(reference.standardised_tokens(rows, 3), 5)
  for width in (5, 8):
    s_NA, mask_NA = reference.padded(rows, width, fill=9.0)
    out = group_standardise_tokens(jnp.asarray(s_NA), jnp.asarray(mask_NA), 3)
    np.testing.assert_allclose(out[:, :5], expected, rtol=1e-4, atol=1e-5)
    assert not out[:, 5:].any()


def test_equal_tokens_are_standardised_to_exactly_zero():
  # 4096 equal weights: a running sum is off by far more than one unit in the last place.
  mask_NA = jnp.ones((8, 512), bool).at[3:].set(False)
  assert not group_standardise_tokens(jnp.full((8, 512), 0.1), mask_NA, 8).any()
  assert not group_standardise_tokens(jnp.full((8, 512), 0.1), jnp.zeros((8, 512), bool), 8).any()
