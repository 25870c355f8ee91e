"""The likelihood rewards R = f(c) of a reference answer, and the weights s that differentiate them.

With c_i = π(y*_i | x, z, y*_<i) over the T tokens of the answer, the exact gradient of J = E_z[f(c)] is
E_z[ f(c) ∇log π(z|x) + Σ_i s_i ∇log c_i ] with s_i = (∂f/∂c_i) c_i = ∂f/∂log c_i  (NRT, arXiv 2602.11549; f = log_prob
is JEPO, arXiv 2503.19618; f = prob is VeriFree, arXiv 2505.21493). Each function of AGGREGATIONS returns the pair (R,
s) from log c_i, because the product of a long answer underflows. A row without answer tokens has reward 0 and weights
0.
"""

import jax
import jax.numpy as jnp

from nrt_jax.errors import require_choice
from nrt_jax.objectives.masked import masked_mean, masked_sum

BASELINES = ("none", "subtract", "subtract_and_clip")

# 1/c_base is capped at e^40 = 2.4e17: float32 then holds the reward and, for the group's deviation, its square. The
# released code stops on an infinite weight instead.
MAX_LOG_INVERSE = 40.0


def aggregate(name, logp_NA, mask_NA, base_logp_NA=None):
  """Reward f(c) of each row's answer `[N]`, by the aggregation `name` of AGGREGATIONS.

  `logp_NA` is log c_i; `mask_NA` (bool) marks the answer's tokens, its end token included; `base_logp_NA` is log c_i
  after an empty trace, which the names in NEEDS_BASE require (else ValueError). UserError: unknown name.
  """
  return _reward_and_weights(name, logp_NA, mask_NA, base_logp_NA)[0]


def answer_weights(name, logp_NA, mask_NA, base_logp_NA=None):
  """Weights s_i = ∂f/∂log c_i `[N, A]` of ∇log c_i in the gradient, 0 off the mask. Arguments as in `aggregate`."""
  return _reward_and_weights(name, logp_NA, mask_NA, base_logp_NA)[1]


def subtract_baseline(reward_N, base_reward_N, how):
  """R (`none`), R - R_base (`subtract`) or max(0, R - R_base) (`subtract_and_clip`, the NRT paper's).

  R_base `[N]` is the same aggregation of the empty trace's log-probabilities. UserError: `how` not in BASELINES.
  """
  require_choice("reward baseline", how, BASELINES)
  if how == "none":
    return reward_N
  gain_N = reward_N - base_reward_N
  return gain_N if how == "subtract" else jnp.maximum(gain_N, 0)


def magnitude(name, reward_N, base_reward_N, mask_NA):
  """The size of the numbers that R and R - R_base `[N]` are computed from, whose rounding is part of them.

  A log-probability near 0 is the difference of logits and their log-sum-exp, numbers of order 1 or more: 1 a token.
  """
  size_N = jnp.maximum(jnp.abs(reward_N), jnp.abs(base_reward_N))
  if name == "log_prob":
    return jnp.maximum(size_N, mask_NA.sum(axis=-1))
  return jnp.maximum(size_N, mask_NA.any(axis=-1)) if name == "mean_log_prob" else size_N


def spread_weights(logp_NA, mask_NA, group_size):
  """w_i = σ_i / mean_j σ_j, σ_i the std of log c_i over a group's traces `[N, A]`; 0 off the mask (DRO, 2506.13351).

  Known of the paper's w is that it increases in σ; this form is ours: the reward keeps its size, and is the plain one
  where σ is the same for all tokens, or 0. The weights are constants of the objective.
  """
  logp_BGA = jnp.where(mask_NA, logp_NA, 0).reshape(-1, group_size, logp_NA.shape[-1])
  low_B1A, high_B1A = logp_BGA.min(axis=1, keepdims=True), logp_BGA.max(axis=1, keepdims=True)
  # Log-probabilities are not positive: a range within the rounding of the lowest is no spread.
  sigma_B1A = jnp.where(high_B1A - low_B1A > -1e-6 * low_B1A, jnp.std(logp_BGA, axis=1, keepdims=True), 0)
  sigma_NA = sigma_B1A.repeat(group_size, axis=1).reshape(mask_NA.shape)
  mean_N1 = masked_mean(sigma_NA, mask_NA, axis=-1, keepdims=True)
  weight_NA = jnp.where(mean_N1 > 0, sigma_NA / jnp.where(mean_N1 > 0, mean_N1, 1), 1)
  return jax.lax.stop_gradient(jnp.where(mask_NA, weight_NA, 0))


def log_prob(logp_NA, mask_NA, base_logp_NA=None):
  """R = Σ_i log c_i, s_i = 1: the single-sample bound of JEPO, where NRT calls it JLB."""
  return masked_sum(logp_NA, mask_NA, axis=-1), mask_NA.astype(logp_NA.dtype)


