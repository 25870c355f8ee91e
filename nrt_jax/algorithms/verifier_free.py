"""NRT and its relatives: reward a sampled trace by how likely it makes the reference answer (arXiv 2602.11549).

    mean_k [ A_k Σ_t ∇log π(z_kt | x, z_k<t)  +  Σ_i s_ki ∇log π(y*_i | x, z_k, y*_<i) ]  +  format cross-entropy

 1. sample K traces z_k per prompt; score c_ki = π(y*_i | x, z_k, y*_<i), and the same after an empty trace;
 2. reward R_k = f(c_k), less the empty trace's where the config says so;
 3. advantage A_k within the group, weight s_ki = c_ki ∂f/∂c_ki on the answer;
 4. splice prompt, trace, marker and answer into rows, and write A, s and the normalisers onto their columns.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from nrt_jax import advantages, losses, rewards, rows
from nrt_jax.algorithms.interface import Algorithm, Collected, Tools
from nrt_jax.arrays import LossSums, TrainBatch, repeat_rows
from nrt_jax.errors import UserError, require_choice

ANSWER_WEIGHTS = ("derived", "one", "scaled", "none")


@dataclass(frozen=True)
class VerifierFreeConfig:
  """Defaults are the paper's form of NRT-WS(-log p): nrt.md section 3a."""

  reward: str = "weighted_sum_log_prob"  # f: one of rewards.AGGREGATIONS
  baseline: str = "subtract_and_clip"  # of the empty trace: none | subtract | subtract_and_clip, max(0, R - R_base)
  base_policy: str = "current"  # whose empty-trace probabilities are weights and baseline: current | frozen
  center: str = "mean"  # mean | leave_one_out | none
  scale: str = "std"  # std (unbiased; a group without variance gets 0) | none
  trace_loss: str = "cispo"  # reinforce | ppo_clip | cispo
  clip_low: float = 0.8  # smallest ratio of the trust region, absolute
  clip_high: float = 1.28  # largest
  answer_weight: str = "derived"  # s_i: derived | one | scaled (derived, standardised in the group) | none
  trace_coef: float = 1.0
  answer_coef: float = 1.0
  format_coef: float = 0.3  # cross-entropy on marker tokens that the model did not emit
  train_forced_marker: bool = False  # True: a marker put in by force carries the trace's advantage (released code)
  normalisation: str = "constant"  # token | sequence | constant; only constant keeps the equation's weights
  normalisation_constant: float = 1.0  # tokens; the released code divides by the padded response width

  def __post_init__(self):
    require_choice("algorithm.reward", self.reward, rewards.AGGREGATIONS)
    require_choice("algorithm.baseline", self.baseline, rewards.BASELINES)
    require_choice("algorithm.base_policy", self.base_policy, ("current", "frozen"))
    require_choice("algorithm.center", self.center, advantages.CENTERS)
    require_choice("algorithm.scale", self.scale, advantages.SCALES)
    require_choice("algorithm.trace_loss", self.trace_loss, losses.TRACE_LOSSES)
    require_choice("algorithm.answer_weight", self.answer_weight, ANSWER_WEIGHTS)
    require_choice("algorithm.normalisation", self.normalisation, losses.NORMALISATIONS)
    if not 0 <= self.clip_low <= 1 <= self.clip_high:
      found = f"{self.clip_low}, {self.clip_high}"
      raise UserError(f"algorithm.clip_low, clip_high: found {found}, allowed: 0 <= low <= 1 <= high")
    if self.normalisation_constant <= 0:
      raise UserError(f"algorithm.normalisation_constant: found {self.normalisation_constant}, allowed: above 0")


