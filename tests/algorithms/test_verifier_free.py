"""Details of the likelihood methods that test_battery.py does not cover."""

import jax.numpy as jnp
import numpy as np

from nrt_jax.algorithms import verifier_free
from nrt_jax.arrays import Rollouts
from nrt_jax.objectives import advantages


def rollouts(token_NR, length_N, ended_N):
  token_NR = jnp.asarray(token_NR, jnp.int32)
  ended_N = jnp.asarray(ended_N, bool)
  return Rollouts(token_NR, jnp.asarray(length_N), jnp.zeros(token_NR.shape), ended_N, ended_N)


def test_equal_traces_have_equal_scores_however_they_ended():
  # Two groups of three. 8 and 9 are stop tokens, what follows them is padding of any kind.
  token_NR = [[1, 2, 8], [1, 2, 9], [1, 3, 8], [1, 2, 8], [4, 4, 4], [4, 4, 4]]
  made = rollouts(token_NR, [3, 3, 3, 3, 3, 3], [True, True, True, True, False, False])
  logp_NA = jnp.arange(6.0)[:, None] * 1e-7 - 1
  settled = verifier_free.settle_ties(made, logp_NA, jnp.full((6, 1), -5.0), 3)
  # Row 1 takes row 0's score; row 3 holds the same trace as row 0 but is of another group; row 5 takes row 4's.
  np.testing.assert_array_equal(settled, logp_NA[jnp.array([0, 0, 2, 3, 4, 4])])


def test_empty_traces_score_like_the_empty_trace():
  token_NR = [[8, 7, 7], [9, 1, 2], [1, 8, 7]]
  made = rollouts(token_NR, [1, 1, 2], [True, True, True])
  empty_NA = jnp.array([[-2.0], [-2.0], [-2.0]])
  settled = verifier_free.settle_ties(made, jnp.array([[-2.0000002], [-1.9999999], [-1.0]]), empty_NA, 3)
  np.testing.assert_array_equal(settled, jnp.array([[-2.0], [-2.0], [-1.0]]))


def test_rounding_of_a_subtracted_baseline_is_no_variance():
  """R' = R - R_base with R = 0.3: 3e-8 is the rounding of R. Taken for a difference it would become ±0.707."""
  gain_N = jnp.array([3e-8, 0.0, 1e-3, 0.0])
  taken, known = (
    advantages.group_advantages(gain_N, 2, "mean", "std", magnitude_N=m) for m in (None, jnp.full(4, 0.3))
  )
  np.testing.assert_allclose(taken, [0.70710678, -0.70710678] * 2, rtol=1e-6)
  np.testing.assert_allclose(known, [0.0, 0.0, 0.70710678, -0.70710678], rtol=1e-6)
