"""Iterative DPO: each step is a round of sampling, pairing and training (DPO, arXiv 2305.18290; in rounds: 2404.19733).

    L = mean over pairs of  -log σ(β [ log π(y_w)/π_ref(y_w) - log π(y_l)/π_ref(y_l) ]) + chosen_coef * NLL(y_w) / |y_w|

 1. sample G times per prompt: traces that are ranked by how likely they make the reference answer, or whole
    completions that a verifier ranks;
 2. chosen y_w: the group's best, or the data's own demonstration. Rejected y_l: the group's worst. A group without a
    strict winner makes no pair: it has no gradient and is not counted;
 3. train on the pairs, in `optimizer.minibatches` updates. π_ref is the policy at the round's start: no second model,
    and a second pass only over the pairs of the minibatches behind the first.

In a round of one update π = π_ref, and the gradient is a policy gradient's with advantages ±β/2: what makes it DPO is
many prompts and minibatches per step. The rows of a pair are adjacent, and no minibatch or micro-batch parts them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.algorithms import rlvr, settings, sft, verifier_free
from nrt_jax.algorithms.interface import Algorithm, Collected, Tools
from nrt_jax.arrays import LossSums, TrainBatch, repeat_rows
from nrt_jax.errors import UserError, require_choice
from nrt_jax.objectives import advantages, losses, rewards

CHOSEN = ("best", "demonstration")
VERIFIERS = ("likelihood", "none", *rlvr.VERIFIERS)


@dataclass(frozen=True)
class DpoConfig:
  """How pairs are made and compared. RARO's baseline (2511.21667): chosen demonstration, three rounds, β not known."""

  chosen: str = "best"  # of the group | demonstration: given trace, marker and reference answer
  verifier: str = "likelihood"  # of the answer: ranks traces | ranks completions: one of rlvr.VERIFIERS, or none
  reward: str = "log_prob"  # f of `likelihood`: one of rewards.AGGREGATIONS
  min_gap: float = 0.0  # the chosen one's reward must be above the rejected one's by more than this
  beta: float = 0.1  # as in 2404.19733, by secondary notes
  chosen_coef: float = 0.0  # cross-entropy of the chosen row, mean of its tokens; 1 in 2404.19733, by secondary notes
  reference: str = "none"  # none: the round's start | frozen: the stage's start | moving_average of the policy
  reference_decay: float = 0.999  # of the moving average, per step
  train_forced_marker = False  # no setting: a marker put in by force was not sampled

  def __post_init__(self):
    require_choice("algorithm.chosen", self.chosen, CHOSEN)
    require_choice("algorithm.verifier", self.verifier, VERIFIERS)
    require_choice("algorithm.reward", self.reward, rewards.AGGREGATIONS)
    require_choice("algorithm.reference", self.reference, settings.REFERENCES)
    settings.require_range(self, "reference_decay", 0, 1)
    if self.beta <= 0:
      raise UserError(f"algorithm.beta: found {self.beta}, allowed: above 0")
    for key in ("min_gap", "chosen_coef"):
      if getattr(self, key) < 0:
        raise UserError(f"algorithm.{key}: found {getattr(self, key)}, allowed: 0 or more")
    if self.verifier == ("none" if self.chosen == "best" else "likelihood"):
      allowed = ", ".join(v for v in VERIFIERS if v != self.verifier)
      raise UserError(f"algorithm.verifier: found {self.verifier!r} with chosen {self.chosen!r}, allowed: {allowed}")

  @property
  def compares_samples(self) -> str | None:
    return "algorithm.chosen 'best'" if self.chosen == "best" else None

  @property
  def grades_on_host(self) -> bool:
    return self.verifier in rlvr.HOST_VERIFIERS


