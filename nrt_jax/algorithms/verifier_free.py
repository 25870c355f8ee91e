"""NRT and its relatives: reward a sampled trace by how likely it makes the reference answer (arXiv 2602.11549).

    mean_k [ A_k Σ_t ∇log π(z_kt | x, z_k<t)  +  Σ_i s_ki ∇log π(y*_i | x, z_k, y*_<i) ]  +  format cross-entropy

 1. sample K traces z_k per prompt; score c_ki = π(y*_i | x, z_k, y*_<i), and the same after an empty trace;
 2. reward R_k = f(c_k), less the empty trace's where the config says so;
 3. advantage A_k within the group, weight s_ki = c_ki ∂f/∂c_ki on the answer;
 4. splice prompt, trace, marker and answer into rows, and write A, s and the normalisers onto their columns.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from nrt_jax import advantages, rewards, rows
from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.algorithms.interface import Algorithm, Collected, Tools
from nrt_jax.arrays import TrainBatch, repeat_rows
from nrt_jax.errors import UserError, require_choice

ANSWER_WEIGHTS = ("derived", "one", "scaled", "none")
BASE_POLICIES = ("current", "reference")


@dataclass(frozen=True)
class VerifierFreeConfig(pg.PolicyGradientConfig):
  """Defaults are the paper's form of NRT-WS(-log p): nrt.md section 3a."""

  reward: str = "weighted_sum_log_prob"  # f: one of rewards.AGGREGATIONS
  baseline: str = "subtract_and_clip"  # of the empty trace: none | subtract | subtract_and_clip, max(0, R - R_base)
  base_policy: str = "current"  # whose empty-trace probabilities are weights and baseline: current | reference
  answer_weight: str = "derived"  # s_i: derived | one | scaled (derived, standardised in the group) | none
  answer_coef: float = 1.0
  format_coef: float = 0.3  # cross-entropy on marker tokens that the model did not emit
  train_forced_marker: bool = False  # True: a marker put in by force carries the trace's advantage (released code)

  def __post_init__(self):
    super().__post_init__()
    require_choice("algorithm.reward", self.reward, rewards.AGGREGATIONS)
    require_choice("algorithm.baseline", self.baseline, rewards.BASELINES)
    require_choice("algorithm.base_policy", self.base_policy, BASE_POLICIES)
    require_choice("algorithm.answer_weight", self.answer_weight, ANSWER_WEIGHTS)
    if self.base_policy == "reference" and self.reference == "none":
      raise UserError(
        "algorithm.base_policy: found 'reference' with algorithm.reference 'none', allowed: frozen or moving_average"
      )


def collect(tools: Tools, config: VerifierFreeConfig, states, prompts, key) -> Collected:
  G = tools.samples_per_prompt
  rollouts, scores, empty = tools.rollout(states.policy.params, prompts, key)
  base = empty if config.base_policy == "current" else tools.score_empty_trace(states.reference, prompts)
  prompts_N = repeat_rows(prompts, G)
  answer_mask_NA = jnp.arange(prompts.answer_BA.shape[1])[None] < prompts_N.answer_length_B[:, None]
  base_NA, empty_NA = repeat_rows(base.answer_logp_NA, G), repeat_rows(empty.answer_logp_NA, G)
  logp_NA = settle_ties(rollouts, scores.answer_logp_NA, empty_NA, G)
  batch = build_rows(tools, config, prompts_N, rollouts, scores)

  reward_N = rewards.aggregate(config.reward, logp_NA, answer_mask_NA, base_NA)
  base_reward_N = rewards.aggregate(config.reward, base_NA, answer_mask_NA, base_NA)
  gain_N = rewards.subtract_baseline(reward_N, base_reward_N, config.baseline)
  gain_N = pg.shape_by_length(config, gain_N, rollouts, rollouts.token_NR.shape[1])
  batch, gain_N = pg.with_reference(tools, config, states.reference, batch, gain_N)
  advantage_N, counts_N = pg.group_advantages(tools, config, gain_N, rollouts, magnitude_N=reward_N)
  weight_NA = answer_weights(config, logp_NA, answer_mask_NA, base_NA, G)
  batch = fill_coefficients(tools, config, batch, advantage_N, weight_NA, counts_N)

  sums = {
    **pg.reward_metrics(reward_N, advantage_N, G),
    **pg.trace_metrics(rollouts),
    **pg.answer_metrics(logp_NA, empty_NA, answer_mask_NA),
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


def settle_ties(rollouts, logp_NA, empty_logp_NA, group_size: int):
  """Answer scores of which equal traces have equal ones, and empty traces those of the empty trace, to the last bit.

  They may differ by rounding, in bfloat16 by a lot, and std-scaled advantages would make a signal of it. How a trace
  ended is no part of it: all that the answer sees is the trace, and the marker behind it.
  """
  trace_length_N = rollouts.length_N - rollouts.ended_N
  first_N = rows.first_equal(rollouts.token_NR, trace_length_N, group_size)
  return jnp.where((trace_length_N == 0)[:, None], empty_logp_NA, logp_NA[first_N])


def build_rows(tools: Tools, config: VerifierFreeConfig, prompts_N, rollouts, scores) -> TrainBatch:
  """Splices the rows and says what was sampled, what is trace, answer and unemitted marker; all coefficients are 0."""
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
  last = jnp.maximum(rollouts.length_N - 1, 0)[:, None]
  emitted_logp_N1 = jnp.take_along_axis(rollouts.logp_NR, last, 1)
  stop_logp_N1 = jnp.where(rollouts.marker_N[:, None], emitted_logp_N1, scores.marker_logp_NM[:, :1])
  behaviour_NL = rows.align_trace(rollouts.logp_NR, trace_length_N, spliced, M, A)
  zeros_NL = jnp.zeros(spliced.token_NL.shape)
  return TrainBatch(
    token_NL=spliced.token_NL,
    position_NL=spliced.position_NL,
    trace_coef_NL=zeros_NL,
    trace_weight_NL=zeros_NL,
    behaviour_logp_NL=jnp.where(stop_NL, stop_logp_N1, behaviour_NL),
    reference_logp_NL=zeros_NL,
    answer_coef_NL=zeros_NL,
    format_coef_NL=zeros_NL,
    trace_mask_NL=sampled_NL | stop_NL if config.train_forced_marker else sampled_NL,
    sampled_mask_NL=sampled_NL,
    answer_mask_NL=spliced.answer_mask_NL,
    format_mask_NL=spliced.marker_mask_NL & ~emitted_NL,
    first=spliced.first,
  )


def fill_coefficients(tools: Tools, config, batch: TrainBatch, advantage_N, weight_NA, counts_N) -> TrainBatch:
  """Writes advantage, answer weight and format weight, each times its normaliser, onto their columns."""
  answer_NL = jnp.pad(weight_NA, ((0, 0), (batch.token_NL.shape[1] - weight_NA.shape[1], 0)))
  trace_mask_NL = batch.trace_mask_NL & counts_N[:, None]
  return batch.replace(
    **pg.trace_terms(tools, config, advantage_N, trace_mask_NL),
    answer_coef_NL=config.answer_coef * answer_NL * pg.weigh(tools, config, batch.answer_mask_NL),
    # Always over all rows: one row without its marker must not weigh as much as if all had lost it.
    format_coef_NL=config.format_coef * pg.weigh(tools, config, batch.format_mask_NL, "constant"),
  )


ALGORITHM = Algorithm(config=VerifierFreeConfig, collect=collect, loss=pg.loss, samples_traces=True)