def answer_weights(config: VerifierFreeConfig, logp_NA, mask_NA, base_logp_NA, group_size: int):
  """s_i, the weight of each answer token's log-probability `[N, A]` (nrt.md sections 2 and 3b)."""
  if config.answer_weight == "none":
    return jnp.zeros_like(logp_NA)
  if config.answer_weight == "one":
    return mask_NA.astype(jnp.float32)
  derived = rewards.answer_weights(config.reward, logp_NA, mask_NA, base_logp_NA)
  if config.answer_weight == "derived":
    return derived
  return advantages.group_standardise_tokens(derived, mask_NA, group_size)


def collect(tools: Tools, config: VerifierFreeConfig, states, prompts, key) -> Collected:
  G = tools.samples_per_prompt
  rollouts, scores, empty = tools.rollout(states.policy.params, prompts, key)
  base = empty if config.base_policy == "current" else tools.score_empty_trace(states.base, prompts)
  prompts_N = repeat_rows(prompts, G)
  answer_mask_NA = jnp.arange(prompts.answer_BA.shape[1])[None] < prompts_N.answer_length_B[:, None]
  base_NA, empty_NA = repeat_rows(base.answer_logp_NA, G), repeat_rows(empty.answer_logp_NA, G)
  logp_NA = settle_ties(rollouts, scores.answer_logp_NA, empty_NA, G)

  reward_N = rewards.aggregate(config.reward, logp_NA, answer_mask_NA, base_NA)
  base_reward_N = rewards.aggregate(config.reward, base_NA, answer_mask_NA, base_NA)
  gain_N = rewards.subtract_baseline(reward_N, base_reward_N, config.baseline)
  advantage_N = advantages.group_advantages(gain_N, G, config.center, config.scale, magnitude_N=reward_N)
  weight_NA = answer_weights(config, logp_NA, answer_mask_NA, base_NA, G)

  batch = build_batch(tools, config, prompts_N, rollouts, scores, advantage_N, weight_NA)
  sums = {
    "reward/mean": mean_of(reward_N),
    "reward/std": mean_of(reward_N.reshape(-1, G).std(axis=1, ddof=min(1, G - 1))),
    "advantage/abs_mean": mean_of(jnp.abs(advantage_N)),
    **trace_metrics(rollouts),
    **answer_metrics(logp_NA, empty_NA, answer_mask_NA),
  }
  samples = {
    "prompt": prompts_N.prompt_BP,
    "prompt_length": prompts_N.prompt_length_B,
    "trace": rollouts.token_NR,
    "trace_length": rollouts.length_N,
    "answer": prompts_N.answer_BA,
    "answer_length": prompts_N.answer_length_B,
    "answer_logp": logp_NA,
    "answer_logp_empty_trace": empty_NA,
    "reward": reward_N,
    "advantage": advantage_N,
  }
  return Collected(batch, sums, samples)


def settle_ties(rollouts, logp_NA, empty_logp_NA, group_size: int):
  """Answer scores of which equal traces have equal ones, and empty traces those of the empty trace, to the last bit.

  They may differ by rounding, in bfloat16 by a lot, and std-scaled advantages would make a signal of it. How a trace
  ended is no part of it: all that the answer sees is the trace, and the marker behind it.
  """
  trace_length_N = rollouts.length_N - rollouts.ended_N
  first_N = rows.first_equal(rollouts.token_NR, trace_length_N, group_size)
  return jnp.where((trace_length_N == 0)[:, None], empty_logp_NA, logp_NA[first_N])


