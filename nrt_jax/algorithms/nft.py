"""NFT: learning from negatives by supervised likelihood (arXiv 2505.18116), and rejection fine-tuning (RFT).

With the label s of a completion (1 right, 0 wrong) and the rate r̂ = mean s of its prompt, the sampling policy splits
into a positive and a negative one, π_old = r̂ π⁺ + (1 - r̂) π⁻. The policy is trained as π⁺, and wrong completions
train the π⁻ that it implies (eq. 8), see losses.nft:

    L = -ω(r̂) Σ_t [ s log R_t + negative_weight (1 - s) log max_ε(V_t) ]

On-policy its gradient has the advantage ω (s - r̂) / (1 - r̂), as long as ε <= 1: that of Dr. GRPO for ω = 1 - r̂, that
of GRPO with the population's std for ω = √((1 - r̂)/r̂). `negative_weight` 0 with ω = 1 is RFT: likelihood of the right
completions.

The label may be soft. From a likelihood, f(c) of the reference answer after the sampled trace, it needs no verifier;
then traces are trained, not whole completions. Mind ε there. With soft labels the optimum is the soft posterior only
while ε stays below the smallest V there, V = (1 - s) / (1 - r̂) at sequence level; the default ε = 1 weighs the
completions above the mean too little as negatives, and ends in a policy sharper than the posterior. A small ε blows up
instead where R comes close to 1 / r̂. With right-or-wrong labels neither happens at the optimum.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.algorithms import rlvr, settings, verifier_free
from nrt_jax.algorithms.interface import Algorithm, Attempt, Collected, Tools
from nrt_jax.arrays import TrainBatch, repeat_rows
from nrt_jax.errors import UserError, require_choice
from nrt_jax.objectives import advantages, losses, rewards

PROMPT_WEIGHTS = ("one", "negative_rate", "negative_odds_root")
VERIFIERS = (*rlvr.VERIFIERS, "likelihood")
LABEL_MAPS = ("identity", "affine_clip")
UNIT_REWARDS = ("prob", "geometric_mean", "arithmetic_mean")  # of the aggregations, those that lie in [0, 1]


@dataclass(frozen=True)
class NftConfig(settings.UpdateConfig):
  """Defaults are the paper's; "code" is NVlabs/NFT."""

  verifier: str = "token_match"  # one of rlvr.VERIFIERS | likelihood: of the reference answer after the trace
  reward: str = "geometric_mean"  # f of `likelihood`: one of rewards.AGGREGATIONS
  label_map: str = "identity"  # from f to the label | affine_clip: 1/2 + clip((f - mean) / Z, -1, 1) / 2 (2509.16117)
  label_scale: float = 0.0  # Z; 0 = the std of f about its group means over the whole step
  prompt_weight: str = "negative_rate"  # ω: one | negative_rate, 1 - r̂ | negative_odds_root, √((1 - r̂)/r̂)
  negative_weight: float = 1.0  # on the negative term: 1 NFT, 0 RFT; code suggests 0.5 at 32B
  floor: float = 1.0  # ε of V; see above for soft labels
  ratio: str = "token"  # token (eq. 10) | sequence (eq. 9)
  answer_coef: float = 0.0  # `likelihood` only: cross-entropy on the reference answer after the trace
  format_coef: float = 0.0  # `likelihood` only: cross-entropy on marker tokens that the model did not emit
  filter_flat_groups: bool = True  # algorithm 1, line 8: prompts with 0 < r̂ < 1 only
  normalisation: str = "constant"  # code: the sum over tokens, divided by 1000
  train_forced_marker = False  # no setting: a marker put in by force was not sampled, so that it has no ratio

  def __post_init__(self):
    super().__post_init__()
    require_choice("algorithm.verifier", self.verifier, VERIFIERS)
    require_choice("algorithm.reward", self.reward, rewards.AGGREGATIONS)
    require_choice("algorithm.label_map", self.label_map, LABEL_MAPS)
    require_choice("algorithm.prompt_weight", self.prompt_weight, PROMPT_WEIGHTS)
    require_choice("algorithm.ratio", self.ratio, losses.NFT_RATIOS)
    for key in ("negative_weight", "label_scale", "answer_coef", "format_coef"):
      if getattr(self, key) < 0:
        raise UserError(f"algorithm.{key}: found {getattr(self, key)}, allowed: 0 or more")
    if self.floor <= 0:
      raise UserError(f"algorithm.floor: found {self.floor}, allowed: above 0")
    if self.ratio == "sequence" and self.normalisation != "sequence":
      raise UserError(
        f"algorithm.normalisation: found {self.normalisation!r} with ratio 'sequence', "
        "allowed: sequence, so that a row's length does not weigh"
      )
    if self.verifier == "likelihood" and self.label_map == "identity" and self.reward not in UNIT_REWARDS:
      raise UserError(
        f"algorithm.label_map: found 'identity' with reward {self.reward!r}, whose values are no labels in [0, 1]; "
        f"allowed: affine_clip, or a reward of {', '.join(UNIT_REWARDS)}"
      )

  @property
  def grades_on_host(self) -> bool:
    return self.verifier in rlvr.HOST_VERIFIERS

  @property
  def compares_samples(self) -> str | None:
    """With one sample s = r̂, and the negatives' weight takes off what the positives' gives."""
    if self.negative_weight == 1:
      return "algorithm.negative_weight 1.0"
    soft = self.verifier == "likelihood" and self.label_map == "affine_clip"
    return "algorithm.label_map 'affine_clip'" if soft else super().compares_samples

  @property
  def ratio_from_start(self) -> bool:
    return super().ratio_from_start and self.negative_weight > 0  # the positives' gradient has no ratio