def mean_log_prob(logp_NA, mask_NA, base_logp_NA=None):
  """R = (1/T) Σ_i log c_i, s_i = 1/T: minus the logarithm of the perplexity (arXiv 2602.03979)."""
  return masked_mean(logp_NA, mask_NA, axis=-1), mask_NA / _length_N1(mask_NA).astype(logp_NA.dtype)


def prob(logp_NA, mask_NA, base_logp_NA=None):
  """R = Π_i c_i, s_i = R: VeriFree."""
  reward_N = jnp.exp(masked_sum(logp_NA, mask_NA, axis=-1)) * mask_NA.any(axis=-1)
  return reward_N, reward_N[:, None] * mask_NA


def geometric_mean(logp_NA, mask_NA, base_logp_NA=None):
  """R = (Π_i c_i)^(1/T), s_i = R / T: NRT-GM."""
  reward_N = jnp.exp(masked_mean(logp_NA, mask_NA, axis=-1)) * mask_NA.any(axis=-1)
  return reward_N, reward_N[:, None] / _length_N1(mask_NA) * mask_NA


def arithmetic_mean(logp_NA, mask_NA, base_logp_NA=None):
  """R = (1/T) Σ_i c_i, s_i = c_i / T: the reward of RLPR."""
  return _mean_and_terms(jnp.exp(logp_NA), mask_NA)


def weighted_sum_inverse_prob(logp_NA, mask_NA, base_logp_NA):
  """R = (1/T) Σ_i w_i c_i, s_i = w_i c_i / T, w_i = 1 / c_{i,base}: NRT-WS(1/p)."""
  log_weight_NA = jnp.minimum(-base_logp_NA, MAX_LOG_INVERSE)
  return _mean_and_terms(jnp.exp(logp_NA + log_weight_NA), mask_NA)


def weighted_sum_log_prob(logp_NA, mask_NA, base_logp_NA):
  """R = (1/T) Σ_i w_i c_i, s_i = w_i c_i / T, w_i = -log c_{i,base}: NRT-WS(-log p)."""
  return _mean_and_terms(-base_logp_NA * jnp.exp(logp_NA), mask_NA)


def repeats(token_NR, length_N, ngram: int, times: int):
  """Whether some `ngram` tokens in a row occur at least `times` times, overlaps included, among the first `length_N`.

  RLPR's sign of a degenerate completion (arXiv 2506.18254, released code). Rows of windows are sorted whole, so that
  nothing depends on a hash; returns bool `[N]`.
  """
  windows = token_NR.shape[1] - ngram + 1
  if windows < times:
    return jnp.zeros(length_N.shape, bool)
  inside_NW = jnp.arange(windows)[None] + ngram <= length_N[:, None]
  keys = [jnp.where(inside_NW, token_NR[:, i : i + windows], -1) for i in range(ngram)]
  ordered = jax.lax.sort(keys, dimension=1, num_keys=ngram)
  same_NW = ordered[0][:, : windows - times + 1] >= 0
  for key_NW in ordered:  # equal at both ends of `times` windows in order: equal between them too
    same_NW &= key_NW[:, : windows - times + 1] == key_NW[:, times - 1 :]
  return same_NW.any(axis=1)


AGGREGATIONS = {
  "log_prob": log_prob,
  "mean_log_prob": mean_log_prob,
  "prob": prob,
  "geometric_mean": geometric_mean,
  "arithmetic_mean": arithmetic_mean,
  "weighted_sum_inverse_prob": weighted_sum_inverse_prob,
  "weighted_sum_log_prob": weighted_sum_log_prob,
}
NEEDS_BASE = ("weighted_sum_inverse_prob", "weighted_sum_log_prob")


def _reward_and_weights(name, logp_NA, mask_NA, base_logp_NA):
  require_choice("reward aggregation", name, AGGREGATIONS)
  # What stands beyond the answer may be anything, so that it must not even reach exp.
  logp_NA = jnp.where(mask_NA, logp_NA, 0)
  if name in NEEDS_BASE:
    if base_logp_NA is None:
      raise ValueError(f"aggregation {name!r} weighs tokens by base_logp_NA, which was not given")
    # The token weights w are constants of the objective, also where the base is the policy itself.
    base_logp_NA = jax.lax.stop_gradient(jnp.where(mask_NA, base_logp_NA, 0))
  return AGGREGATIONS[name](logp_NA, mask_NA, base_logp_NA)


def _mean_and_terms(x_NA, mask_NA):
  """For R = (1/T) Σ_i x_i with x_i proportional to c_i, the terms of the mean are the weights s."""
  s_NA = jnp.where(mask_NA, x_NA, 0) / _length_N1(mask_NA)
  return s_NA.sum(axis=-1), s_NA


def _length_N1(mask_NA):
  return jnp.maximum(mask_NA.sum(axis=-1, keepdims=True), 1)
