"""Group-relative advantages: the G rows n = b * G + g of a prompt are compared with one another."""

import jax.numpy as jnp

from nrt_jax.errors import UserError, require_choice
from nrt_jax.objectives.masked import masked_logsumexp, masked_mean, masked_std

CENTERS = ("mean", "leave_one_out", "multi_sample", "none")
SCALES = ("std", "advantage_std", "none")

# A spread below this share of the group's largest magnitude is float32 rounding (about 8 units in the last place), not
# signal: divided by its own deviation it would become advantages of order 1.
ROUNDING = 1e-6


def group_advantages(reward_N, group_size, center, scale, valid_N=None, magnitude_N=None):
  """Advantages `[N]` of rewards `[N]`: centred within each group of `group_size` rows, then scaled.

  center: R_k - mean_j R_j (GRPO; NRT), R_k - mean_{j≠k} R_j (`leave_one_out`: RLOO, JEPO, VeriFree), `multi_sample`
  (see below), or R_k. scale: by the group's unbiased std about its mean (torch.std, as in the released NRT code), by
  that of the centred values themselves (`advantage_std`, JEPO's A / std(A)), or none. A group without variance gets
  exactly 0 wherever it is centred or scaled; where rewards are differences, `magnitude_N` is the size of what was
  subtracted, whose rounding is no variance either. Rows with `valid_N` False (bool `[N]`) get 0 and are left out of the
  statistics. UserError: unknown choice, N not divisible, or one sample per prompt, whose advantage would always be 0.
  """
  _check(reward_N.shape[0], group_size, center, scale)
  valid_N = jnp.ones(reward_N.shape, bool) if valid_N is None else valid_N
  valid_BG = valid_N.reshape(-1, group_size)
  reward_BG = jnp.where(valid_BG, reward_N.reshape(-1, group_size), 0)
  magnitude_BG = reward_BG if magnitude_N is None else jnp.where(valid_BG, magnitude_N.reshape(-1, group_size), 0)
  deviation_BG, std_B1 = _deviations(reward_BG, valid_BG, magnitude_BG)
  if center == "none":
    advantage_BG = reward_BG
  elif center == "mean":
    advantage_BG = deviation_BG
  elif center == "multi_sample":
    advantage_BG = _multi_sample(reward_BG, valid_BG, std_B1 > 0)
  else:
    # R_k - (S - R_k) / (n - 1) = (R_k - S / n) n / (n - 1); a row without others to compare with gets 0.
    count_B1 = valid_BG.sum(axis=-1, keepdims=True)
    advantage_BG = deviation_BG * count_B1 / jnp.maximum(count_B1 - 1, 1)
  if scale == "std":
    advantage_BG = _divide(advantage_BG, std_B1)
  elif scale == "advantage_std":
    own_std_B1 = masked_std(advantage_BG, valid_BG, axis=-1, keepdims=True)
    advantage_BG = _divide(advantage_BG, jnp.where(std_B1 > 0, own_std_B1, 0))
  return advantage_BG.reshape(-1)


def _multi_sample(logp_BG, valid_BG, varied_B1):
  """G (log mean_j p_j - log mean_{j≠k} p_j) of sequence log-probabilities log p (JEPO, arXiv 2503.19618).

  The paper sums over the G samples where this library takes their mean: hence the factor G. Rows without others get 0.
  """
  group_size = logp_BG.shape[1]
  largest_B1 = jnp.max(logp_BG, axis=-1, keepdims=True, where=valid_BG, initial=-jnp.inf)
  logp_BG = jnp.where(valid_BG & varied_B1, logp_BG - largest_B1, 0)
  others_BGG = valid_BG[:, None] & ~jnp.eye(group_size, dtype=bool)[None]
  others_BG = masked_logsumexp(jnp.broadcast_to(logp_BG[:, None], others_BGG.shape), others_BGG, axis=-1)
  count_B1 = valid_BG.sum(axis=-1, keepdims=True)
  compared_BG = valid_BG & varied_B1 & (count_B1 > 1)
  whole_B1 = masked_logsumexp(logp_BG, valid_BG, axis=-1, keepdims=True) - jnp.log(jnp.maximum(count_B1, 1))
  rest_BG = others_BG - jnp.log(jnp.maximum(count_B1 - 1, 1))
  return jnp.where(compared_BG, group_size * (whole_B1 - jnp.where(compared_BG, rest_BG, 0)), 0)


def clip_advantages(advantage_N, low, high):
  """Advantages limited to [low, high]; JEPO (arXiv 2503.19618) clips to [-1, 1]."""
  return jnp.clip(advantage_N, low, high)


def group_standardise_tokens(s_NA, mask_NA, group_size):
  """Answer weights `[N, A]` centred and divided by the unbiased std over all answer tokens of a group; 0 off the mask.

  The released NRT code does this with its derived token rewards (recipe/nrt, use_fixed_token_reward=False), so that a
  token's weight may be negative. A group whose weights are all equal gets exactly 0.
  """
  _check_group(s_NA.shape[0], group_size)
  width = group_size * s_NA.shape[-1]
  s_BK = s_NA.reshape(-1, width)
  deviation_BK, std_B1 = _deviations(s_BK, mask_NA.reshape(-1, width), s_BK)
  return _divide(deviation_BK, std_B1).reshape(s_NA.shape)


def _deviations(x_BK, mask_BK, magnitude_BK):
  """Deviations from the row's masked mean (0 off the mask) and the row's std `[B, 1]`; both exactly 0 in flat rows.

  Flat: the range is within the rounding of numbers as large as `magnitude_BK`.
  """
  low_B1 = jnp.min(x_BK, axis=-1, keepdims=True, where=mask_BK, initial=jnp.inf)
  high_B1 = jnp.max(x_BK, axis=-1, keepdims=True, where=mask_BK, initial=-jnp.inf)
  largest_B1 = jnp.max(jnp.abs(magnitude_BK), axis=-1, keepdims=True, where=mask_BK, initial=0)
  varied_B1 = high_B1 - low_B1 > ROUNDING * largest_B1
  range_B1 = jnp.where(varied_B1, high_B1 - low_B1, 0)
  # Rows are mapped to [0, 1] first: the square of a long answer's probability would underflow.
  unit_BK = jnp.where(mask_BK, _divide(x_BK - low_B1, range_B1), 0)
  deviation_BK = jnp.where(mask_BK, unit_BK - masked_mean(unit_BK, mask_BK, axis=-1, keepdims=True), 0)
  return deviation_BK * range_B1, masked_std(unit_BK, mask_BK, axis=-1, keepdims=True) * range_B1


def _divide(x, by):
  """x / by, and 0 where `by` is 0."""
  return jnp.where(by > 0, x / jnp.where(by > 0, by, 1), 0)


def _check(rows, group_size, center, scale):
  require_choice("advantage center", center, CENTERS)
  require_choice("advantage scale", scale, SCALES)
  _check_group(rows, group_size)
  if group_size == 1 and (center, scale) != ("none", "none"):
    raise UserError(
      f"samples_per_prompt: found 1, but advantage center {center!r} with scale {scale!r} compares samples; "
      "allowed: 2 or more, or center 'none' with scale 'none'"
    )


def _check_group(rows, group_size):
  if group_size < 1 or rows % group_size:
    raise UserError(f"samples_per_prompt: found {group_size}, allowed: a divisor of the {rows} rows of the batch")
