"""Losses per token, as sums: nothing here divides by a count.

A coefficient `coef_NL` holds the advantage (or answer weight), the mask and the normaliser of its token, so that the
loss of a step is the plain sum of what these functions return, over rows, columns, micro-batches and devices. All
return `[N, L]` in at least float32, differentiable in `logp_NL` = log π_θ(token); a coefficient of 0 gives no gradient.
"""

import jax
import jax.numpy as jnp

from nrt_jax.errors import UserError, require_choice
from nrt_jax.masked import masked_sum

NORMALISATIONS = ("token", "sequence", "constant")

# Log-ratios are limited to ±20 (as verl does): e^20 is far outside of any trust region, and e^89 is not a float32.
MAX_LOG_RATIO = 20.0


def reinforce(logp_NL, coef_NL):
  """L_t = -A_t log π_θ(z_t); its gradient is the policy gradient where the sampling policy is π_θ itself."""
  return -coef_NL * _float(logp_NL)


def ppo_clip(logp_NL, behaviour_logp_NL, coef_NL, clip_low, clip_high):
  """L_t = -min(ρ_t A_t, clip(ρ_t, low, high) A_t), ρ_t = π_θ(z_t) / π_behaviour(z_t)  (PPO, arXiv 1707.06347, eq. 7).

  `clip_low` and `clip_high` are bounds of the ratio itself (1 - ε and 1 + ε, say 0.8 and 1.28).
  """
  ratio_NL = _ratio(logp_NL, behaviour_logp_NL)
  return -jnp.minimum(ratio_NL * coef_NL, jnp.clip(ratio_NL, clip_low, clip_high) * coef_NL)


def cispo(logp_NL, behaviour_logp_NL, coef_NL, clip_low, clip_high):
  """L_t = -A_t sg[clip(ρ_t, low, high)] log π_θ(z_t), and 0 where PPO's clip would stop the gradient.

  That is where A_t > 0 and ρ_t > high, or A_t < 0 and ρ_t < low. The weight is CISPO's (arXiv 2506.13585); weight and
  mask together are the released NRT code's (compute_policy_loss_nrt). Bounds of the ratio itself, as in `ppo_clip`.
  """
  ratio_NL = jax.lax.stop_gradient(_ratio(logp_NL, behaviour_logp_NL))
  weight_NL = jnp.where(_stopped(ratio_NL, coef_NL, clip_low, clip_high), 0, jnp.clip(ratio_NL, clip_low, clip_high))
  return -coef_NL * weight_NL * _float(logp_NL)


def truncated_importance(logp_NL, behaviour_logp_NL, coef_NL, clip_low, clip_high):
  """L_t = -A_t sg[min(ρ_t, high)] log π_θ(z_t): importance weights with a cap and no mask (IMPALA's ρ̄, 1802.01561)."""
  del clip_low
  ratio_NL = jax.lax.stop_gradient(_ratio(logp_NL, behaviour_logp_NL))
  return -coef_NL * jnp.minimum(ratio_NL, clip_high) * _float(logp_NL)


def sequence_clip(logp_NL, behaviour_logp_NL, coef_NL, clip_low, clip_high):
  """PPO's clip of the sequence ratio ρ = exp(mean_t log-ratio), spread over its tokens (GSPO, 2507.18071, eq. 5 to 7).

  The row's tokens are those with a coefficient; each carries its share, so that the row's sum is the sequence's loss.
  """
  token_NL = coef_NL != 0
  count_N1 = jnp.maximum(token_NL.sum(axis=-1, keepdims=True), 1)
  log_ratio_NL = jnp.where(token_NL, _float(logp_NL) - behaviour_logp_NL, 0)
  mean_N1 = jnp.clip(log_ratio_NL.sum(axis=-1, keepdims=True) / count_N1, -MAX_LOG_RATIO, MAX_LOG_RATIO)
  ratio_NL = jnp.broadcast_to(jnp.exp(mean_N1), coef_NL.shape)
  return -jnp.minimum(ratio_NL * coef_NL, jnp.clip(ratio_NL, clip_low, clip_high) * coef_NL)


def supervised(logp_NL, coef_NL):
  """L_i = -s_i log π_θ(y*_i): the answer term with weights s, or cross-entropy where s is 1."""
  return -coef_NL * _float(logp_NL)


# name -> fn(logp_NL, behaviour_logp_NL, coef_NL, clip_low, clip_high), the choices for the trace tokens.
TRACE_LOSSES = {
  "truncated_importance": truncated_importance,
  "sequence_clip": sequence_clip,
  "reinforce": lambda logp_NL, behaviour_logp_NL, coef_NL, clip_low, clip_high: reinforce(logp_NL, coef_NL),
  "ppo_clip": ppo_clip,
  "cispo": cispo,
}


def kl_k1(logp_NL, ref_logp_NL):
  """k1 = log π - log π_ref per token: unbiased for KL(π ‖ π_ref) on samples of π (Schulman, Approximating KL, 2020)."""
  return _float(logp_NL) - _float(ref_logp_NL)