@dataclass(frozen=True)
class RftConfig(NftConfig):
  """RFT, expert iteration (STaR, ReST-EM): likelihood of the completions that a verifier accepts, all of them alike."""

  prompt_weight: str = "one"
  negative_weight: float = 0.0
  filter_flat_groups: bool = False  # always right is a demonstration too; the NFT paper leaves such prompts out


def collect(tools: Tools, config: NftConfig, states, prompts, key) -> Collected:
  G, soft = tools.samples_per_prompt, config.verifier == "likelihood"

  def attempt(prompts) -> Attempt:
    if soft:
      return attempt_likelihood(tools, config, states, prompts, key)
    rollouts = tools.complete(states.policy.params, prompts, key)[0]
    return rlvr.judged(tools, config, rollouts, rlvr.verify(tools, config, repeat_rows(prompts, G), rollouts))

  prompts, (rollouts, label_N, *scores), sums = tools.draw(prompts, attempt)
  prompts_N = repeat_rows(prompts, G)
  if soft:
    batch = verifier_free.build_rows(tools, config, prompts_N, rollouts, *scores)
    label_N = label_N if config.label_map == "identity" else affine_labels(tools, config, label_N)
  else:
    batch = pg.completion_batch(tools, config, prompts_N, rollouts)
  counts_N = rollouts.ended_N if config.mask_unended else jnp.ones(label_N.shape, bool)
  rate_N = group_rate(label_N, counts_N, G)
  if config.filter_flat_groups:
    counts_N &= rlvr.varies(label_N, counts_N, G)
  weight_N = prompt_weight(config.prompt_weight, rate_N)
  odds_N = rate_N / jnp.maximum(1 - rate_N, losses.NFT_LEAST_RATE)
  on_policy_N = label_N - config.negative_weight * (1 - label_N) * odds_N
  advantage_N = jnp.where(counts_N, weight_N * on_policy_N, 0)

  batch = batch.replace(
    **pg.trace_terms(tools, config, weight_N, batch.trace_mask_NL & counts_N[:, None]),
    answer_coef_NL=config.answer_coef * pg.weigh(tools, config, batch.answer_mask_NL),
    format_coef_NL=config.format_coef * pg.weigh(tools, config, batch.format_mask_NL, "constant"),
    extra={"label_N": label_N, "rate_N": rate_N},
  )
  batch = pg.with_scores(tools, config, states, batch)
  sums = {**pg.reward_metrics(label_N, advantage_N, G), **sums}
  return Collected(batch, sums, rlvr.shown(prompts_N, rollouts, label_N, advantage_N))


