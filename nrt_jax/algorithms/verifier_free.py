"""NRT and its relatives: reward a sampled trace by how likely it makes the reference answer (arXiv 2602.11549).

    mean_k [ A_k Σ_t ∇log π(z_kt | x, z_k<t)  +  Σ_i s_ki ∇log π(y*_i | x, z_k, y*_<i) ]  +  format cross-entropy

 1. sample K traces z_k per prompt; score c_ki = π(y*_i | x, z_k, y*_<i), and the same after an empty trace;
 2. reward R_k = f(c_k), less the empty trace's where the config says so;
 3. advantage A_k within the group, weight s_ki = c_ki ∂f/∂c_ki on the answer;
 4. splice prompt, trace, marker and answer into rows, and write A, s and the normalisers onto their columns.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nrt_jax import rows
from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.algorithms import settings
from nrt_jax.algorithms.interface import Algorithm, Attempt, Collected, Tools
from nrt_jax.arrays import TrainBatch, repeat_rows
from nrt_jax.errors import UserError, require_choice
from nrt_jax.objectives import advantages, rewards

ANSWER_WEIGHTS = ("derived", "one", "scaled", "group_softmax", "none")
TOKEN_WEIGHTS = ("one", "spread")
POLICIES = ("current", "reference")
BASE_PLACES = ("empty_trace", "prompt")
UNMARKED = ("keep", "zero", "mask", "penalty")


@dataclass(frozen=True)
class LikelihoodConfig(settings.PolicyGradientConfig):
  """Settings of a reward f(c). Defaults are the paper's form of NRT-WS(-log p): nrt.md section 3a."""

  reward: str = "weighted_sum_log_prob"  # f: one of rewards.AGGREGATIONS
  token_weight: str = "one"  # of log c_i in f | spread: of log c_i over the group's traces (DRO)
  score_policy: str = "current"  # whose probabilities c_i after the trace are: current | reference
  baseline: str = "subtract_and_clip"  # of the empty trace: none | subtract | subtract_and_clip, max(0, R - R_base)
  base_policy: str = "current"  # whose empty-trace probabilities are weights and baseline: current | reference
  base_place: str = "empty_trace"  # of that answer | prompt: behind it, without trace_open and marker (RLP)

  def __post_init__(self):
    super().__post_init__()
    require_choice("algorithm.reward", self.reward, rewards.AGGREGATIONS)
    require_choice("algorithm.token_weight", self.token_weight, TOKEN_WEIGHTS)
    require_choice("algorithm.baseline", self.baseline, rewards.BASELINES)
    require_policies(self, "score_policy", "base_policy")
    require_choice("algorithm.base_place", self.base_place, BASE_PLACES)


@dataclass(frozen=True)
class VerifierFreeConfig(LikelihoodConfig):
  """NRT: native reasoning training, arXiv 2602.11549, its WS(-log p)."""

  unmarked: str = "keep"  # a trace without marker: keep (as any) | zero: R = 0 | mask: no R | penalty: R = 2 mean R
  format_penalty: float = 0.0  # of a trace without marker; an advantage of its own, added to the other (JEPO)
  answer_weight: str = "derived"  # s_i: derived | one | scaled (derived, standardised) | group_softmax (JEPO-n) | none
  answer_coef: float = 1.0
  clip_answer: bool = False  # True: the answer's tokens have the trace's trust region too (VeriFree)
  format_coef: float = 0.3  # cross-entropy on marker tokens that the model did not emit
  train_forced_marker: bool = False  # True: a marker put in by force carries the advantage, not what was sampled there

  def __post_init__(self):
    super().__post_init__()
    require_choice("algorithm.unmarked", self.unmarked, UNMARKED)
    require_choice("algorithm.answer_weight", self.answer_weight, ANSWER_WEIGHTS)
    if self.format_penalty < 0:
      raise UserError(f"algorithm.format_penalty: found {self.format_penalty}, allowed: 0 (off) or more")


def require_policies(config, *keys) -> None:
  """Raises UserError where one of the keys names no policy, or the reference where there is none."""
  for key in keys:
    require_choice(f"algorithm.{key}", getattr(config, key), POLICIES)
    if getattr(config, key) == "reference" and config.reference == "none":
      raise UserError(
        f"algorithm.{key}: found 'reference' with algorithm.reference 'none', allowed: frozen or moving_average"
      )