def collect(tools: Tools, config: DpoConfig, states, prompts, key) -> Collected:
  G, policy = tools.samples_per_prompt, states.policy.params
  prompts_N = repeat_rows(prompts, G)
  rank = rank_traces if config.verifier == "likelihood" else rank_completions
  batch, rollouts, reward_N, sums = rank(tools, config, policy, prompts, prompts_N, key)

  reward_BG = reward_N.reshape(-1, G)
  best_B, worst_B = jnp.argmax(reward_BG, axis=1), jnp.argmin(reward_BG, axis=1)
  rejected = pick(batch, worst_B, G)
  if config.chosen == "best":
    chosen, top_B = pick(batch, best_B, G), reward_BG.max(axis=1)
  else:
    rejected = rejected.replace(prompt_NP=None, prompt_length_N=None)  # demonstrations end where they end
    chosen, rejected = same_columns(demonstrations(tools, prompts), rejected)
    best_B, top_B = jnp.full_like(best_B, G), jnp.ones(best_B.shape)  # none of the samples; as good as a right answer
  gap_B = top_B - reward_BG.min(axis=1)
  rounding_B = advantages.ROUNDING * jnp.abs(reward_BG).max(axis=1)
  batch, won_B = weigh_pairs(tools, config, chosen, rejected, gap_B > jnp.maximum(config.min_gap, rounding_B))
  batch = with_reference(tools, config, states, batch)

  sample = jnp.arange(G)[None]
  role_BG = (sample == best_B[:, None]) * 1.0 - (sample == worst_B[:, None])
  role_N = (role_BG * won_B[:, None]).reshape(-1)  # 1 chosen, -1 rejected, 0 neither
  sums = {
    **pg.reward_metrics(reward_N, role_N, G),
    **sums,
    "preference/pairs": pg.mean_of(won_B),
    "preference/gap": (jnp.sum(gap_B, where=won_B), won_B.sum()),
  }
  return Collected(batch, sums, rlvr.shown(prompts_N, rollouts, reward_N, role_N))


def rank_traces(tools: Tools, config: DpoConfig, policy, prompts, prompts_N, key):
  """Rows of sampled traces, and f(c) of the reference answer after each: (batch, rollouts, reward_N, metrics)."""
  G = tools.samples_per_prompt
  rollouts, scores, empty = tools.rollout(policy, prompts, key)
  mask_NA = jnp.arange(prompts.answer_BA.shape[1])[None] < prompts_N.answer_length_B[:, None]
  empty_NA = repeat_rows(empty.answer_logp_NA, G)
  logp_NA = verifier_free.settle_ties(rollouts, scores.answer_logp_NA, empty_NA, G)
  batch = verifier_free.build_rows(tools, config, prompts_N, rollouts, scores)
  sums = {**pg.trace_metrics(rollouts), **pg.answer_metrics(logp_NA, empty_NA, mask_NA)}
  return batch, rollouts, rewards.aggregate(config.reward, logp_NA, mask_NA, empty_NA), sums


def rank_completions(tools: Tools, config: DpoConfig, policy, prompts, prompts_N, key):
  """Rows of whole completions, and how right each is (0 without a verifier): (batch, rollouts, reward_N, metrics)."""
  rollouts = tools.complete(policy, prompts, key)[0]
  batch = pg.completion_batch(tools, config, prompts_N, rollouts)
  if config.verifier == "none":
    return batch, rollouts, jnp.zeros(rollouts.length_N.shape), pg.trace_metrics(rollouts)
  label_N = rlvr.verify(tools, config, prompts_N, rollouts)
  return batch, rollouts, label_N, rlvr.completion_metrics(tools, rollouts, label_N)


def demonstrations(tools: Tools, prompts) -> TrainBatch:
  """Rows of given trace, marker and reference answer; the trace loss is on all of them."""
  spliced = sft.splice(tools, prompts)
  shown_NL = spliced.trace_mask_NL | spliced.marker_mask_NL | spliced.answer_mask_NL
  return sft.supervised_batch(spliced, jnp.zeros(shown_NL.shape)).replace(trace_mask_NL=shown_NL)


