"""RLVR: reinforcement learning from verifiable rewards, over whole completions (trace, marker and own answer).

 1. sample G completions per prompt, each until an end token; `sampling.max_trace_length` limits the whole of it;
 2. verify: does the own answer, what stands behind the first marker, agree with the reference answer? By its tokens
    inside the program, by an environment there, or by a Python grader on the host between two programs (see
    step/host_grading.py);
 3. advantage within the group; every token of the completion carries it, the end token too.

The rows of the table share this `collect`: they differ in the defaults of their configs, their papers' values.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from nrt_jax import rows
from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.algorithms import settings
from nrt_jax.algorithms.interface import Algorithm, Attempt, Collected, Tools
from nrt_jax.arrays import repeat_rows
from nrt_jax.errors import UserError, require_choice
from nrt_jax.objectives import advantages
from nrt_jax.tasks import table as tasks

# On the host, between two programs: the task's own grader ("host"), or one of GRADERS. In the program: the others.
HOST_VERIFIERS = ("host", *(name for name in tasks.GRADERS if name != "none"))
VERIFIERS = ("token_match", "token_prefix", "environment", *HOST_VERIFIERS)


@dataclass(frozen=True)
class GrpoConfig(settings.PolicyGradientConfig):
  """GRPO as published: DeepSeekMath, arXiv 2402.03300, eq. 3 and 4, and section 4.2."""

  verifier: str = "token_match"  # in the program, as token_prefix, environment | host: the data's | a row of GRADERS
  wrong_reward: float = 0.0  # of a wrong answer; a right one has 1
  format_reward: float = 0.0  # added where the completion has the marker and ended; DeepSeek-R1 (2501.12948) has one
  scale: str = "std"  # section 4.1.2
  trace_loss: str = "ppo_clip"  # eq. 3
  clip_low: float = 0.8  # the paper names no value; 1 - 0.2 is PPO's (1707.06347, table 3) and TRL's
  clip_high: float = 1.2
  normalisation: str = "sequence"  # eq. 3: the mean over completions of the mean over tokens
  reference: str = "frozen"
  kl_coef: float = 0.04  # section 4.2; today's recipes leave it out: kl_coef=0, reference="none"
  kl_estimator: str = "k3"  # eq. 4

  def __post_init__(self):
    super().__post_init__()
    require_choice("algorithm.verifier", self.verifier, VERIFIERS)
    if self.wrong_reward >= 1:
      raise UserError(f"algorithm.wrong_reward: found {self.wrong_reward}, allowed: below 1, a right answer's reward")

  @property
  def grades_on_host(self) -> bool:
    return self.verifier in HOST_VERIFIERS


@dataclass(frozen=True)
class DrGrpoConfig(GrpoConfig):
  """Dr. GRPO: Understanding R1-Zero-like training, arXiv 2503.20783, section 3.2: no std, no length in the loss."""

  scale: str = "none"
  normalisation: str = "constant"  # its listing divides by the generation budget: normalisation_constant 0 does
  reference: str = "none"
  kl_coef: float = 0.0  # section 3: β = 0


@dataclass(frozen=True)
class DapoConfig(GrpoConfig):
  """DAPO: arXiv 2503.14476, section 3; groups that are all right or all wrong do not count.

  They are drawn again where `max_draws` says so, as in the paper, which names no bound; NFT's code stops after 10.
  """

  wrong_reward: float = -1.0  # eq. 7
  clip_high: float = 1.28  # section 3.1, clip-higher
  filter_flat_groups: bool = True  # section 3.2, dynamic sampling
  normalisation: str = "token"  # section 3.3, token-level loss
  mask_unended: bool = True  # section 3.4, overlong filtering: sets no length; the final recipe has the penalty instead
  long_penalty: float = 1.0  # eq. 13, soft overlong punishment; off while long_buffer is 0
  long_buffer: int = 0  # tokens; the paper's is 4096 of a limit of 20480 (section 4.1), with mask_unended False
  reference: str = "none"
  kl_coef: float = 0.0  # section 2.3


@dataclass(frozen=True)
class RlooConfig(GrpoConfig):
  """REINFORCE leave-one-out: Back to Basics, arXiv 2402.14740, section 2: whole sequences, no ratio, no clip."""

  center: str = "leave_one_out"
  scale: str = "none"
  trace_loss: str = "reinforce"
  normalisation: str = "constant"  # the sum over tokens: the completion is one action
  kl_place: str = "reward"  # where the paper has it; with a verifier there is no reward model to stay close to
  reference: str = "none"
  kl_coef: float = 0.0


@dataclass(frozen=True)
class GspoConfig(GrpoConfig):
  """GSPO: Group sequence policy optimization, arXiv 2507.18071, eq. 5 to 7."""

  trace_loss: str = "sequence_clip"
  clip_low: float = 1 - 3e-4  # section 5.1
  clip_high: float = 1 + 4e-4  # section 5.1
  reference: str = "none"
  kl_coef: float = 0.0  # left out of eq. 5


def collect(tools: Tools, config: GrpoConfig, states, prompts, key) -> Collected:
  G = tools.samples_per_prompt

  def attempt(prompts) -> Attempt:
    rollouts = tools.complete(states.policy.params, prompts, key)[0]
    return judged(tools, config, rollouts, verify(tools, config, repeat_rows(prompts, G), rollouts))

  prompts, (rollouts, label_N), sampling_sums = tools.draw(prompts, attempt)
  prompts_N = repeat_rows(prompts, G)
  batch = pg.completion_batch(tools, config, prompts_N, rollouts)
  formatted_N = rollouts.marker_N & rollouts.ended_N
  reward_N = config.wrong_reward + (1 - config.wrong_reward) * label_N + config.format_reward * formatted_N
  shaped_N = pg.shape(config, reward_N, rollouts, rollouts.token_NR.shape[1])
  shaped_N -= pg.reward_kl(tools, config, states.reference, rollouts, lambda: batch)
  advantage_N, counts_N = pg.group_advantages(tools, config, shaped_N, rollouts)
  counts_N = pg.without_flat(config, advantage_N, counts_N, G)
  if config.filter_flat_groups:
    counts_N &= varies(label_N, counts_N, G)  # the verdict alone, as DAPO: penalties make no signal of hopeless prompts
    advantage_N = jnp.where(counts_N, advantage_N, 0)
  batch = batch.replace(**pg.trace_terms(tools, config, advantage_N, batch.trace_mask_NL & counts_N[:, None]))
  batch = pg.with_scores(tools, config, states, batch)
  sums = {**pg.reward_metrics(reward_N, advantage_N, G), **sampling_sums}
  return Collected(batch, sums, shown(prompts_N, rollouts, reward_N, advantage_N))


def judged(tools: Tools, config, rollouts, label_N) -> Attempt:
  """Completions with their labels as one draw; a group varies if its verdicts do. step/host_grading.py calls it too."""
  counts_N = rollouts.ended_N if config.mask_unended else jnp.ones(label_N.shape, bool)
  varies_N = varies(label_N, counts_N, tools.samples_per_prompt)
  return Attempt((rollouts, label_N), varies_N, completion_metrics(tools, rollouts, label_N))


def verify(tools: Tools, config, prompts_N, rollouts):
  """How right each completion is, in [0, 1]: float32 `[N]`."""
  if config.grades_on_host:
    return tools.host_label_N
  if config.verifier == "environment":
    return rollouts.verdict_N
  match = token_prefix if config.verifier == "token_prefix" else token_match
  return match(tools.marker_ids, prompts_N, rollouts, tools.end_ids).astype(jnp.float32)


def token_match(marker_ids, prompts_N, rollouts, end_ids=()):
  """Whether what stands behind the first marker is the reference answer, with an end token behind it: bool `[N]`.

  Any of `end_ids` is as good as the reference's; a completion that was cut at the limit is not right.
  """
  A = prompts_N.answer_BA.shape[1]
  own_NA, start_N = behind_marker(marker_ids, rollouts, A)
  beyond_NA = jnp.arange(A)[None] >= prompts_N.answer_length_B[:, None]
  ends = lambda token: jnp.isin(token, jnp.asarray(end_ids, jnp.int32))
  same_NA = (own_NA == prompts_N.answer_BA) | (ends(own_NA) & ends(prompts_N.answer_BA))
  as_long_N = rollouts.length_N - start_N == prompts_N.answer_length_B
  return (same_NA | beyond_NA).all(axis=1) & as_long_N & rollouts.ended_N


def token_prefix(marker_ids, prompts_N, rollouts, end_ids=()):
  """Whether what stands behind the first marker, up to the end token, begins the reference answer: bool `[N]`.

  One token is enough; RPT (arXiv 2506.08007) rewards a continuation of any length that is right so far, where its end
  is the end of a token of the text.
  """
  A = prompts_N.answer_BA.shape[1]
  own_NA, start_N = behind_marker(marker_ids, rollouts, A)
  last_N = jnp.take_along_axis(prompts_N.answer_BA, prompts_N.answer_length_B[:, None] - 1, axis=1)[:, 0]
  words_N = prompts_N.answer_length_B - jnp.isin(last_N, jnp.asarray(end_ids, jnp.int32))  # a document's has no end
  own_length_N = rollouts.length_N - 1 - start_N
  beyond_NA = jnp.arange(A)[None] >= own_length_N[:, None]
  same_N = ((own_NA == prompts_N.answer_BA) | beyond_NA).all(axis=1)
  return same_N & (own_length_N >= 1) & (own_length_N <= words_N) & rollouts.ended_N


def behind_marker(marker_ids, rollouts, width: int):
  """The first `width` tokens behind the first marker, of any kind beyond the completion, and where they start."""
  start_N = rows.find_marker(rollouts.token_NR, rollouts.length_N, marker_ids) + len(marker_ids)
  column_NA = start_N[:, None] + jnp.arange(width)[None]
  last = rollouts.token_NR.shape[1] - 1
  return jnp.take_along_axis(rollouts.token_NR, jnp.minimum(column_NA, last), axis=1), start_N


def varies(label_N, counts_N, group_size: int):
  """Whether the labels of a row's group differ among the rows that count, by more than rounding: bool `[N]`."""
  label_BG, counts_BG = label_N.reshape(-1, group_size), counts_N.reshape(-1, group_size)
  high_B = jnp.max(label_BG, axis=1, where=counts_BG, initial=-jnp.inf)
  low_B = jnp.min(label_BG, axis=1, where=counts_BG, initial=jnp.inf)
  return (high_B - low_B > advantages.ROUNDING * jnp.maximum(high_B, 0)).repeat(group_size)


