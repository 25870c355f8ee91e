import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.objectives import masked

X = jnp.array([[1.0, 2.0, 6.0], [5.0, jnp.nan, jnp.inf], [jnp.nan, 7.0, 8.0]])
MASK = jnp.array([[True, True, True], [True, False, False], [False, False, False]])
REDUCTIONS = [masked.masked_sum, masked.masked_mean, masked.masked_std, masked.masked_logsumexp]


def test_sum_and_mean_by_hand():
  np.testing.assert_array_equal(masked.masked_sum(X, MASK, axis=-1), [9, 5, 0])
  # jnp.mean(x * mask) would give 5/3 in the second row, 0/0 in the last.
  np.testing.assert_array_equal(masked.masked_mean(X, MASK, axis=-1), [3, 5, 0])
  assert masked.masked_sum(X, MASK) == 14 and masked.masked_mean(X, MASK) == 3.5


def test_std_by_hand():
  # Deviations -2, -1, 3: 14 / 2 unbiased, 14 / 3 biased.
  np.testing.assert_allclose(masked.masked_std(X, MASK, axis=-1), [7**0.5, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(masked.masked_std(X, MASK, axis=-1, unbiased=False), [(14 / 3) ** 0.5, 0, 0], rtol=1e-6)


def test_logsumexp_by_hand_and_without_overflow():
  x = jnp.log(jnp.array([[1.0, 2.0, 6.0]]))
  mask = jnp.array([[True, True, False]])
  np.testing.assert_allclose(masked.masked_logsumexp(x, mask, axis=-1), np.log([3.0]), rtol=1e-6)
  np.testing.assert_allclose(masked.masked_logsumexp(x + 1000, mask, axis=-1), 1000 + np.log([3.0]), rtol=1e-6)
  np.testing.assert_allclose(masked.masked_logsumexp(x - 1e4, mask, axis=-1), -1e4 + np.log([3.0]), rtol=1e-6)
  assert masked.masked_logsumexp(x, ~mask & mask) == -jnp.inf


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_agree_with_numpy_on_the_chosen_entries(reduction):
  twin = {
    "masked_sum": np.sum, "masked_mean": np.mean, "masked_std": lambda x: np.std(x, ddof=1),
    "masked_logsumexp": lambda x: np.log(np.exp(x).sum()),
  }[reduction.__name__]
  rng = np.random.default_rng(0)
  x, mask = rng.normal(size=(5, 7)).astype(np.float32), rng.random((5, 7)) < 0.6
  expected = [twin(row[chosen].astype(np.float64)) for row, chosen in zip(x, mask)]
  assert min(mask.sum(axis=-1)) >= 2
  np.testing.assert_allclose(reduction(jnp.asarray(x), jnp.asarray(mask), axis=-1), expected, rtol=1e-5)
  np.testing.assert_allclose(reduction(jnp.asarray(x), jnp.asarray(mask)), twin(x[mask]), rtol=1e-5)
  kept = reduction(jnp.asarray(x), jnp.asarray(mask), axis=-1, keepdims=True)
  np.testing.assert_allclose(kept, np.array(expected)[:, None], rtol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_are_finite_and_zero_off_the_mask(reduction):
  gradient = jax.grad(lambda x: reduction(x, MASK, axis=-1)[:2].sum())(X)
  assert jnp.isfinite(gradient).all() and not gradient[~MASK].any()
  assert gradient[0].any()
  empty = jax.grad(lambda x: reduction(x, MASK & ~MASK, axis=-1).sum())(X)
  np.testing.assert_array_equal(empty, jnp.zeros_like(X))


def test_std_of_equal_entries_has_gradient_zero():
  x = jnp.full((1, 4), 0.5)
  mask = jnp.ones_like(x, bool)
  np.testing.assert_array_equal(jax.grad(lambda x: masked.masked_std(x, mask))(x), jnp.zeros_like(x))  # jnp.std: NaN
