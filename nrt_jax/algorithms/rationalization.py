"""Rationalization: show question and answer, sample the trace between them, learn it as if it came from the question.

 1. sample traces after the hint, a prompt that shows the answer (STaR, arXiv 2203.14465);
 2. optionally keep those after which the answer is likely under the plain prompt, against an empty trace's: f(c) takes
    the place of STaR's check that the model, given the trace, writes the answer itself;
 3. supervised learning of `plain prompt | trace | marker | answer` on what is kept.

It is RARO's baseline of this name (2511.21667), whose prompt and filter could not be read. A trace may give away that
it knew the answer, or just repeat it: then the answer is likely after it, and no likelihood filters it out.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from nrt_jax import rows
from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.algorithms import sft, verifier_free
from nrt_jax.algorithms.interface import Algorithm, Collected, Tools
from nrt_jax.arrays import repeat_rows
from nrt_jax.errors import require_choice
from nrt_jax.objectives import losses, rewards

KEEP = ("all", "helpful", "best")


@dataclass(frozen=True)
class RationalizationConfig:
  """Which traces are learnt, and how the loss is normalised. What the hint says is `prompt.hint_template`."""

  keep: str = "best"  # all | helpful: f(c) above the empty trace's | best: of those, the group's best
  reward: str = "log_prob"  # f: one of rewards.AGGREGATIONS
  threshold: float = 0.0  # of helpful and best: how far above
  keep_unended: bool = False  # True: traces that hit the length limit too
  normalisation: str = "token"  # token | sequence: of what is kept | constant: of all samples
  normalisation_constant: float = 1.0  # tokens

  def __post_init__(self):
    require_choice("algorithm.keep", self.keep, KEEP)
    require_choice("algorithm.reward", self.reward, rewards.AGGREGATIONS)
    require_choice("algorithm.normalisation", self.normalisation, losses.NORMALISATIONS)


def collect(tools: Tools, config: RationalizationConfig, states, prompts, key) -> Collected:
  G, policy = tools.samples_per_prompt, states.policy.params
  hinted = prompts.replace(prompt_BP=prompts.hint_BQ, prompt_length_B=prompts.hint_length_B)
  rollouts = tools.rollout(policy, hinted, key)[0]  # its scores are of answers after the hint: nobody asks for them

  prompts_N = repeat_rows(prompts, G)
  spliced = rows.splice(
    prompts_N.prompt_BP,
    prompts_N.prompt_length_B,
    rollouts.token_NR,
    rollouts.length_N - rollouts.ended_N,  # the stop token gives way to the marker
    tools.marker_ids,
    prompts_N.answer_BA,
    prompts_N.answer_length_B,
    tools.pad_id,
  )
  learnt_NL = spliced.trace_mask_NL | spliced.marker_mask_NL | spliced.answer_mask_NL
  batch = sft.supervised_batch(spliced, jnp.zeros(learnt_NL.shape))
  logp_NA, empty_NA, mask_NA = score(tools, policy, prompts, prompts_N, rollouts, batch)
  reward_N, base_N = (rewards.aggregate(config.reward, logp, mask_NA, empty_NA) for logp in (logp_NA, empty_NA))
  gain_N = reward_N - base_N
  kept_N = keep(config, gain_N, rollouts.ended_N, G)

  learnt_NL &= kept_N[:, None]
  weight_N1 = losses.normaliser(
    learnt_NL, config.normalisation, tools.minibatches, G, config.normalisation_constant, tools.all_sum
  )
  batch = batch.replace(answer_coef_NL=learnt_NL * weight_N1)
  sums = {
    "reward/mean": pg.mean_of(gain_N),
    "rationale/kept": pg.mean_of(kept_N),
    "rationale/prompts_kept": pg.mean_of(kept_N.reshape(-1, G).any(axis=1)),
    **pg.trace_metrics(rollouts),
    **pg.answer_metrics(logp_NA, empty_NA, mask_NA),
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
    "reward": gain_N,
  }
  return Collected(batch, sums, samples)


def score(tools: Tools, policy, prompts, prompts_N, rollouts, batch):
  """log c of the answer under the plain prompt, after each trace and after none, and its mask: all `[N, A]`."""
  A = prompts.answer_BA.shape[1]
  mask_NA = jnp.arange(A)[None] < prompts_N.answer_length_B[:, None]
  empty_NA = repeat_rows(tools.score_empty_trace(policy, prompts).answer_logp_NA, tools.samples_per_prompt)
  logp_NA = tools.score_batch(policy, batch)[:, -A:]  # the answer has the last columns of a row
  return verifier_free.settle_ties(rollouts, logp_NA, empty_NA, tools.samples_per_prompt), empty_NA, mask_NA


def keep(config: RationalizationConfig, gain_N, ended_N, group_size: int):
  """Which traces are learnt: bool `[N]`."""
  kept_N = jnp.ones_like(ended_N) if config.keep_unended else ended_N
  if config.keep == "all":
    return kept_N
  kept_N &= gain_N > config.threshold
  if config.keep == "helpful":
    return kept_N
  gain_BG = jnp.where(kept_N, gain_N, -jnp.inf).reshape(-1, group_size)
  best_BG = jnp.arange(group_size)[None] == jnp.argmax(gain_BG, axis=1)[:, None]
  return kept_N & best_BG.reshape(-1)


ALGORITHM = Algorithm(
  config=RationalizationConfig, collect=collect, loss=sft.loss, samples_traces=True, needs_hints=True
)
