import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from nrt_jax.errors import UserError
from nrt_jax.objectives import rewards
from nrt_jax.objectives.advantages import group_advantages

NAMES = reference.AGGREGATION_NAMES
C, BASE = [0.95, 0.6, 0.1], [0.9, 0.2, 0.05]

# name -> (R of C, R of BASE, s of C), worked out from the table of NRT.
EXPECTED = {
  "log_prob": (-2.864704, -4.710531, [1, 1, 1]),  # mean instead of sum: -0.954901
  "mean_log_prob": (-0.954901, -1.570177, [1 / 3, 1 / 3, 1 / 3]),
  "prob": (0.057, 0.009, [0.057, 0.057, 0.057]),
  "geometric_mean": (0.384850, 0.208008, [0.128283, 0.128283, 0.128283]),  # s without 1/T: 0.384850
  "arithmetic_mean": (0.55, 0.383333, [0.316667, 0.2, 0.033333]),  # mean of log c instead: -0.954901
  "weighted_sum_inverse_prob": (2.018519, 1.0, [0.351852, 1.0, 0.666667]),  # without 1/T: 6.055556
  # Weights normalised to sum 1 instead of divided by T: 0.289888.
  "weighted_sum_log_prob": (0.455109, 0.188833, [0.033364, 0.321888, 0.099858]),
}


def ragged(seed=0, lengths=(1, 5, 3, 8), width=9, fill=0.0):
  """Random answers: lists of probabilities, and the padded log-probabilities and mask."""
  rng = np.random.default_rng(seed)
  c = [rng.uniform(0.05, 0.99, n) for n in lengths]
  base = [rng.uniform(0.05, 0.99, n) for n in lengths]
  logp_NA, mask_NA = reference.padded([np.log(row) for row in c], width, fill)
  base_logp_NA, _ = reference.padded([np.log(row) for row in base], width, fill)
  return c, base, (jnp.asarray(logp_NA), jnp.asarray(mask_NA), jnp.asarray(base_logp_NA))