def pick(tree, index_B, group_size: int):
  """One row of each group, the index_B-th."""

  def one(a):
    groups = a.reshape(-1, group_size, *a.shape[1:])
    return jnp.take_along_axis(groups, index_B.reshape(-1, *(1,) * a.ndim), axis=1)[:, 0]

  return jax.tree.map(one, tree)


def same_columns(*batches):
  """The batches with empty columns put behind, so that all have as many."""
  width = max(batch.token_NL.shape[1] for batch in batches)

  def widen(batch):
    more = ((0, 0), (0, width - batch.token_NL.shape[1]))
    wider = jax.tree.map(lambda a: jnp.pad(a, more), batch)
    return wider.replace(position_NL=jnp.pad(batch.position_NL, more, constant_values=-1))

  return tuple(widen(batch) for batch in batches)


def weigh_pairs(tools: Tools, config: DpoConfig, chosen: TrainBatch, rejected: TrainBatch, won_B):
  """Rows 2b (chosen) and 2b + 1 (rejected) with ±1 / pairs of the minibatch on what is compared: (batch, won_B)."""
  won_B1 = won_B[:, None]
  weight_B1 = won_B1 * losses.normaliser(won_B1, "token", tools.minibatches, 1, all_sum=tools.all_sum)
  learnt_NL = chosen.trace_mask_NL | chosen.answer_mask_NL | chosen.format_mask_NL
  per_token_B1 = config.chosen_coef * weight_B1 / jnp.maximum(learnt_NL.sum(axis=1, keepdims=True), 1)
  chosen = chosen.replace(
    trace_coef_NL=weight_B1 * chosen.trace_mask_NL,
    answer_coef_NL=per_token_B1 * learnt_NL,
  )
  rejected = rejected.replace(trace_coef_NL=-weight_B1 * rejected.trace_mask_NL)
  return jax.tree.map(lambda w, l: jnp.stack([w, l], 1).reshape(-1, *w.shape[1:]), chosen, rejected), won_B


def with_reference(tools: Tools, config: DpoConfig, states, batch: TrainBatch) -> TrainBatch:
  """The batch with the reference's log-probabilities, or with those of the policy at the round's start."""
  if config.chosen == "demonstration":  # not sampled: all is compared at temperature 1
    batch = batch.replace(sampled_mask_NL=jnp.zeros_like(batch.sampled_mask_NL))
  if config.reference == "none":
    return tools.score_start(states.policy.params, batch)
  return batch.replace(reference_logp_NL=tools.score_batch(states.reference, batch))


def loss(tools: Tools, config: DpoConfig, params, batch: TrainBatch) -> LossSums:
  """losses.dpo over the pairs, and the cross-entropy of the chosen rows."""
  logp_NL, entropy_NL, row_logp_NL = tools.log_probs(params, batch)
  reference_NL = pg.start_logp(batch, logp_NL) if config.reference == "none" else batch.reference_logp_NL
  compared = (logp_NL, reference_NL, batch.trace_coef_NL)
  terms = {
    "loss/preference": losses.dpo(*compared, config.beta).sum(),
    "loss/chosen": losses.supervised(row_logp_NL, batch.answer_coef_NL).sum(),
  }
  margin_P, weight_P = losses.pair_margins(*jax.lax.stop_gradient(compared))
  pairs, mask_NL = jnp.sum(weight_P > 0), batch.trace_mask_NL
  metrics = {
    **terms,
    "loss/total": sum(terms.values()),
    "preference/margin": (jnp.sum(margin_P, where=weight_P > 0), pairs),
    "preference/accuracy": (jnp.sum((margin_P > 0) & (weight_P > 0)), pairs),
    "policy/entropy": (jnp.sum(jnp.where(mask_NL, entropy_NL, 0)), jnp.sum(mask_NL)),
  }
  return LossSums(metrics["loss/total"], metrics)


ALGORITHM = Algorithm(config=DpoConfig, collect=collect, loss=loss, samples_traces=True, pairs=True)
