"""Losses per token, as sums: nothing here divides by a count.

A coefficient `coef_NL` holds the advantage (or answer weight), the mask and the normaliser of its token, so that the
loss of a step is the plain sum of what these functions return, over rows, columns, micro-batches and devices. They
return `[N, L]` (`dpo`: `[N / 2]`) in at least float32, differentiable in `logp_NL` = log π_θ(token); a coefficient of 0
gives no gradient.
"""

import functools

import jax
import jax.numpy as jnp

from nrt_jax.errors import UserError, require_choice
from nrt_jax.objectives.masked import masked_sum

NORMALISATIONS = ("token", "sequence", "constant")

# Log-ratios are limited to ±20 (as verl does): e^20 is far outside of any trust region, and e^89 is not a float32.
MAX_LOG_RATIO = 20.0
NFT_MAX_LOG_RATIO = 10.0  # in NFT's released code
NFT_RATIOS = ("token", "sequence")
# NFT divides by r̂ and by 1 - r̂; soft labels may be that small, and so may differences of labels close to 1.
NFT_LEAST_RATE = 1e-6


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
  ratio_NL = _sequence_ratio(logp_NL, behaviour_logp_NL, coef_NL)
  return -jnp.minimum(ratio_NL * coef_NL, jnp.clip(ratio_NL, clip_low, clip_high) * coef_NL)


def nft(logp_NL, behaviour_logp_NL, weight_NL, label_N, rate_N, floor=1.0, negative_weight=1.0, ratio="token"):
  """Negative-aware fine-tuning (2505.18116, eq. 9 and 10): likelihood of the positives, and of the implied negatives.

      L_t = w_t [ -s log R_t  -  negative_weight (1 - s) log max_ε(V_t) ],   V_t = (1 - r̂ R_t) / (1 - r̂)

  with the row's label s in [0, 1], its prompt's rate r̂ in [0, 1], and the ratio R_t of the token or (`ratio`
  "sequence") of the row's weighted tokens together. max_ε is V floored at `floor` with slope 1 everywhere. Log-ratios
  are cut at 10 from above, without gradient beyond, as in the released code.
  """
  log_ratio_NL, negative_NL = _nft_ratios(logp_NL, behaviour_logp_NL, weight_NL, rate_N, ratio)
  value_NL = jax.lax.stop_gradient(negative_NL)
  floored_NL = jnp.maximum(value_NL, floor)
  # V may be -1e6: floored + (V - sg V) would have no digits left to take the logarithm of.
  log_negative_NL = jnp.log(floored_NL) + (negative_NL - value_NL) / floored_NL
  label_N1 = label_N[:, None]
  return -weight_NL * (label_N1 * log_ratio_NL + negative_weight * (1 - label_N1) * log_negative_NL)


def _nft_ratios(logp_NL, behaviour_logp_NL, weight_NL, rate_N, ratio):
  """log R and V of each token `[N, L]`; with ratio "sequence" those of its row."""
  log_ratio_NL = _float(logp_NL) - _float(behaviour_logp_NL)
  if ratio == "sequence":
    log_ratio_N1 = jnp.where(weight_NL != 0, log_ratio_NL, 0).sum(axis=-1, keepdims=True)
    log_ratio_NL = jnp.broadcast_to(log_ratio_N1, weight_NL.shape)
  log_ratio_NL = jnp.minimum(log_ratio_NL, NFT_MAX_LOG_RATIO)
  rate_N1 = rate_N[:, None]
  return log_ratio_NL, (1 - rate_N1 * jnp.exp(log_ratio_NL)) / jnp.maximum(1 - rate_N1, NFT_LEAST_RATE)


def dpo(logp_NL, reference_logp_NL, coef_NL, beta):
  """L = -w log σ(β m) of each pair, float32 `[N / 2]` (DPO, arXiv 2305.18290, eq. 7), with the pair's margin

      m = log π_θ(y_w) / π_ref(y_w) - log π_θ(y_l) / π_ref(y_l).

  Rows 2b and 2b + 1 are a pair; `coef_NL` is w on the tokens of the chosen y_w, -w on those of the rejected y_l.
  """
  margin_P, weight_P = pair_margins(logp_NL, reference_logp_NL, coef_NL)
  return -weight_P * jax.nn.log_sigmoid(beta * margin_P)


def pair_margins(logp_NL, reference_logp_NL, coef_NL):
  """The margin m and the weight w of each pair of rows, both `[N / 2]`; see `dpo`."""
  log_ratio_NL = jnp.where(coef_NL != 0, _float(logp_NL) - _float(reference_logp_NL), 0)
  margin_N, weight_N = (jnp.sign(coef_NL) * log_ratio_NL).sum(axis=-1), jnp.abs(coef_NL).max(axis=-1)
  return margin_N.reshape(-1, 2).sum(axis=-1), weight_N.reshape(-1, 2).max(axis=-1)


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


TRUST_REGIONS = ("ppo_clip", "cispo", "sequence_clip")  # of these, the ones that stop gradients by the ratio


def kl_k1(logp_NL, ref_logp_NL):
  """k1 = log π - log π_ref per token: unbiased for KL(π ‖ π_ref) on samples of π (Schulman, Approximating KL, 2020).

  It belongs into a reward: as a loss it has no gradient in expectation.
  """
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


