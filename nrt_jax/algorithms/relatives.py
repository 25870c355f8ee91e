"""Methods that are NRT's `collect` with other settings: JEPO, VeriFree, LaTRO, RL-Logit and DRO.

Each default has its source: a section of the papers as our notes have it, or "unknown". What the papers tie to their
own prompts (answer phrases, tags, text of the answer) is the marker here. Changing one key compares one decision, and
`algorithm.name` compares whole methods.
"""

from dataclasses import dataclass

from nrt_jax.algorithms import verifier_free
from nrt_jax.algorithms.verifier_free import VerifierFreeConfig


@dataclass(frozen=True)
class JepoConfig(VerifierFreeConfig):
  """JEPO with one sample, which NRT calls JLB: arXiv 2503.19618, E[log π(y*|x,z)], a lower bound of log π(y*|x)."""

  reward: str = "log_prob"  # of the sequence, never divided by its length
  baseline: str = "none"
  center: str = "leave_one_out"  # v_i
  scale: str = "advantage_std"  # A / std(A), over the prompt's samples; over which in the paper: unknown
  advantage_clip: float = 1.0  # clip(A / std(A), -1, 1)
  trace_loss: str = "reinforce"  # trust region: unknown
  unmarked: str = "mask"  # the bound's loss leaves out badly formatted samples
  format_penalty: float = 10.0  # smaller ones were less stable
  answer_weight: str = "one"
  answer_coef: float = 1.0  # β_sup: 0 to 1e-2 is good for short answers, 1 is needed for long ones
  format_coef: float = 0.0
  reference: str = "frozen"
  kl_coef: float = 1e-3
  kl_estimator: str = "k3"  # unknown


@dataclass(frozen=True)
class JepoMultiConfig(JepoConfig):
  """JEPO with n = samples_per_prompt samples: arXiv 2503.19618, E[log mean_k π(y*|x,z_k)], a tighter bound."""

  center: str = "multi_sample"  # log mean_j p_j - log mean_{j≠k} p_j
  answer_weight: str = "group_softmax"  # ∇log mean_k p_k


@dataclass(frozen=True)
class VeriFreeConfig(VerifierFreeConfig):
  """VeriFree: arXiv 2505.21493, E[π(y*|x,z)], exact match without its noise; the baseline is on the trace term only."""

  reward: str = "prob"
  baseline: str = "none"
  center: str = "leave_one_out"
  scale: str = "none"
  trace_loss: str = "ppo_clip"
  clip_low: float = 0.8  # unknown, PPO's; the paper's runs make one update per rollout, where nothing is clipped
  clip_high: float = 1.2  # unknown
  clip_answer: bool = True  # both terms
  unmarked: str = "zero"  # no `<answer` or cut off: R = 0
  answer_weight: str = "derived"  # R
  format_coef: float = 0.0
  normalisation: str = "constant"  # code: the mean over rows of sums over tokens, as Dr. GRPO


@dataclass(frozen=True)
class LatroConfig(VerifierFreeConfig):
  """LaTRO: arXiv 2411.04282, E[log π(y*|x,z)] - β KL(π(z|x) ‖ π_0(z|x)), by leave-one-out REINFORCE."""

  reward: str = "log_prob"
  baseline: str = "none"
  center: str = "leave_one_out"
  scale: str = "none"
  trace_loss: str = "reinforce"
  unmarked: str = "penalty"  # code: twice the batch's mean reward, which is negative
  answer_weight: str = "one"
  answer_coef: float = 0.0  # the code's default; the theory's is 1
  format_coef: float = 0.0
  reference: str = "frozen"
  kl_coef: float = 0.05  # code
  kl_place: str = "reward"


@dataclass(frozen=True)
class RlLogitConfig(VerifierFreeConfig):
  """RL-Logit: likelihood-based reward designs, arXiv 2602.03979."""

  reward: str = "log_prob"  # or mean_log_prob (minus log perplexity), prob, arithmetic_mean: its four designs
  baseline: str = "none"
  center: str = "leave_one_out"
  scale: str = "none"
  trace_loss: str = "reinforce"  # unknown
  answer_weight: str = "derived"
  format_coef: float = 0.0
  kl_coef: float = 0.0  # on long answers; with verifiable ones 0.001, which needs reference frozen
  short_penalty: float = 0.0  # its length reward has 1, with short_target 100, 150, 300 or 500: no gain in the paper


@dataclass(frozen=True)
class DroConfig(VerifierFreeConfig):
  """DRO: arXiv 2506.13351 (v1), reasoning reflection reward R3 = Σ_j w(σ_j) [log c_j - log c_j after a masked trace].

  The masked trace is the empty one here. Not here: propagation factors, the term on the own answer's length, and the
  filters on the data.
  """

  reward: str = "log_prob"
  token_weight: str = "spread"  # w increases in σ; its form: unknown
  baseline: str = "subtract"
  trace_loss: str = "ppo_clip"
  clip_low: float = 0.8  # unknown; GRPO's
  clip_high: float = 1.2  # ε_high 0.2
  answer_weight: str = "none"
  format_coef: float = 0.0
  reference: str = "frozen"
  kl_coef: float = 1e-3
  normalisation: str = "sequence"  # GRPO's; unknown


JEPO, JEPO_MULTI = verifier_free.row(JepoConfig), verifier_free.row(JepoMultiConfig)
VERIFREE, LATRO = verifier_free.row(VeriFreeConfig), verifier_free.row(LatroConfig)
RL_LOGIT, DRO = verifier_free.row(RlLogitConfig), verifier_free.row(DroConfig)