def completion_metrics(tools: Tools, rollouts, label_N) -> dict:
  """Share of right answers, lengths of the whole completion and of its trace, and how completions ended."""
  text_N = rollouts.length_N - rollouts.ended_N
  trace_N = jnp.minimum(rows.find_marker(rollouts.token_NR, rollouts.length_N, tools.marker_ids), text_N)
  return {
    **pg.trace_metrics(rollouts),
    "trace/length_mean": pg.mean_of(trace_N),
    "trace/length_max": jnp.max(trace_N).astype(jnp.float32),
    "completion/length_mean": pg.mean_of(text_N),
    "completion/accuracy": pg.mean_of(label_N),
  }


def shown(prompts_N, rollouts, reward_N, advantage_N) -> dict:
  """What samples.jsonl shows: the whole completion as the trace, beside the reference answer."""
  return {
    "prompt": prompts_N.prompt_BP,
    "prompt_length": prompts_N.prompt_length_B,
    "trace": rollouts.token_NR,
    "trace_length": rollouts.length_N,
    "answer": prompts_N.answer_BA,
    "answer_length": prompts_N.answer_length_B,
    "reward": reward_N,
    "advantage": advantage_N,
  }


def _row(config) -> Algorithm:
  return Algorithm(config=config, collect=collect, loss=pg.loss, samples_traces=True, lives_in_worlds=True)


GRPO, DR_GRPO, DAPO = _row(GrpoConfig), _row(DrGrpoConfig), _row(DapoConfig)
RLOO, GSPO = _row(RlooConfig), _row(GspoConfig)