class Scored(NamedTuple):
  """How likely the reference answers are, `[N, A]`; 0 beyond the answer."""

  logp_NA: jax.Array  # log c_i after the trace, under score_policy
  empty_NA: jax.Array  # after an empty trace, under score_policy
  base_NA: jax.Array  # without a trace, at base_place, under base_policy
  mask_NA: jax.Array  # bool, tokens of the answer


def collect(tools: Tools, config: VerifierFreeConfig, states, prompts, key) -> Collected:
  G = tools.samples_per_prompt

  def attempt(prompts) -> Attempt:
    rollouts, scores, empty = tools.rollout(states.policy.params, prompts, key)
    scored = score(tools, config, states, prompts, rollouts, scores, empty)
    rows_of = functools.partial(build_rows, tools, config, repeat_rows(prompts, G), rollouts, scores)
    kl_N = pg.reward_kl(tools, config, states.reference, rollouts, rows_of)
    varies_N = pg.teaches(judge(tools, config, rollouts, scored, kl_N).advantage_N, G)
    sums = {**pg.trace_metrics(rollouts), **pg.answer_metrics(scored.logp_NA, scored.empty_NA, scored.mask_NA)}
    return Attempt((rollouts, scores, scored, kl_N), varies_N, sums)

  prompts, (rollouts, scores, scored, kl_N), sampling_sums = tools.draw(prompts, attempt)
  prompts_N = repeat_rows(prompts, G)
  batch = build_rows(tools, config, prompts_N, rollouts, scores)
  reward_N, advantage_N, counts_N, weight_NA = judge(tools, config, rollouts, scored, kl_N)
  batch = fill_coefficients(tools, config, batch, advantage_N, weight_NA, counts_N)
  if config.clip_answer:
    answer_NL = align_answer(batch, scores.answer_logp_NA)
    batch = batch.replace(behaviour_logp_NL=jnp.where(batch.answer_mask_NL, answer_NL, batch.behaviour_logp_NL))
  batch = pg.with_scores(tools, config, states, batch)
  sums = {**pg.reward_metrics(reward_N, advantage_N, G), **sampling_sums}
  return Collected(batch, sums, shown(prompts_N, rollouts, scored, reward_N, advantage_N))


def loss(tools: Tools, config: VerifierFreeConfig, params, batch: TrainBatch):
  return pg.loss(tools, config, params, batch, config.clip_answer)


def score(tools: Tools, config, states, prompts, traces, scores, empty) -> Scored:
  """Scores as the config's policies have them; `traces` are Rollouts that end with the trace or its marker."""
  G, prompts_N = tools.samples_per_prompt, repeat_rows(prompts, tools.samples_per_prompt)
  mask_NA = jnp.arange(prompts.answer_BA.shape[1])[None] < prompts_N.answer_length_B[:, None]
  logp_NA, empties = scores.answer_logp_NA, {"current": repeat_rows(empty.answer_logp_NA, G)}
  bare = config.base_place == "prompt"
  if "reference" in (config.score_policy, None if bare else config.base_policy):
    of_reference = tools.score_empty_trace(states.reference, prompts)
    empties["reference"] = repeat_rows(of_reference.answer_logp_NA, G)
  if config.score_policy == "reference":
    batch = build_rows(tools, config, prompts_N, traces, scores)
    logp_NA = jnp.where(mask_NA, tools.score_batch(states.reference, batch)[:, -mask_NA.shape[1] :], 0)
  empty_NA = empties[config.score_policy]
  if bare:
    params = states.reference if config.base_policy == "reference" else states.policy.params
    base_NA = repeat_rows(tools.score_bare(params, prompts).answer_logp_NA, G)
  else:
    base_NA = empties[config.base_policy]
  return Scored(settle_ties(traces, logp_NA, empty_NA, G), empty_NA, base_NA, mask_NA)


class Rewarded(NamedTuple):
  """Rewards by likelihood."""

  reward_N: jax.Array  # R = f(c)
  gain_N: jax.Array  # R less the empty trace's where the config says so
  weight_NA: jax.Array  # s = ∂R/∂log c
  magnitude_N: jax.Array  # size of the numbers that gain_N is a difference of, see rewards.magnitude