def kl_k2(logp_NL, ref_logp_NL):
  """k2 = (log π - log π_ref)² / 2 per token: biased, low variance; its gradient is that of the KL (Schulman, 2020)."""
  return kl_k1(logp_NL, ref_logp_NL) ** 2 / 2


def kl_k3(logp_NL, ref_logp_NL):
  """k3 = r - 1 - log r with r = π_ref / π per token: unbiased and never negative (Schulman, 2020; GRPO)."""
  log_ratio_NL = -kl_k1(logp_NL, ref_logp_NL)
  # Beyond e^20 the exponential goes on as its tangent: finite, and its gradient still points back to the reference.
  near_NL = jnp.minimum(log_ratio_NL, MAX_LOG_RATIO)
  return jnp.expm1(near_NL) + jnp.exp(near_NL) * (log_ratio_NL - near_NL) - log_ratio_NL


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def normaliser(mask_NL, how, minibatches, group_size, constant=None, all_sum=lambda x: x):
  """Weights w `[N, 1]` such that Σ w * mask * loss over the rows of a minibatch is its normalised loss.

  `token`: mean over the minibatch's mask tokens (DAPO). `sequence`: mean over its rows that have any of the row's mean
  (GRPO). `constant`: sum over tokens, divided by its rows and by `constant` (Dr. GRPO, arXiv 2503.20783). Minibatch m
  of M holds the prompts b with b % M == m: strided, so that each device holds rows of every minibatch. `all_sum` sums
  over the devices that share the batch (identity under jit, psum under pmap). Counts are of the whole minibatch, so
  that neither micro-batches nor devices change the loss. UserError: unknown choice, bad `constant`, prompts not
  divisible.
  """
  _check_normaliser(mask_NL.shape[0], how, minibatches, group_size, constant)
  # Row n = b * G + g of prompt b = k * M + m is [k, m, g].
  token_KMG = mask_NL.sum(axis=-1).reshape(-1, minibatches, group_size)

  def total(x_KMG):
    return jnp.maximum(all_sum(x_KMG.sum(axis=(0, 2), keepdims=True)), 1)

  if how == "token":
    count_KMG = total(token_KMG)
  elif how == "sequence":
    count_KMG = total((token_KMG > 0).astype(int)) * jnp.maximum(token_KMG, 1)
  else:
    count_KMG = total(jnp.ones_like(token_KMG)) * constant
  weight_KMG = 1 / jnp.broadcast_to(count_KMG, token_KMG.shape).astype(jnp.float32)
  return weight_KMG.reshape(-1, 1)


def ratio_stats(logp_NL, behaviour_logp_NL, mask_NL, coef_NL, clip_low, clip_high):
  """Metrics of how far π_θ is from the sampling policy on the tokens of `mask_NL`, without gradient.

  `policy/ratio_max` is the largest ρ (0 where the mask is empty), to be combined by max. (Numerator, denominator)
  pairs: `policy/clip_fraction`, the share of tokens whose gradient the trust region stops, and `policy/kl`, k3's
  KL(sampling policy ‖ π_θ) per token.
  """
  logp_NL, behaviour_logp_NL = jax.lax.stop_gradient((logp_NL, behaviour_logp_NL))
  ratio_NL = _ratio(logp_NL, behaviour_logp_NL)
  stopped_NL = _stopped(ratio_NL, coef_NL, clip_low, clip_high)
  count = mask_NL.sum().astype(jnp.float32)
  return {
    "policy/ratio_max": jnp.max(ratio_NL, where=mask_NL, initial=0),
    "policy/clip_fraction": (masked_sum(stopped_NL, mask_NL).astype(jnp.float32), count),
    "policy/kl": (masked_sum(kl_k3(behaviour_logp_NL, logp_NL), mask_NL), count),
  }


def _ratio(logp_NL, behaviour_logp_NL):
  log_ratio_NL = _float(logp_NL) - _float(behaviour_logp_NL)
  return jnp.exp(jnp.clip(log_ratio_NL, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _stopped(ratio_NL, coef_NL, clip_low, clip_high):
  """Tokens whose update would leave the trust region further still. Normalisers are positive: coef has A's sign."""
  return ((coef_NL > 0) & (ratio_NL > clip_high)) | ((coef_NL < 0) & (ratio_NL < clip_low))


def _float(x):
  """bfloat16 log-probabilities have 2 to 3 digits: differences and ratios of them need float32."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_normaliser(rows, how, minibatches, group_size, constant):
  require_choice("loss normalisation", how, NORMALISATIONS)
  if rows % (minibatches * group_size):
    raise UserError(
      f"optimizer.minibatches: found {minibatches}, allowed: a divisor of the {rows // group_size} prompts of a batch"
    )
  if how == "constant" and not (constant and constant > 0):
    raise UserError(f"loss normalisation 'constant': needs a positive constant, found {constant!r}")