def test_the_table_is_complete():
  assert set(rewards.AGGREGATIONS) == set(NAMES) == set(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_reference_values(name):
  reward, base_reward, s = EXPECTED[name]
  logp_NA = jnp.log(jnp.array([C, BASE]))
  base_logp_NA = jnp.log(jnp.array([BASE, BASE]))
  mask_NA = jnp.ones((2, 3), bool)
  np.testing.assert_allclose(rewards.aggregate(name, logp_NA, mask_NA, base_logp_NA), [reward, base_reward], atol=2e-6)
  np.testing.assert_allclose(rewards.answer_weights(name, logp_NA, mask_NA, base_logp_NA)[0], s, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_twins_on_ragged_answers(name):
  c, base, (logp_NA, mask_NA, base_logp_NA) = ragged()
  reward_N = jax.jit(rewards.aggregate, static_argnums=0)(name, logp_NA, mask_NA, base_logp_NA)
  s_NA = rewards.answer_weights(name, logp_NA, mask_NA, base_logp_NA)
  np.testing.assert_allclose(reward_N, [reference.aggregate(name, *row) for row in zip(c, base)], rtol=1e-5)
  expected, _ = reference.padded([reference.answer_weights(name, *row) for row in zip(c, base)], mask_NA.shape[1])
  np.testing.assert_allclose(s_NA, expected, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_derivative(name):
  c, base, (logp_NA, mask_NA, base_logp_NA) = ragged()
  s_NA = rewards.answer_weights(name, logp_NA, mask_NA, base_logp_NA)
  gradient = jax.grad(lambda x: rewards.aggregate(name, x, mask_NA, base_logp_NA).sum())(logp_NA)
  np.testing.assert_allclose(s_NA, gradient, rtol=1e-5, atol=1e-7)
  for n, (row, base_row) in enumerate(zip(c, base)):
    alpha = reference.central_difference(lambda c: reference.aggregate(name, c, base_row), row)
    np.testing.assert_allclose(s_NA[n, : len(row)], alpha * row, rtol=1e-5)


@pytest.mark.parametrize("name", rewards.NEEDS_BASE)
def test_the_base_is_a_constant(name):
  _, _, (logp_NA, mask_NA, base_logp_NA) = ragged()
  gradient = jax.grad(lambda base: rewards.aggregate(name, logp_NA, mask_NA, base).sum())(base_logp_NA)
  assert not gradient.any()
  with pytest.raises(ValueError, match="base_logp_NA"):
    rewards.aggregate(name, logp_NA, mask_NA)


def test_only_the_weighted_sums_use_the_base():
  _, _, (logp_NA, mask_NA, base_logp_NA) = ragged()
  for name in NAMES:
    if name not in rewards.NEEDS_BASE:
      without = rewards.aggregate(name, logp_NA, mask_NA)
      np.testing.assert_array_equal(without, rewards.aggregate(name, logp_NA, mask_NA, base_logp_NA))


@pytest.mark.parametrize("fill", [0.0, -1e4, 100.0, np.nan])
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name, fill):
  _, _, (logp_NA, mask_NA, base_logp_NA) = ragged(width=8)
  _, _, (wide_NA, wide_mask_NA, wide_base_NA) = ragged(width=13, fill=fill)
  narrow = rewards.aggregate(name, logp_NA, mask_NA, base_logp_NA)
  wide = rewards.aggregate(name, wide_NA, wide_mask_NA, wide_base_NA)
  np.testing.assert_allclose(wide, narrow, rtol=1e-6)
  s_NA = rewards.answer_weights(name, wide_NA, wide_mask_NA, wide_base_NA)
  np.testing.assert_allclose(s_NA[:, :8], rewards.answer_weights(name, logp_NA, mask_NA, base_logp_NA), rtol=1e-6)
  assert not s_NA[:, 8:].any()
  gradient = jax.grad(lambda x: rewards.aggregate(name, x, wide_mask_NA, wide_base_NA).sum())(wide_NA)
  np.testing.assert_allclose(gradient, s_NA, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_answer_have_reward_and_gradient_zero(name):
  logp_NA, mask_NA = jnp.full((2, 3), -0.5), jnp.zeros((2, 3), bool)
  value, gradient = jax.value_and_grad(lambda x: rewards.aggregate(name, x, mask_NA, logp_NA).sum())(logp_NA)
  assert value == 0 and not gradient.any()
  assert not rewards.answer_weights(name, logp_NA, mask_NA, logp_NA).any()


@pytest.mark.parametrize("name", NAMES)
def test_extreme_log_probs_stay_finite(name):
  logp_NA = jnp.array([[-1e4, -1e4], [-1e4, 0.0], [0.0, 0.0], [-1e-9, -50.0]])
  mask_NA = jnp.ones((4, 2), bool)
  for base in (-1e4, -90.0, 0.0):
    base_logp_NA = jnp.full((4, 2), base)
    reward_N = rewards.aggregate(name, logp_NA, mask_NA, base_logp_NA)
    s_NA = rewards.answer_weights(name, logp_NA, mask_NA, base_logp_NA)
    gradient = jax.grad(lambda x: rewards.aggregate(name, x, mask_NA, base_logp_NA).sum())(logp_NA)
    advantage_N = group_advantages(reward_N, 4, "mean", "std")
    for array in (reward_N, s_NA, gradient, advantage_N):
      assert jnp.isfinite(array).all(), (name, base)
    np.testing.assert_allclose(gradient, s_NA, rtol=1e-5, atol=1e-7)


def test_product_is_taken_in_log_space():
  # 40 tokens of 1e-3: the product (1e-120) underflows, its geometric mean (1e-3) must not.
  logp_NA = jnp.full((1, 40), jnp.log(1e-3))
  mask_NA = jnp.ones((1, 40), bool)
  np.testing.assert_allclose(rewards.aggregate("geometric_mean", logp_NA, mask_NA), [1e-3], rtol=1e-5)
  assert rewards.aggregate("prob", logp_NA, mask_NA) == 0
  # c = e^-100 is 0 in float32, c / c_base = e^-61 is not.
  logp_NA, base_logp_NA, mask_NA = jnp.full((1, 1), -100.0), jnp.full((1, 1), -39.0), jnp.ones((1, 1), bool)
  ratio_N = rewards.aggregate("weighted_sum_inverse_prob", logp_NA, mask_NA, base_logp_NA)
  np.testing.assert_allclose(ratio_N, [np.exp(-61)], rtol=1e-5)


def test_subtract_baseline_by_hand():
  reward_N, base_N = jnp.array([0.5, 0.125, -2.0]), jnp.array([0.25, 0.25, -3.0])
  np.testing.assert_array_equal(rewards.subtract_baseline(reward_N, base_N, "none"), reward_N)
  np.testing.assert_array_equal(rewards.subtract_baseline(reward_N, base_N, "subtract"), [0.25, -0.125, 1.0])
  # Clipping the reward instead of the gain would leave -2 -> 0 in the last entry.
  np.testing.assert_array_equal(rewards.subtract_baseline(reward_N, base_N, "subtract_and_clip"), [0.25, 0.0, 1.0])


def test_wrong_names_are_user_errors_that_list_the_choices():
  logp_NA, mask_NA = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
  with pytest.raises(UserError, match="'geometric'.*did you mean 'geometric_mean'"):
    rewards.aggregate("geometric", logp_NA, mask_NA)
  with pytest.raises(UserError, match="'clip', allowed: none, subtract, subtract_and_clip"):
    rewards.subtract_baseline(logp_NA[0], logp_NA[0], "clip")
