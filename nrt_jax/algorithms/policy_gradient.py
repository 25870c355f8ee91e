"""What every method that samples traces shares: advantages, trust region, reference model, shaping, and the loss.

    L = Σ trace loss(A, ρ)  +  kl_coef Σ k(π, π_ref)  -  entropy_coef Σ H  +  Σ s_i (-log π(y*_i))  +  format term
"""

import functools

import jax
import jax.numpy as jnp

from nrt_jax import rows
from nrt_jax.algorithms.interface import Tools
from nrt_jax.algorithms.settings import PolicyGradientConfig, UpdateConfig
from nrt_jax.arrays import LossSums, TrainBatch
from nrt_jax.objectives import advantages, losses


def completion_batch(tools: Tools, config: PolicyGradientConfig, prompts_N, rollouts) -> TrainBatch:
  """Rows `[pad | prompt | completion]`, every sampled token and the end token a token of the trace loss; all
  coefficients are 0. The completion is what `Tools.complete` sampled: its marker and own answer are part of it.
  """
  N = rollouts.length_N.size
  nothing = (jnp.zeros((N, 0), jnp.int32), jnp.zeros(N, jnp.int32))
  return spliced_batch(tools, prompts_N, rollouts, rollouts.length_N, (), *nothing)


def spliced_batch(tools: Tools, prompts_N, rollouts, trace_length_N, marker_ids, answer_NA, answer_length_N):
  """Rows `[prompt | sampled trace | marker | given answer]` of which the trace was sampled, and the rest is given.

  All coefficients are 0; format_mask_NL are the marker's columns.
  """
  spliced = rows.splice(
    prompts_N.prompt_BP, prompts_N.prompt_length_B, rollouts.token_NR, trace_length_N, marker_ids,
    answer_NA, answer_length_N, tools.pad_id,
  )  # fmt: skip
  widths = (len(marker_ids), answer_NA.shape[1])
  own_NL = spliced.trace_mask_NL & ~forced_columns(rollouts, trace_length_N, spliced, *widths)
  zeros_NL = jnp.zeros(spliced.token_NL.shape)
  return TrainBatch(
    token_NL=spliced.token_NL,
    position_NL=spliced.position_NL,
    trace_coef_NL=zeros_NL,
    trace_weight_NL=zeros_NL,
    behaviour_logp_NL=rows.align_trace(rollouts.logp_NR, trace_length_N, spliced, *widths),
    reference_logp_NL=zeros_NL,
    answer_coef_NL=zeros_NL,
    format_coef_NL=zeros_NL,
    trace_mask_NL=own_NL,
    sampled_mask_NL=own_NL,
    answer_mask_NL=spliced.answer_mask_NL,
    format_mask_NL=spliced.marker_mask_NL,
    first=spliced.first,
    prompt_NP=prompts_N.prompt_BP,
    prompt_length_N=prompts_N.prompt_length_B,
  )


def forced_columns(rollouts, trace_length_N, spliced, marker_width: int, answer_width: int):
  """Where the rows hold what an environment wrote, and nobody sampled: bool `[N, L]`, or False without one."""
  if rollouts.forced_NR is None:
    return jnp.bool_(False)
  return rows.align_trace(rollouts.forced_NR, trace_length_N, spliced, marker_width, answer_width).astype(bool)


def shape(config: PolicyGradientConfig, reward_N, rollouts, limit: int):
  """Rewards with what the environment paid, less the penalties on long traces (DAPO, 2503.14476, eq. 13) and on short
  ones (2602.03979).
  """
  length_N = rollouts.length_N
  if rollouts.earned_N is not None:
    reward_N = reward_N + rollouts.earned_N
  if config.long_penalty and config.long_buffer:
    over_N = jnp.clip((length_N - (limit - config.long_buffer)) / config.long_buffer, 0, 1)
    reward_N = reward_N - config.long_penalty * over_N
  if config.short_penalty:
    reward_N = reward_N + config.short_penalty * jnp.minimum(length_N - config.short_target, 0)
  return reward_N


def reward_kl(tools: Tools, config: PolicyGradientConfig, reference, rollouts, rows_of):
  """kl_coef Σ_t (log π - log π_ref) of each sampled row `[N]`, where the reward is its place; else 0.

  rows_of: () -> the TrainBatch of what was sampled, which is asked for only if it is scored.
  """
  if not config.kl_coef or config.kl_place != "reward":
    return jnp.zeros(rollouts.length_N.shape)
  batch = rows_of()
  surplus_NL = losses.kl_k1(batch.behaviour_logp_NL, tools.score_batch(reference, batch))
  return config.kl_coef * jnp.sum(surplus_NL, axis=1, where=batch.trace_mask_NL)


def with_scores(tools: Tools, config: UpdateConfig, states, batch: TrainBatch) -> TrainBatch:
  """The batch with what its loss compares: the reference's log-probabilities, and those at the start of the updates."""
  if config.kl_coef and getattr(config, "kl_place", "loss") == "loss":
    batch = batch.replace(reference_logp_NL=tools.score_batch(states.reference, batch))
  return tools.score_start(states.policy.params, batch) if config.ratio_from_start else batch