def attempt_likelihood(tools: Tools, config: NftConfig, states, prompts, key) -> Attempt:
  """Samples traces, and f(c), how likely each makes the reference answer: sampled is (rollouts, f, scores)."""
  G, prompts_N = tools.samples_per_prompt, repeat_rows(prompts, tools.samples_per_prompt)
  rollouts, scores, empty = tools.rollout(states.policy.params, prompts, key)
  mask_NA = jnp.arange(prompts.answer_BA.shape[1])[None] < prompts_N.answer_length_B[:, None]
  empty_NA = repeat_rows(empty.answer_logp_NA, G)
  logp_NA = verifier_free.settle_ties(rollouts, scores.answer_logp_NA, empty_NA, G)
  reward_N = rewards.aggregate(config.reward, logp_NA, mask_NA, empty_NA)
  counts_N = rollouts.ended_N if config.mask_unended else jnp.ones(reward_N.shape, bool)
  sums = {**pg.trace_metrics(rollouts), **pg.answer_metrics(logp_NA, empty_NA, mask_NA)}
  return Attempt((rollouts, reward_N, scores), rlvr.varies(reward_N, counts_N, G), sums)


def affine_labels(tools: Tools, config: NftConfig, reward_N):
  """s = 1/2 + 1/2 clip((R - group mean) / Z, -1, 1) (DiffusionNFT, 2509.16117); all 1/2 where Z is 0."""
  deviation_N = advantages.group_advantages(reward_N, tools.samples_per_prompt, "mean", "none")  # exactly 0 if flat
  scale = config.label_scale
  if not scale:
    scale = jnp.sqrt(tools.all_sum(jnp.sum(deviation_N**2)) / tools.all_sum(jnp.float32(deviation_N.size)))
  return 0.5 + 0.5 * jnp.clip(deviation_N / jnp.where(scale > 0, scale, 1), -1, 1)


def group_rate(label_N, counts_N, group_size: int):
  """r̂: the mean label of a row's group, over the rows that count `[N]`."""
  label_BG, counts_BG = label_N.reshape(-1, group_size), counts_N.reshape(-1, group_size)
  rate_B = jnp.where(counts_BG, label_BG, 0).sum(axis=1) / jnp.maximum(counts_BG.sum(axis=1), 1)
  return rate_B.repeat(group_size)


def prompt_weight(name: str, rate_N):
  """ω(r̂), in the order of the code's flag `normalize`: 0, 1, 2."""
  if name == "one":
    return jnp.ones_like(rate_N)
  if name == "negative_rate":
    return 1 - rate_N
  return jnp.sqrt((1 - rate_N) / jnp.maximum(rate_N, losses.NFT_LEAST_RATE))


def loss(tools: Tools, config: NftConfig, params, batch: TrainBatch):
  """losses.nft on the sampled tokens, and the terms that all methods share."""

  def trace_loss(logp_NL, entropy_NL):
    del entropy_NL
    logps = (logp_NL, pg.ratio_base(config, batch, logp_NL))
    arguments = (*logps, batch.trace_coef_NL, batch.extra["label_N"], batch.extra["rate_N"])
    settings = (config.floor, config.negative_weight, config.ratio)
    return losses.nft(*arguments, *settings), losses.nft_stats(*arguments, *settings)

  return pg.sum_terms(tools, config, params, batch, trace_loss)


def _row(config) -> Algorithm:
  return Algorithm(config=config, collect=collect, loss=loss, samples_traces=True)


NFT, RFT = _row(NftConfig), _row(RftConfig)
