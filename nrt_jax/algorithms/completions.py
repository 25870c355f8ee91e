"""RLPR and NOVER: the whole sampled completion carries the policy gradient, and no gradient goes through the answer.

 1. sample G completions per prompt, trace, marker and own answer; `sampling.max_trace_length` limits the whole of it;
 2. score the reference answer in the own one's place, behind the first marker: whether that is right is not asked;
 3. reward, advantage within the group; every token of the completion carries it.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp

from nrt_jax import rows
from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.algorithms import settings, verifier_free
from nrt_jax.algorithms.interface import Algorithm, Attempt, Collected, Tools
from nrt_jax.arrays import repeat_rows
from nrt_jax.errors import UserError
from nrt_jax.objectives import advantages, rewards


@dataclass(frozen=True)
class RlprConfig(verifier_free.LikelihoodConfig):
  """RLPR: arXiv 2506.18254, mean probability of the reference answer, less that without a trace."""

  reward: str = "arithmetic_mean"  # code: mean_exp_log_softmax; others there are variants of it
  baseline: str = "subtract_and_clip"  # code: clip(r - r', 0, 1)
  base_policy: str = "reference"  # code: r' of the initial actor
  reference: str = "frozen"
  trace_loss: str = "ppo_clip"
  clip_low: float = 0.8
  clip_high: float = 1.27
  normalisation: str = "token"  # unknown; verl's default
  format_share: float = 0.1  # of the reward is for marker and end; without them the likelihood's share is 0 (code)
  repetition_penalty: float = 1.0  # subtracted from a completion that repeats itself, whatever its format (code)
  repetition_ngram: int = 10  # tokens of what counts as repeated; the code's unit, tokens or words: unknown
  repetition_times: int = 10  # how often it must occur
  std_filter: float = 0.5  # β: groups whose std is below β times its moving average do not count: 0.5 Qwen, 0.9 Llama
  std_filter_start: int = 11  # first step of the stage with the filter; the paper draws others till the batch is full
  std_average_start: int = 6  # first step of the average
  std_average_decay: float = 0.99
  train_forced_marker = False  # no setting: nothing is put in by force

  def __post_init__(self):
    super().__post_init__()
    settings.require_range(self, "format_share", 0, 1)
    settings.require_range(self, "std_average_decay", 0, 1)
    for key in ("std_filter", "repetition_penalty"):
      if getattr(self, key) < 0:
        raise UserError(f"algorithm.{key}: found {getattr(self, key)}, allowed: 0 (off) or more")
    if self.repetition_ngram < 1 or self.repetition_times < 2:
      found = f"{self.repetition_ngram}, {self.repetition_times}"
      raise UserError(f"algorithm.repetition_ngram, repetition_times: found {found}, allowed: 1 or more, 2 or more")
    if not 1 <= self.std_average_start < self.std_filter_start:
      found = f"{self.std_average_start}, {self.std_filter_start}"
      raise UserError(f"algorithm.std_average_start, std_filter_start: found {found}, allowed: 1 <= average < filter")


@dataclass(frozen=True)
class NoverConfig(settings.PolicyGradientConfig):
  """NOVER: arXiv 2505.16022, rank of the reasoning perplexity in the group, and an efficiency term."""

  score_policy: str = "reference"  # the perplexity's policy follows the trained one | current
  reference: str = "moving_average"
  reference_decay: float = 0.9  # each step; the paper's mixes 0.9, of which side and how often: unknown
  format_weight: float = 1.0  # of marker and end, without which the rest is 0
  rank_weight: float = 1.0
  efficiency_weight: float = 1.0
  trace_loss: str = "ppo_clip"
  clip_low: float = 0.9
  clip_high: float = 1.2
  kl_coef: float = 0.1
  normalisation: str = "sequence"  # GRPO's; unknown
  base_policy, base_place = "current", "empty_trace"  # no settings: the reward has no baseline
  train_forced_marker = False  # nor is anything put in by force

  def __post_init__(self):
    super().__post_init__()
    verifier_free.require_policies(self, "score_policy")


def collect(judge, tools: Tools, config, states, prompts, key) -> Collected:
  """`judge(tools, config, scored, traces, formatted_N) -> (reward_N, magnitude_N)` is what these methods differ in.

  The magnitude is the size of the numbers that a reward is computed from, see advantages.group_advantages.
  """
  G, filters = tools.samples_per_prompt, getattr(config, "std_filter", 0) > 0

  def attempt(prompts) -> Attempt:
    rollouts, scores, empty = tools.complete(states.policy.params, prompts, key)
    traces = cut_at_marker(tools, rollouts)
    scored = verifier_free.score(tools, config, states, prompts, traces, scores, empty)
    reward_N, magnitude_N = judge(tools, config, scored, traces, rollouts.marker_N & rollouts.ended_N)
    sums = completion_metrics(rollouts, traces, scored)
    if getattr(config, "repetition_penalty", 0):
      repeats_N = rewards.repeats(
        rollouts.token_NR, rollouts.length_N, config.repetition_ngram, config.repetition_times
      )
      reward_N -= config.repetition_penalty * repeats_N
      sums["completion/repetitive_fraction"] = pg.mean_of(repeats_N)
    shaped_N = pg.shape(config, reward_N, rollouts, rollouts.token_NR.shape[1])
    rows_of = functools.partial(pg.completion_batch, tools, config, repeat_rows(prompts, G), rollouts)
    shaped_N -= pg.reward_kl(tools, config, states.reference, rollouts, rows_of)
    varies_N = pg.teaches(pg.group_advantages(tools, config, shaped_N, rollouts, magnitude_N)[0], G)
    if filters:
      varies_N, std_sum = filter_by_std(config, shaped_N, G, states.memory)
      sums |= {"reward/drawn_std": std_sum, "reward/kept_fraction": pg.mean_of(varies_N)}
    return Attempt((rollouts, scored, reward_N, shaped_N, magnitude_N, varies_N), varies_N, sums)

  prompts, (rollouts, scored, reward_N, shaped_N, magnitude_N, varies_N), sums = tools.draw(prompts, attempt)
  prompts_N = repeat_rows(prompts, G)
  batch = pg.completion_batch(tools, config, prompts_N, rollouts)
  advantage_N, counts_N = pg.group_advantages(tools, config, shaped_N, rollouts, magnitude_N)
  counts_N = pg.without_flat(config, advantage_N, counts_N, G)
  memory = None
  if filters:
    counts_N, advantage_N = counts_N & varies_N, jnp.where(varies_N, advantage_N, 0)
    memory = follow_std(tools, config, sums.pop("reward/drawn_std"), states.memory)
    sums["reward/std_average"] = (memory["std"], jnp.float32(1))
  batch = batch.replace(**pg.trace_terms(tools, config, advantage_N, batch.trace_mask_NL & counts_N[:, None]))
  batch = pg.with_scores(tools, config, states, batch)
  sums = {**pg.reward_metrics(reward_N, advantage_N, G), **sums}
  return Collected(batch, sums, verifier_free.shown(prompts_N, rollouts, scored, reward_N, advantage_N), memory)


def completion_metrics(rollouts, traces, scored) -> dict:
  """Lengths of the whole completion and of its trace, how completions ended, and how likely the answers are."""
  return {
    **pg.trace_metrics(rollouts),
    **pg.answer_metrics(scored.logp_NA, scored.empty_NA, scored.mask_NA),
    "trace/length_mean": pg.mean_of(traces.length_N),
    "trace/length_max": jnp.max(traces.length_N).astype(jnp.float32),
    "completion/length_mean": pg.mean_of(rollouts.length_N - rollouts.ended_N),
  }


def cut_at_marker(tools: Tools, rollouts):
  """The completions' traces as Rollouts that end with their last token, neither with a marker nor with a stop token."""
  nowhere_N = jnp.zeros(rollouts.ended_N.shape, bool)
  marker_N = rows.find_marker(rollouts.token_NR, rollouts.length_N, tools.marker_ids)
  length_N = jnp.minimum(marker_N, rollouts.length_N - rollouts.ended_N)
  return rollouts.replace(length_N=length_N, ended_N=nowhere_N, marker_N=nowhere_N)