# What a loss may hold. Not k1: the gradient of log π - log π_ref is that of log π alone, 0 in expectation.
KL_ESTIMATORS = {"k2": kl_k2, "k3": kl_k3}


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


def ratio_stats(trace_loss, logp_NL, behaviour_logp_NL, mask_NL, coef_NL, clip_low, clip_high):
  """Metrics of the ratio ρ of a trace loss, on the tokens of `mask_NL`, without gradient.

  `policy/ratio_max` is the largest ρ (0 where the mask is empty), to be combined by max; `policy/clip_fraction` is the
  (numerator, denominator) of the share of tokens whose gradient the trust region stops, where the loss has one.
  """
  logp_NL, behaviour_logp_NL = jax.lax.stop_gradient((logp_NL, behaviour_logp_NL))
  row_ratio = functools.partial(_sequence_ratio, coef_NL=coef_NL)
  ratio_NL = (row_ratio if trace_loss == "sequence_clip" else _ratio)(logp_NL, behaviour_logp_NL)
  stats = {"policy/ratio_max": jnp.max(ratio_NL, where=mask_NL, initial=0)}
  if trace_loss in TRUST_REGIONS:
    stopped_NL = _stopped(ratio_NL, coef_NL, clip_low, clip_high)
    stats["policy/clip_fraction"] = (masked_sum(stopped_NL, mask_NL).astype(jnp.float32), _count(mask_NL))
  return stats


def sampler_stats(logp_NL, sampled_logp_NL, mask_NL):
  """How far policies are from what the sampler drew from, on the tokens of `mask_NL`, as (numerator, denominator).

  `policy/kl` is k3's KL(sampling policy ‖ π_θ) per token. `policy/mismatch` is the mean of |log π - log π_sampler|: on
  the sampler's own weights, those of a step's first minibatch, it is what sampling and update differ by in rounding.
  """
  logp_NL, count = jax.lax.stop_gradient(logp_NL), _count(mask_NL)
  apart_NL = jnp.abs(_float(logp_NL) - _float(sampled_logp_NL))
  return {
    "policy/kl": (masked_sum(kl_k3(sampled_logp_NL, logp_NL), mask_NL), count),
    "policy/mismatch": (masked_sum(apart_NL, mask_NL), count),
  }


def entropy_drift(logp_NL, entropy_NL, coef_NL, weight_NL, mask_NL):
  """-Cov(A, log π) in the states of the tokens of `mask_NL`, averaged by `weight_NL`, as (numerator, denominator).

  A natural-gradient step of η on the logits changes a state's entropy by η times this, to first order (arXiv
  2505.22617); above 0, unlikely tokens are rewarded. E[log π] is -H in each state, so -A (log π + H) of the sampled
  tokens estimates it without bias where the paper subtracts means over a batch. `coef_NL` is A times `weight_NL`;
  without gradient.
  """
  logp_NL, entropy_NL = jax.lax.stop_gradient((_float(logp_NL), _float(entropy_NL)))
  return -masked_sum(coef_NL * (logp_NL + entropy_NL), mask_NL), masked_sum(weight_NL, mask_NL)


def nft_stats(logp_NL, behaviour_logp_NL, weight_NL, label_N, rate_N, floor=1.0, negative_weight=1.0, ratio="token"):
  """The metrics of `ratio_stats` for `nft`, over the tokens with a weight.

  `policy/floor_fraction` is the share of tokens below V's floor (by more than rounding: V is 1 on the policy), which
  changes their weight and stops no gradient.
  """
  logp_NL, behaviour_logp_NL = jax.lax.stop_gradient((logp_NL, behaviour_logp_NL))
  log_ratio_NL, negative_NL = _nft_ratios(logp_NL, behaviour_logp_NL, weight_NL, rate_N, ratio)
  mask_NL = weight_NL != 0
  is_negative_N1 = (negative_weight * (1 - label_N) > 0)[:, None]
  floored = masked_sum((negative_NL < floor - 1e-6) & is_negative_N1, mask_NL).astype(jnp.float32)
  return {
    "policy/ratio_max": jnp.max(jnp.exp(log_ratio_NL), where=mask_NL, initial=0),
    "policy/floor_fraction": (floored, _count(mask_NL)),
  }


def _count(mask_NL):
  return mask_NL.sum().astype(jnp.float32)


def _ratio(logp_NL, behaviour_logp_NL):
  log_ratio_NL = _float(logp_NL) - _float(behaviour_logp_NL)
  return jnp.exp(jnp.clip(log_ratio_NL, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _sequence_ratio(logp_NL, behaviour_logp_NL, coef_NL):
  """exp of the mean log-ratio of a row's tokens, those with a coefficient, for each of its columns `[N, L]`."""
  token_NL = coef_NL != 0
  log_ratio_NL = jnp.where(token_NL, _float(logp_NL) - _float(behaviour_logp_NL), 0)
  count_N1 = jnp.maximum(token_NL.sum(axis=-1, keepdims=True), 1)
  mean_N1 = log_ratio_NL.sum(axis=-1, keepdims=True) / count_N1
  return jnp.broadcast_to(jnp.exp(jnp.clip(mean_N1, -MAX_LOG_RATIO, MAX_LOG_RATIO)), coef_NL.shape)


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
