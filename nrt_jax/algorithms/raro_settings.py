"""The settings of RARO, and how many pairs of a question its critic sees."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from nrt_jax.algorithms import replay, rlvr, settings
from nrt_jax.algorithms.interface import Role
from nrt_jax.data.critic_prompts import CriticConfig
from nrt_jax.errors import UserError, require_choice
from nrt_jax.rollout.sampler import SamplingConfig

UNPARSED_VERDICTS = ("zero", "masked")
VERIFIERS = ("none", *rlvr.VERIFIERS)


@dataclass(frozen=True)
class RaroConfig(settings.PolicyGradientConfig):
  """RARO: arXiv 2511.21667. [S4] is a third-party re-implementation, the only source of the values marked so."""

  critic: CriticConfig = field(default_factory=CriticConfig)
  tau_policy: float = 0.6  # the policy's reward for a tie [S4]
  tau_critic: float = 0.55  # the critic's; one that is surer than this had better name an answer [S4]
  lambda_policy: float = 1 / 9  # weight of the policy's rows [S4, direction unsure]; 0: the critic alone learns
  lambda_critic: float = 8 / 9  # weight of the critic's rows [S4]
  replay_share: float = 0.5  # of the pairs that the critic learns from are replayed; 0 = no buffer [S4]
  replay_size: int = 10_000  # pairs that the buffer holds [S4]
  replay: str = "fifo"  # fifo: the newest | reservoir: a uniform sample of all [S4's default]
  corrupt_share: float = 0.0  # of those pairs are the expert's answer and one with two of its tokens exchanged (ours)
  unparsed: str = "zero"  # a verdict without label: zero: earns the critic 0 | masked: no part of its loss (ours)
  label_coef: float = 0.0  # above 0: the critic learns the right label behind its own reasoning, supervised (ours)
  accuracy_floor: float = 0.0  # the policy waits while the critic's accuracy, averaged over steps, is below (ours)
  accuracy_decay: float = 0.9  # of that average, per step (ours)
  alarm_steps: int = 20  # a line of warning after so many steps of a critic that always ties, or is never fooled (ours)
  verifier: str = "none"  # none | as for grpo: measures, and rewards where it weighs something (2607.01181)
  verifier_weight: float = 0.0  # of the verifier's verdict, added to the critic's in the policy's reward
  scale: str = "none"  # the paper leaves the std out
  trace_loss: str = "ppo_clip"
  clip_low: float = 0.8  # unknown in the paper; [S4]
  clip_high: float = 1.2
  mask_unended: bool = True  # the paper's over-length filter
  reference: str = "frozen"
  kl_coef: float = 1e-3  # [S4]; in the loss or in the reward: unknown
  normalisation: str = "constant"  # the paper leaves the length normalisation out

  def __post_init__(self):
    super().__post_init__()
    require_choice("algorithm.replay", self.replay, replay.KINDS)
    require_choice("algorithm.unparsed", self.unparsed, UNPARSED_VERDICTS)
    require_choice("algorithm.verifier", self.verifier, VERIFIERS)
    for key in ("tau_policy", "tau_critic", "replay_share", "corrupt_share", "accuracy_floor", "accuracy_decay"):
      settings.require_range(self, key, 0, 1)
    for key in ("lambda_policy", "lambda_critic", "label_coef"):
      if getattr(self, key) < 0:
        raise UserError(f"algorithm.{key}: found {getattr(self, key)}, allowed: 0 or more")
    if self.replay_share + self.corrupt_share > 1:
      found = f"{self.replay_share}, {self.corrupt_share}"
      raise UserError(f"algorithm.replay_share, corrupt_share: found {found}, allowed: together at most 1")
    for key in ("replay_size", "alarm_steps"):
      if getattr(self, key) < 1:
        raise UserError(f"algorithm.{key}: found {getattr(self, key)}, allowed: 1 or more")
    if self.max_draws > 1 or self.filter_flat_groups or self.kl_place == "reward":
      raise UserError("algorithm.max_draws, filter_flat_groups, kl_place: allowed with a critic: 1, False, 'loss'")
    if self.verifier_weight and self.verifier == "none":
      raise UserError("algorithm.verifier_weight: above 0 with verifier 'none', allowed: 0, or a verifier")
    if self.critic.kl_coef and not self.kl_coef:
      raise UserError("algorithm.critic.kl_coef: above 0 with algorithm.kl_coef 0, allowed: null or 0")

  @property
  def grades_on_host(self) -> bool:
    return self.verifier in rlvr.HOST_VERIFIERS

  def pairs(self, group_size: int) -> "PairCounts":
    """How many pairs of a question are judged and learnt from."""
    learnt = self.critic.pairs or group_size
    old, corrupted = round(self.replay_share * learnt), round(self.corrupt_share * learnt)
    return PairCounts(group_size, max(learnt - old - corrupted, 0), old, corrupted)

  def role(self) -> Role:
    """How verdicts are drawn."""
    critic = self.critic
    sampling = SamplingConfig(critic.max_length, critic.temperature, critic.top_k, critic.top_p)
    return Role(sampling, critic.samples // critic.orders)


class PairCounts(NamedTuple):
  """Pairs of one question."""

  fresh: int  # judged, for the policy's reward: one for each of its completions
  fresh_learnt: int  # of these, the critic learns from so many
  old: int  # from the buffer
  corrupted: int

  @property
  def judged(self) -> int:
    return self.fresh + self.old + self.corrupted

  @property
  def learnt(self) -> int:
    return self.fresh_learnt + self.old + self.corrupted


def rows_per_prompt(config: RaroConfig, group_size: int, role: str | None) -> int:
  """Rows of a TrainBatch that belong to one prompt: of a role, or of both."""
  critic = config.pairs(group_size).learnt * config.critic.samples
  return {None: group_size + critic, "policy": group_size, "critic": critic}[role]


def rows_that_share(config: RaroConfig, group_size: int, role: str | None) -> int:
  """Adjacent rows that have the same prompt."""
  per_prompt = config.role().samples
  return {None: math.gcd(group_size, per_prompt), "policy": group_size, "critic": per_prompt}[role]
