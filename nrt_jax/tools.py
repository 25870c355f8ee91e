"""What an algorithm is given inside the compiled step: rollouts, and the log-probabilities of answers and rows.

Each function here fills one field of `algorithms.interface.Tools`; `make_tools` binds them to a run.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nrt_jax import lora, rows, sampler, scoring, sharding
from nrt_jax.algorithms import ALGORITHMS
from nrt_jax.algorithms.interface import Tools
from nrt_jax.arrays import Prompts, repeat_rows
from nrt_jax.config import RunConfig
from nrt_jax.model import ModelConfig, decoding_params
from nrt_jax.prompts import PromptFormat

DEVICES = "devices"  # the axis of pmap


class Setup(NamedTuple):
  """All that is fixed when a program is built."""

  run: RunConfig
  model: ModelConfig
  form: PromptFormat
  mesh: jax.sharding.Mesh | None  # None: one device, or pmap

  @property
  def algorithm(self):
    return ALGORITHMS[self.run.algorithm_name]

  @property
  def decoder(self) -> ModelConfig:
    """The architecture of `rollout_weights`: adapters are merged into their matrices."""
    return lora.without(self.model)

  @property
  def axis_name(self) -> str | None:
    return DEVICES if self.run.parallel.kind == "pmap" else None

  @property
  def grades_on_host(self) -> bool:
    """Whether a step is two programs, with a Python grader between them."""
    return getattr(self.run.algorithm, "grades_on_host", False)

  @property
  def samples_per_prompt(self) -> int:
    return self.run.samples_per_prompt if self.algorithm.samples_traces else 1

  @property
  def rows_per_prompt(self) -> int:
    """Rows of a TrainBatch that belong to one prompt."""
    return 2 if self.algorithm.pairs else self.samples_per_prompt

  @property
  def rows_together(self) -> int:
    """Adjacent rows that the loss reads together, so that no micro-batch may part them."""
    return 2 if self.algorithm.pairs else 1


def rollout(setup: Setup, params, prompts: Prompts, key):
  """Samples traces, and scores each answer after its trace and after an empty trace, on the sampler's own caches.

  Returns: Rollouts [N], AnswerScores after the trace [N], AnswerScores after an empty trace [B].
  """
  return _in_waves(setup, params, prompts, key, whole=False)


def complete(setup: Setup, params, prompts: Prompts, key):
  """Samples whole completions, trace, marker and own answer, and scores the reference answer in the own one's place.

  That is behind the first marker; where there is none, behind all text and a marker put in by force. Returns as
  `rollout` does; Rollouts.marker_N says where the model wrote the whole marker, whose log-probability is as sampled.
  """
  return _in_waves(setup, params, prompts, key, whole=True)


def _in_waves(setup: Setup, params, prompts: Prompts, key, whole: bool):
  """Runs in waves of `sampling.wave_prompts` prompts, so that the caches of a large step are bounded by one wave."""
  run, G = setup.run, setup.samples_per_prompt
  wave = functools.partial(_wave, setup, rollout_weights(setup, params), key, whole)
  B = prompts.prompt_BP.shape[0] * (jax.device_count() if setup.axis_name else 1)  # under pmap we see a device's share
  waves = B // run.sampling.wave_prompts if run.sampling.wave_prompts else 1
  if waves == 1:
    return wave(prompts)
  rollouts, scores, empty = jax.lax.map(wave, rows.cut_rows(prompts, waves))
  return *rows.join_groups((rollouts, scores), G), rows.join_rows(empty)


def _wave(setup: Setup, weights, key, whole: bool, prompts: Prompts):
  rollouts, context = sample_wave(setup, weights, key, whole, prompts)
  rollouts, scores = score_wave(setup, weights, whole, prompts, rollouts, context)
  empty = score_empty(setup, weights, prompts, context.prompt_hidden_BD, context.prompt_cache)
  return rollouts, scores, empty


def sample_wave(setup: Setup, weights, key, whole: bool, prompts: Prompts):
  """Rollouts of all samples of these prompts, and the Context to score on."""
  stop_ids = completion_stops(setup.form) if whole else setup.form.stop_ids
  how = (setup.run.sampling, stop_ids, setup.form.pad_id)
  return sampler.sample(weights, setup.decoder, *how, prompts, key, samples=setup.samples_per_prompt)


def score_wave(setup: Setup, weights, whole: bool, prompts: Prompts, rollouts, context):
  """The rollouts, of which `whole` ones now say whether they hold the marker, and the AnswerScores after them."""
  form, G = setup.form, setup.samples_per_prompt
  answer_NA, answer_length_N, prompt_length_N = repeat_rows(
    (prompts.answer_BA, prompts.answer_length_B, prompts.prompt_length_B), G
  )
  trace_length_N, trace_cache = rollouts.length_N - rollouts.ended_N, context.trace_cache
  if whole:
    marker_N = rows.find_marker(rollouts.token_NR, rollouts.length_N, form.marker_ids)
    rollouts = rollouts.replace(marker_N=marker_N < rollouts.length_N)
    trace_length_N = jnp.minimum(marker_N, trace_length_N)
    # Attention goes by position alone: slots from the marker on are out of sight of the reference answer.
    behind = jnp.arange(trace_cache.position_MS.shape[1])[None] >= trace_length_N[:, None]
    trace_cache = trace_cache.replace(position_MS=jnp.where(behind, -1, trace_cache.position_MS))
  caches, start_N = (context.prompt_cache, trace_cache), prompt_length_N + trace_length_N
  answers = (form.marker_ids, answer_NA, answer_length_N, start_N)
  with jax.named_scope("score_answer"):
    scores = scoring.score_answers(weights, setup.decoder, *answers, context.hidden_ND, caches)
  return rollouts, _sampled_marker(rollouts, marker_N, scores) if whole else scores


def _sampled_marker(rollouts, marker_N, scores):
  """The scores with the log-probability of a sampled marker's first token: the state before it is not kept."""
  at_N1 = jnp.minimum(marker_N, rollouts.logp_NR.shape[1] - 1)[:, None]
  sampled_N1 = jnp.take_along_axis(rollouts.logp_NR, at_N1, 1)
  first_N1 = jnp.where(rollouts.marker_N[:, None], sampled_N1, scores.marker_logp_NM[:, :1])
  return scores.replace(marker_logp_NM=jnp.concatenate([first_N1, scores.marker_logp_NM[:, 1:]], 1))