def judge_rlpr(tools: Tools, config: RlprConfig, scored, traces, formatted_N):
  """R = (1 - share) max(0, f(c) - f(c_base)) + share, and 0 without the format (released code)."""
  made, share = verifier_free.likelihood_rewards(config, scored, tools.samples_per_prompt), config.format_share
  reward_N = jnp.where(formatted_N, (1 - share) * made.gain_N + share, 0)
  return reward_N, (1 - share) * made.magnitude_N + share


def filter_by_std(config: RlprConfig, reward_N, group_size: int, memory):
  """Whether a row's group varies enough, bool `[N]`, and the mean std of all groups as (sum, count).

  The average is that of the steps before; groups without any variance are kept where the average is 0 too.
  """
  std_B = reward_N.reshape(-1, group_size).std(axis=1, ddof=min(1, group_size - 1))
  kept_B = (memory["steps"] + 1 < config.std_filter_start) | (std_B >= config.std_filter * memory["std"])
  return kept_B.repeat(group_size), pg.mean_of(std_B)


def follow_std(tools: Tools, config: RlprConfig, std_sum, memory) -> dict:
  """The memory after a step: the moving average of the std of all groups drawn, kept or not, and the stage's steps."""
  mean = tools.all_sum(std_sum[0]) / tools.all_sum(std_sum[1])
  step = memory["steps"] + 1
  follows = config.std_average_decay * memory["std"] + (1 - config.std_average_decay) * mean
  average = jnp.where(step > config.std_average_start, follows, jnp.where(step == config.std_average_start, mean, 0.0))
  return {"std": average, "steps": step}


