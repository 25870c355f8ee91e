"""The settings that every method shares which samples traces: advantages, trust region, reference model, shaping."""

from dataclasses import dataclass

from nrt_jax.errors import UserError, require_choice
from nrt_jax.objectives import advantages, losses

REFERENCES = ("none", "frozen", "moving_average")
KL_PLACES = ("loss", "reward")
RATIO_BASES = ("update", "sampler")


@dataclass(frozen=True)
class UpdateConfig:
  """Settings of the update that do not ask what the signal on the trace's tokens is."""

  trace_coef: float = 1.0
  entropy_coef: float = 0.0  # bonus on the entropy of the policy at the trace's tokens
  reference: str = "none"  # none | frozen (the stage's start) | moving_average of the policy
  reference_decay: float = 0.999  # of the moving average, per step
  kl_coef: float = 0.0  # against the reference, on the trace's tokens
  kl_estimator: str = "k3"  # in the loss: k2 | k3; not k1, which has no gradient there in expectation
  # π_old of a ratio: update, as the updates compute it where they start | sampler, whose rounding then counts as a move
  ratio_base: str = "update"
  mask_unended: bool = False  # True: a trace that hit the length limit gets no gradient (DAPO's overlong filtering)
  filter_flat_groups: bool = False  # True: groups without variance do not count in the normalisation (DAPO)
  max_draws: int = 1  # times that prompts_per_step prompts are drawn, until so many groups vary; 1 = never again
  normalisation: str = "constant"  # token | sequence | constant; only constant keeps the equation's weights
  normalisation_constant: float = 0.0  # tokens that a row's sum is divided by; 0 = sampling.max_trace_length

  def __post_init__(self):
    require_choice("algorithm.reference", self.reference, REFERENCES)
    require_choice("algorithm.kl_estimator", self.kl_estimator, losses.KL_ESTIMATORS)
    require_choice("algorithm.ratio_base", self.ratio_base, RATIO_BASES)
    require_choice("algorithm.normalisation", self.normalisation, losses.NORMALISATIONS)
    require_range(self, "reference_decay", 0, 1)
    if self.max_draws < 1:
      raise UserError(f"algorithm.max_draws: found {self.max_draws}, allowed: 1 (off) or more")
    if self.normalisation_constant < 0:
      found = self.normalisation_constant
      raise UserError(f"algorithm.normalisation_constant: found {found}, allowed: 0 (the longest trace) or more")
    if self.kl_coef < 0:
      raise UserError(f"algorithm.kl_coef: found {self.kl_coef}, allowed: 0 (off) or more")
    if self.kl_coef and self.reference == "none":
      raise UserError("algorithm.kl_coef: above 0 with reference 'none', allowed: reference frozen or moving_average")

  @property
  def compares_samples(self) -> str | None:
    """The setting that makes no sense with one sample per prompt."""
    return "algorithm.filter_flat_groups" if self.filter_flat_groups else None

  @property
  def ratio_from_start(self) -> bool:
    """Whether a ratio compares with the policy that the step's updates start from, as these compute it."""
    return self.ratio_base == "update"


@dataclass(frozen=True)
class PolicyGradientConfig(UpdateConfig):
  """Settings of all methods that weigh sampled traces by an advantage."""

  center: str = "mean"  # advantage: less the group's mean | leave_one_out | multi_sample (JEPO's bound) | none
  scale: str = "std"  # by the group's unbiased std (a flat group gets 0) | advantage_std: of what was centred | none
  advantage_clip: float = 0.0  # advantages are limited to ±this; 0 = off
  positive_only: bool = False  # True: negative advantages become 0, so that nothing is discouraged (Quiet-STaR)
  trace_loss: str = "cispo"  # reinforce | truncated_importance | ppo_clip | cispo | sequence_clip (GSPO)
  clip_low: float = 0.8  # smallest ratio of the trust region, absolute
  clip_high: float = 1.28  # largest; the cap of truncated_importance, whose ratio is always to the sampler
  kl_place: str = "loss"  # loss: differentiated | reward: summed over the trace and subtracted (always k1)
  long_penalty: float = 0.0  # subtracted at the length limit, rising linearly over the last long_buffer tokens (DAPO)
  long_buffer: int = 0  # tokens
  short_penalty: float = 0.0  # times the tokens by which a trace is shorter than short_target (2602.03979)
  short_target: int = 0  # tokens

  def __post_init__(self):
    super().__post_init__()
    require_choice("algorithm.center", self.center, advantages.CENTERS)
    require_choice("algorithm.scale", self.scale, advantages.SCALES)
    require_choice("algorithm.trace_loss", self.trace_loss, losses.TRACE_LOSSES)
    require_choice("algorithm.kl_place", self.kl_place, KL_PLACES)
    if not 0 <= self.clip_low <= 1 <= self.clip_high:
      found = f"{self.clip_low}, {self.clip_high}"
      raise UserError(f"algorithm.clip_low, clip_high: found {found}, allowed: 0 <= low <= 1 <= high")
    for key in ("advantage_clip", "long_penalty", "long_buffer", "short_penalty", "short_target"):
      if getattr(self, key) < 0:
        raise UserError(f"algorithm.{key}: found {getattr(self, key)}, allowed: 0 (off) or more")

  @property
  def compares_samples(self) -> str | None:
    if self.scale == "none" and self.center == "none":
      return super().compares_samples
    return f"algorithm.center {self.center!r} with algorithm.scale {self.scale!r}"

  @property
  def ratio_from_start(self) -> bool:
    """A trust region bounds how far this step moves; an importance weight corrects for who sampled."""
    return super().ratio_from_start and self.trace_loss in losses.TRUST_REGIONS


def require_range(config, key: str, low: float, high: float) -> None:
  """Raises UserError where the config's value lies outside of [low, high]."""
  if not low <= getattr(config, key) <= high:
    raise UserError(f"algorithm.{key}: found {getattr(config, key)}, allowed: {low} to {high}")