def likelihood_rewards(config: LikelihoodConfig, scored: Scored, group_size: int) -> Rewarded:
  """The rewards of traces after which the answers are so likely.

  Weighed tokens enter f as c_i^w_i, so that log_prob becomes Σ w_i log c_i and geometric_mean its exponential.
  """
  logp_NA, empty_NA, base_NA, mask_NA = scored
  if config.token_weight == "spread":
    token_weight_NA = rewards.spread_weights(logp_NA, mask_NA, group_size)
  else:
    token_weight_NA = mask_NA.astype(jnp.float32)
  reward_N = rewards.aggregate(config.reward, token_weight_NA * logp_NA, mask_NA, base_NA)
  base_reward_N = rewards.aggregate(config.reward, token_weight_NA * base_NA, mask_NA, base_NA)
  derived_NA = rewards.answer_weights(config.reward, token_weight_NA * logp_NA, mask_NA, base_NA)
  gain_N = rewards.subtract_baseline(reward_N, base_reward_N, config.baseline)
  magnitude_N = rewards.magnitude(config.reward, reward_N, base_reward_N, mask_NA)
  return Rewarded(reward_N, gain_N, token_weight_NA * derived_NA, magnitude_N)


class Judged(NamedTuple):
  """What the rows of traces are trained by."""

  reward_N: jax.Array  # R = f(c), for metrics
  advantage_N: jax.Array
  counts_N: jax.Array  # bool, rows whose trace counts
  weight_NA: jax.Array  # s of the answer's tokens


def judge(tools: Tools, config: VerifierFreeConfig, rollouts, scored: Scored, kl_N) -> Judged:
  """Rewards less all that is taken off them, advantages with all that is added to them, and which rows count."""
  G = tools.samples_per_prompt
  reward_N, gain_N, derived_NA, magnitude_N = likelihood_rewards(config, scored, G)
  gain_N = pg.shape(config, gain_N, rollouts, rollouts.token_NR.shape[1]) - kl_N
  gain_N, valid_N, answered_N = judge_unmarked(tools, config, gain_N, rollouts.marker_N)
  advantage_N, counts_N = pg.group_advantages(tools, config, gain_N, rollouts, magnitude_N, valid_N)
  advantage_N += format_advantages(tools, config, rollouts.marker_N)
  counts_N = pg.without_flat(config, advantage_N, counts_N, G)
  return Judged(reward_N, advantage_N, counts_N, answer_weights(config, derived_NA, scored, answered_N, G))


def judge_unmarked(tools: Tools, config: VerifierFreeConfig, reward_N, marked_N):
  """What the reward makes of traces without marker: rewards, and bool `[N]`: whose reward and whose answer counts."""
  every_N = jnp.ones(marked_N.shape, bool)
  if config.unmarked == "keep":
    return reward_N, every_N, every_N
  if config.unmarked == "mask":
    return reward_N, marked_N, marked_N
  other = 0.0
  if config.unmarked == "penalty":
    other = 2 * tools.all_sum(reward_N.sum()) / tools.all_sum(jnp.float32(reward_N.size))
  return jnp.where(marked_N, reward_N, other), every_N, marked_N


def format_advantages(tools: Tools, config: VerifierFreeConfig, marked_N):
  """Advantages `[N]` of the penalty alone; a bound on samples is no choice there, and becomes leave-one-out."""
  if not config.format_penalty:
    return jnp.zeros(marked_N.shape)
  center = "leave_one_out" if config.center == "multi_sample" else config.center
  penalty_N = jnp.where(marked_N, 0, -config.format_penalty)
  advantage_N = advantages.group_advantages(penalty_N, tools.samples_per_prompt, center, config.scale)
  limit = config.advantage_clip
  return advantages.clip_advantages(advantage_N, -limit, limit) if limit else advantage_N


def answer_weights(config: VerifierFreeConfig, derived_NA, scored: Scored, answered_N, group_size: int):
  """s_i, the weight of each answer token's log-probability `[N, A]` (nrt.md sections 2, 3b and 7.1)."""
  mask_NA = scored.mask_NA & answered_N[:, None]
  if config.answer_weight == "none":
    return jnp.zeros_like(derived_NA)
  if config.answer_weight == "scaled":
    return advantages.group_standardise_tokens(derived_NA, mask_NA, group_size)
  if config.answer_weight == "derived":
    return jnp.where(mask_NA, derived_NA, 0)
  if config.answer_weight == "one":
    return mask_NA.astype(jnp.float32)
  # ∇log mean_k p_k = Σ_k softmax_k(log p) ∇log p_k, a sum over samples where the loss takes their mean.
  total_BG = jnp.where(answered_N, scored.logp_NA.sum(axis=1), -jnp.inf).reshape(-1, group_size)
  share_BG = jax.nn.softmax(total_BG, axis=1, where=answered_N.reshape(-1, group_size))
  return jnp.where(mask_NA, group_size * share_BG.reshape(-1)[:, None], 0)