def build_batch(tools: Tools, config, prompts_N, rollouts, scores, advantage_N, weight_NA) -> TrainBatch:
  """Splices the rows and writes advantage, answer weight and format weight, each times its normaliser."""
  M, A = len(tools.marker_ids), prompts_N.answer_BA.shape[1]
  trace_length_N = rollouts.length_N - rollouts.ended_N  # the stop token gives way to the marker
  spliced = rows.splice(
    prompts_N.prompt_BP,
    prompts_N.prompt_length_B,
    rollouts.token_NR,
    trace_length_N,
    tools.marker_ids,
    prompts_N.answer_BA,
    prompts_N.answer_length_B,
    tools.pad_id,
  )
  # The first marker token is the trace's own stop token where the model emitted it.
  stop_NL = jnp.arange(spliced.token_NL.shape[1])[None] == spliced.first + rollouts.token_NR.shape[1]
  emitted_NL = stop_NL & rollouts.marker_N[:, None]
  sampled_NL = spliced.trace_mask_NL | emitted_NL
  trace_NL = sampled_NL | stop_NL if config.train_forced_marker else sampled_NL
  format_NL = spliced.marker_mask_NL & ~emitted_NL

  last = jnp.maximum(rollouts.length_N - 1, 0)[:, None]
  stop_logp_N1 = jnp.where(
    rollouts.marker_N[:, None], jnp.take_along_axis(rollouts.logp_NR, last, 1), scores.marker_logp_NM[:, :1]
  )
  behaviour_NL = rows.align_trace(rollouts.logp_NR, trace_length_N, spliced, M, A)
  behaviour_NL = jnp.where(stop_NL, stop_logp_N1, behaviour_NL)

  def weigh(mask_NL, how):
    constant = config.normalisation_constant if config.normalisation == "constant" else 1.0
    weight_N1 = losses.normaliser(mask_NL, how, tools.minibatches, tools.samples_per_prompt, constant, tools.all_sum)
    return mask_NL * weight_N1

  weight_NL = rows.align_suffix(jnp.zeros_like(scores.marker_logp_NM), weight_NA, spliced)
  return TrainBatch(
    token_NL=spliced.token_NL,
    position_NL=spliced.position_NL,
    trace_coef_NL=config.trace_coef * advantage_N[:, None] * weigh(trace_NL, config.normalisation),
    behaviour_logp_NL=behaviour_NL,
    answer_coef_NL=config.answer_coef * weight_NL * weigh(spliced.answer_mask_NL, config.normalisation),
    # Always over all rows: one row without its marker must not weigh as much as if all had lost it.
    format_coef_NL=config.format_coef * weigh(format_NL, "constant"),
    trace_mask_NL=trace_NL,
    sampled_mask_NL=sampled_NL,
    answer_mask_NL=spliced.answer_mask_NL,
    first=spliced.first,
  )


def loss(tools: Tools, config: VerifierFreeConfig, params, batch: TrainBatch) -> LossSums:
  """The three terms as sums. Trace: the trust region's loss; answer and format: weighted cross-entropy."""
  logp_NL, entropy_NL = tools.log_probs(params, batch)
  trace_loss = losses.TRACE_LOSSES[config.trace_loss]
  trace = trace_loss(logp_NL, batch.behaviour_logp_NL, batch.trace_coef_NL, config.clip_low, config.clip_high).sum()
  answer = losses.supervised(logp_NL, batch.answer_coef_NL).sum()
  marker = losses.supervised(logp_NL, batch.format_coef_NL).sum()
  metrics = {
    "loss/total": trace + answer + marker,
    "loss/trace": trace,
    "loss/answer": answer,
    "loss/format": marker,
    "policy/entropy": (jnp.sum(entropy_NL * batch.trace_mask_NL), jnp.sum(batch.trace_mask_NL)),
    **losses.ratio_stats(
      logp_NL, batch.behaviour_logp_NL, batch.trace_mask_NL, batch.trace_coef_NL, config.clip_low, config.clip_high
    ),
  }
  return LossSums(trace + answer + marker, metrics)


def mean_of(x):
  """A metric's (numerator, denominator) for the mean of x."""
  return jnp.sum(x), jnp.float32(x.size)


def trace_metrics(rollouts) -> dict:
  """Length without the stop token, how traces ended, and how many tokens were generated in all."""
  length_N = rollouts.length_N - rollouts.ended_N
  return {
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


ALGORITHM = Algorithm(
  config=VerifierFreeConfig,
  collect=collect,
  loss=loss,
  needs_base=lambda config: config.base_policy == "frozen",
  samples_traces=True,
)