def start_logp(batch: TrainBatch, logp_NL):
  """log π of the policy that the step's updates start from, as they compute it `[N, L]`, without gradient.

  In the first minibatch that is the log-probability at hand, so a ratio is 1 there, whatever the rounding of sampling.
  """
  logp_NL = jax.lax.stop_gradient(logp_NL)
  if batch.start_logp_NL is None:
    return logp_NL
  return jnp.where(batch.at_start_N[:, None], logp_NL, batch.start_logp_NL)


def ratio_base(config: UpdateConfig, batch: TrainBatch, logp_NL):
  """log π_old of the loss's ratios `[N, L]`: see `ratio_base` among the settings."""
  return start_logp(batch, logp_NL) if config.ratio_from_start else batch.behaviour_logp_NL


def group_advantages(tools: Tools, config: PolicyGradientConfig, reward_N, rollouts, magnitude_N=None, valid_N=None):
  """Advantages `[N]`, and bool `[N]`: the rows that count, as far as mask_unended says.

  Rows with `valid_N` False have no reward: they are left out of the group's statistics, and their advantage is 0.
  """
  G = tools.samples_per_prompt
  counts_N = rollouts.ended_N if config.mask_unended else jnp.ones(reward_N.shape, bool)
  valid_N = counts_N if valid_N is None else counts_N & valid_N
  advantage_N = advantages.group_advantages(reward_N, G, config.center, config.scale, valid_N, magnitude_N)
  if config.advantage_clip:
    advantage_N = advantages.clip_advantages(advantage_N, -config.advantage_clip, config.advantage_clip)
  if config.positive_only:
    advantage_N = jnp.maximum(advantage_N, 0)
  return advantage_N, counts_N


def without_flat(config: PolicyGradientConfig, advantage_N, counts_N, group_size: int):
  """The rows that count, less those of groups without any advantage where filter_flat_groups leaves them out."""
  return counts_N & teaches(advantage_N, group_size) if config.filter_flat_groups else counts_N


def teaches(advantage_N, group_size: int):
  """Whether a group has any advantage: bool `[N]`. One without is what `max_draws` draws again."""
  return (advantage_N.reshape(-1, group_size) != 0).any(axis=1).repeat(group_size)


def weigh(tools: Tools, config: PolicyGradientConfig, mask_NL, how: str | None = None):
  """The mask times its normaliser: what a coefficient of 1 on these tokens weighs."""
  how = how or config.normalisation
  constant = (config.normalisation_constant or tools.trace_limit) if config.normalisation == "constant" else 1.0
  G = tools.samples_per_prompt
  return mask_NL * losses.normaliser(mask_NL, how, tools.minibatches, G, constant, tools.all_sum)


def trace_terms(tools: Tools, config: PolicyGradientConfig, advantage_N, mask_NL) -> dict:
  """The coefficients of the trace's tokens as fields of TrainBatch: advantage, KL and entropy, each normalised."""
  weight_NL = weigh(tools, config, mask_NL)
  return {
    "trace_coef_NL": config.trace_coef * advantage_N[:, None] * weight_NL,
    "trace_weight_NL": weight_NL,
    "trace_mask_NL": mask_NL,
  }


def loss(tools: Tools, config: PolicyGradientConfig, params, batch: TrainBatch, clip_answer=False) -> LossSums:
  """The loss of policy gradients: the trust region's loss on the trace's tokens, and the terms all methods share.

  `clip_answer`: the answer's tokens have the trust region too.
  """
  clip = (config.clip_low, config.clip_high)

  def answer_loss(logp_NL):
    logps = (logp_NL, ratio_base(config, batch, logp_NL))
    return losses.TRACE_LOSSES[config.trace_loss](*logps, batch.answer_coef_NL, *clip)

  def trace_loss(logp_NL, entropy_NL):
    logps = (logp_NL, ratio_base(config, batch, logp_NL))
    stats = losses.ratio_stats(config.trace_loss, *logps, batch.trace_mask_NL, batch.trace_coef_NL, *clip)
    drift = functools.partial(losses.entropy_drift, logp_NL, entropy_NL, batch.trace_coef_NL, batch.trace_weight_NL)
    stats |= {f"{role}/entropy_drift": drift(own_NL) for role, own_NL in role_masks(batch).items()}
    return losses.TRACE_LOSSES[config.trace_loss](*logps, batch.trace_coef_NL, *clip), stats

  kl_in_loss = config.kl_place == "loss"
  return sum_terms(tools, config, params, batch, trace_loss, kl_in_loss, answer_loss if clip_answer else None)