def shown(prompts_N, rollouts, scored: Scored, reward_N, advantage_N) -> dict:
  """What samples.jsonl shows of each row."""
  return {
    "prompt": prompts_N.prompt_BP,
    "prompt_length": prompts_N.prompt_length_B,
    "trace": rollouts.token_NR,
    "trace_length": rollouts.length_N,
    "answer": prompts_N.answer_BA,
    "answer_length": prompts_N.answer_length_B,
    "answer_logp": scored.logp_NA,
    "answer_logp_empty_trace": scored.empty_NA,
    "reward": reward_N,
    "advantage": advantage_N,
  }


def settle_ties(rollouts, logp_NA, empty_logp_NA, group_size: int):
  """Answer scores of which equal traces have equal ones, and empty traces those of the empty trace, to the last bit.

  They may differ by rounding, in bfloat16 by a lot, and std-scaled advantages would make a signal of it. How a trace
  ended is no part of it: all that the answer sees is the trace, and the marker behind it.
  """
  trace_length_N = rollouts.length_N - rollouts.ended_N
  first_N = rows.first_equal(rollouts.token_NR, trace_length_N, group_size)
  return jnp.where((trace_length_N == 0)[:, None], empty_logp_NA, logp_NA[first_N])


def build_rows(tools: Tools, config: VerifierFreeConfig, prompts_N, rollouts, scores) -> TrainBatch:
  """Splices the rows and says what was sampled, what is trace, answer and unemitted marker; all coefficients are 0.

  Another stop token than the marker is a token of the trace too: it is scored where the marker has taken its place.
  """
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
  stop_NL = jnp.arange(spliced.token_NL.shape[1])[None] == spliced.first + rollouts.token_NR.shape[1]
  # What ended the trace is one of its tokens; a forced marker that carries the advantage is trained in its place.
  stopped_N = rollouts.marker_N if config.train_forced_marker else rollouts.ended_N
  last_N1 = jnp.maximum(rollouts.length_N - 1, 0)[:, None]
  stop_N1, stop_logp_N1 = (jnp.take_along_axis(x, last_N1, 1) for x in (rollouts.token_NR, rollouts.logp_NR))
  stopped_NL, emitted_NL = stop_NL & stopped_N[:, None], stop_NL & rollouts.marker_N[:, None]
  forced_NL = pg.forced_columns(rollouts, trace_length_N, spliced, M, A)
  if rollouts.forced_NR is not None:  # the environment may have ended the trace
    forced_NL |= stop_NL & jnp.take_along_axis(rollouts.forced_NR, last_N1, 1)
  sampled_NL = (spliced.trace_mask_NL | stopped_NL) & ~forced_NL
  stop_logp_N1 = jnp.where(stopped_N[:, None], stop_logp_N1, scores.marker_logp_NM[:, :1])
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
    trace_mask_NL=sampled_NL | stop_NL & ~forced_NL if config.train_forced_marker else sampled_NL,
    sampled_mask_NL=sampled_NL,
    answer_mask_NL=spliced.answer_mask_NL,
    format_mask_NL=spliced.marker_mask_NL & ~emitted_NL,
    first=spliced.first,
    prompt_NP=prompts_N.prompt_BP,
    prompt_length_N=prompts_N.prompt_length_B,
    target_NL=jnp.where(stopped_NL, stop_N1, spliced.token_NL),
  )


def align_answer(batch: TrainBatch, x_NA):
  """Values of the answer's tokens in the columns of the rows, which end with them: `[N, L]`."""
  return jnp.pad(x_NA, ((0, 0), (batch.token_NL.shape[1] - x_NA.shape[1], 0)))


def fill_coefficients(tools: Tools, config, batch: TrainBatch, advantage_N, weight_NA, counts_N) -> TrainBatch:
  """Writes advantage, answer weight and format weight, each times its normaliser, onto their columns."""
  trace_mask_NL = batch.trace_mask_NL & counts_N[:, None]
  return batch.replace(
    **pg.trace_terms(tools, config, advantage_N, trace_mask_NL),
    answer_coef_NL=config.answer_coef * align_answer(batch, weight_NA) * pg.weigh(tools, config, batch.answer_mask_NL),
    # Always over all rows: one row without its marker must not weigh as much as if all had lost it.
    format_coef_NL=config.format_coef * pg.weigh(tools, config, batch.format_mask_NL, "constant"),
  )


def row(config) -> Algorithm:
  """A method that differs from NRT in the defaults of its config."""
  return Algorithm(config=config, collect=collect, loss=loss, samples_traces=True, lives_in_worlds=True)


ALGORITHM = row(VerifierFreeConfig)