def completion_stops(form: PromptFormat) -> tuple:
  """The tokens that end a whole completion: all that end a trace but the marker."""
  return tuple(i for i in form.stop_ids if i != form.marker_ids[0])


def rollout_weights(setup: Setup, params):
  """The policy as the decoding loop reads it. Gathered over `fsdp` once per step, or every token would gather it."""
  rules = sharding.DECODE_RULES if setup.run.parallel.rollout_weights == "gathered" else sharding.RULES
  with jax.named_scope("rollout_weights"):
    return decoding_params(lora.merge(params, setup.model), setup.decoder, rules)


def score_empty(setup: Setup, weights, prompts: Prompts, hidden_BD, cache):
  """AnswerScores [B] right after the prompts, whose last hidden state and cache are given."""
  answers = (prompts.answer_BA, prompts.answer_length_B, prompts.prompt_length_B)
  with jax.named_scope("score_empty_trace"):
    return scoring.score_answers(weights, setup.decoder, setup.form.marker_ids, *answers, hidden_BD, (cache,))


def score_empty_trace(setup: Setup, params, prompts: Prompts):
  """log c_base of other parameters than the policy's, say a frozen base: AnswerScores [B]."""
  weights = rollout_weights(setup, params)
  return score_empty(setup, weights, prompts, *sampler.prefill(weights, setup.decoder, prompts))


def log_probs(setup: Setup, params, batch, entropy_gradient: bool = False):
  """Log-probability and entropy of each token of a TrainBatch: sampled tokens at the sampling temperature."""
  temperature = setup.run.sampling.temperature
  scale_NL = None if temperature == 1 else jnp.where(batch.sampled_mask_NL, 1 / temperature, 1.0)
  rows_ = (batch.token_NL, batch.position_NL, batch.first, scale_NL, entropy_gradient, batch.example_NL)
  return scoring.row_log_probs(params, setup.model, *rows_)


def score_batch(setup: Setup, params, batch):
  """Log-probability of each token under other parameters, as many rows at a time as a micro-batch has: `[N, L]`."""
  pieces = setup.run.optimizer.minibatches * setup.run.parallel.micro_batches
  with jax.named_scope("score_batch"):
    if pieces == 1:
      return log_probs(setup, params, batch)[0]
    return rows.join_rows(jax.lax.map(lambda piece: log_probs(setup, params, piece)[0], rows.cut_rows(batch, pieces)))


def make_tools(setup: Setup) -> Tools:
  """What the algorithm may call inside the program."""
  axis = setup.axis_name
  return Tools(
    samples_per_prompt=setup.samples_per_prompt,
    minibatches=setup.run.optimizer.minibatches,
    marker_ids=setup.form.marker_ids,
    pad_id=setup.form.pad_id,
    rollout=functools.partial(rollout, setup),
    complete=functools.partial(complete, setup),
    score_empty_trace=functools.partial(score_empty_trace, setup),
    log_probs=functools.partial(log_probs, setup),
    score_batch=functools.partial(score_batch, setup),
    all_sum=(lambda x: jax.lax.psum(x, axis)) if axis else lambda x: x,
  )