def sum_terms(
  tools: Tools, config: UpdateConfig, params, batch: TrainBatch, trace_loss, kl_in_loss=True, answer_loss=None
) -> LossSums:
  """All terms as sums: the trace's, KL, entropy, cross-entropy of answer and format.

  `trace_loss(logp_NL, entropy_NL) -> (loss_NL, metrics)` is the trace's, whose gradient is through `logp_NL` alone.
  `answer_loss(logp_NL) -> loss_NL` takes the place of the answer's cross-entropy.
  """
  logp_NL, entropy_NL, row_logp_NL = tools.log_probs(params, batch, entropy_gradient=config.entropy_coef != 0)
  trace_loss_NL, metrics = trace_loss(logp_NL, entropy_NL)
  terms = {
    "loss/trace": trace_loss_NL.sum(),
    "loss/answer": (answer_loss(logp_NL) if answer_loss else losses.supervised(logp_NL, batch.answer_coef_NL)).sum(),
    "loss/format": losses.supervised(row_logp_NL, batch.format_coef_NL).sum(),
  }
  mask_NL = batch.trace_mask_NL
  metrics |= losses.sampler_stats(logp_NL, batch.behaviour_logp_NL, mask_NL)
  roles = role_masks(batch)
  if config.kl_coef and kl_in_loss:
    kl_NL = losses.KL_ESTIMATORS[config.kl_estimator](logp_NL, batch.reference_logp_NL)
    weight_NL = batch.trace_weight_NL * batch.extra["kl_N"][:, None] if "kl_N" in batch.extra else batch.trace_weight_NL
    terms["loss/kl"] = config.kl_coef * jnp.sum(jnp.where(mask_NL, kl_NL * weight_NL, 0))
    metrics |= {f"{role}/kl_reference": _over(jax.lax.stop_gradient(kl_NL), own_NL) for role, own_NL in roles.items()}
  if config.entropy_coef:
    terms["loss/entropy"] = -config.entropy_coef * jnp.sum(entropy_NL * batch.trace_weight_NL)
  metrics |= {
    **terms,
    "loss/total": sum(terms.values()),
    **{f"{role}/entropy": _over(entropy_NL, own_NL) for role, own_NL in roles.items()},
  }
  return LossSums(metrics["loss/total"], metrics)


def role_masks(batch: TrainBatch) -> dict:
  """Role -> bool `[N, L]`: its tokens of the trace loss. Rows of two roles say whose they are, by extra["critic_N"]."""
  if "critic_N" not in batch.extra:
    return {"policy": batch.trace_mask_NL}
  critic_N1 = batch.extra["critic_N"][:, None]
  return {"policy": batch.trace_mask_NL & ~critic_N1, "critic": batch.trace_mask_NL & critic_N1}


def _over(x_NL, mask_NL):
  """A metric's (numerator, denominator) for the mean of x over the mask."""
  return jnp.sum(jnp.where(mask_NL, x_NL, 0)), jnp.sum(mask_NL)


# ----------------------------------------------------------------------------------------------------------- metrics


def mean_of(x):
  """A metric's (numerator, denominator) for the mean of x."""
  return jnp.sum(x), jnp.float32(x.size)


def reward_metrics(reward_N, advantage_N, group_size: int) -> dict:
  """Mean reward, mean std within a group, mean size of an advantage."""
  std_B = reward_N.reshape(-1, group_size).std(axis=1, ddof=min(1, group_size - 1))
  return {
    "reward/mean": mean_of(reward_N),
    "reward/std": mean_of(std_B),
    "advantage/abs_mean": mean_of(jnp.abs(advantage_N)),
  }


def trace_metrics(rollouts) -> dict:
  """Length without the stop token, how traces ended, and how many tokens were generated in all.

  Of an environment: what its rows earned, how right they are, and how many tokens of a row it wrote.
  """
  length_N, world = rollouts.length_N - rollouts.ended_N, {}
  if rollouts.forced_NR is not None:
    forced_N = jnp.sum(rollouts.forced_NR, axis=1)
    world = {"environment/earned": mean_of(rollouts.earned_N), "environment/forced_tokens": mean_of(forced_N)}
    world |= {} if rollouts.verdict_N is None else {"environment/verdict": mean_of(rollouts.verdict_N)}
  return {
    **world,
    "tokens/generated": jnp.sum(rollouts.length_N),
    "trace/length_mean": mean_of(length_N),
    "trace/length_max": jnp.max(length_N).astype(jnp.float32),
    "trace/ended_fraction": mean_of(rollouts.ended_N),
    "trace/marker_fraction": mean_of(rollouts.marker_N),
  }


def answer_metrics(logp_NA, empty_logp_NA, mask_NA) -> dict:
  """Mean log-probability of an answer token after the trace, after an empty trace, and the difference."""
  tokens = jnp.sum(mask_NA)
  return {
    "answer/logp": (jnp.sum(logp_NA * mask_NA), tokens),
    "answer/logp_empty_trace": (jnp.sum(empty_logp_NA * mask_NA), tokens),
    "answer/logp_gain": (jnp.sum((logp_NA - empty_logp_NA) * mask_NA), tokens),
  }