def judge_nover(tools: Tools, config: NoverConfig, scored, traces, formatted_N):
  """R = w_f F + F (w_r rank + w_e efficiency) with F = 1 for well formatted completions, else 0."""
  G = tools.samples_per_prompt
  rank_N, efficiency_N = rank_terms(log_reasoning_perplexity(scored, traces), traces.length_N, formatted_N, G)
  merit_N = config.format_weight + config.rank_weight * rank_N + config.efficiency_weight * efficiency_N
  reward_N = jnp.where(formatted_N, merit_N, 0)
  return reward_N, reward_N


def log_reasoning_perplexity(scored, traces):
  """log P_r = -(1/T) Σ_i log c_i / N with N = max(1, 1 + log10 of the trace's tokens), as in the code `[N]`."""
  mean_N = rewards.aggregate("mean_log_prob", scored.logp_NA, scored.mask_NA)
  return -mean_N / (1 + jnp.log10(jnp.maximum(traces.length_N, 1)))


def rank_terms(log_perplexity_N, length_N, valid_N, group_size: int):
  """Among the V valid rows of a group: rank, 1 for the lowest perplexity to 1 / V for the highest, equals alike; and

  efficiency, the share of the other valid rows that are both longer and of higher perplexity. Invalid rows are no part
  of it, and what stands in theirs says nothing.
  """

  def pairs(x_N):
    x_BG = x_N.reshape(-1, group_size)
    return x_BG[:, :, None], x_BG[:, None, :]  # its own, the other's

  own, other = pairs(log_perplexity_N)
  own_length, other_length = pairs(length_N)
  valid_BGG = pairs(valid_N)[1]
  count_B1 = valid_N.reshape(-1, group_size).sum(axis=1, keepdims=True)
  equal = jnp.abs(other - own) <= advantages.ROUNDING * jnp.maximum(jnp.abs(own), 1)  # logarithms carry rounding of 1
  better_BG = ((other < own) & ~equal & valid_BGG).sum(axis=-1)
  beaten_BG = ((other > own) & ~equal & (other_length > own_length) & valid_BGG).sum(axis=-1)
  rank_BG = 1 - better_BG / jnp.maximum(count_B1, 1)
  return rank_BG.reshape(-1), (beaten_BG / jnp.maximum(count_B1 - 1, 1)).reshape(-1)


def first_memory(config: RlprConfig, critic=None) -> dict:
  return {"std": jnp.float32(0), "steps": jnp.int32(0)} if config.std_filter else {}


RLPR = Algorithm(
  config=RlprConfig,
  collect=functools.partial(collect, judge_rlpr),
  loss=pg.loss,
  samples_traces=True,
  lives_in_worlds=True,
  memory=first_memory,
)
NOVER = Algorithm(
  config=NoverConfig,
  collect=functools.partial(collect, judge_nover),
  loss=pg.loss,
  samples_traces=True,
  lives_in_worlds=True,
)
