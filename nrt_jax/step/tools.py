"""What an algorithm is given inside the compiled step: rollouts, and the log-probabilities of answers and rows.

Each function here fills one field of `algorithms.interface.Tools`; `make_tools` binds them to a run.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from nrt_jax import rows, sharding
from nrt_jax.algorithms.interface import Role, Tools
from nrt_jax.arrays import Prompts, repeat_rows
from nrt_jax.data.prompts import completion_stops
from nrt_jax.model import lora
from nrt_jax.model.decoder import decoding_params
from nrt_jax.rollout import continuous, draws, sampler, scoring
from nrt_jax.step.setup import Setup


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
  one_wave = functools.partial(wave, setup, rollout_weights(setup, params), key, whole)
  if setup.waves == 1:
    return one_wave(prompts)
  rollouts, scores, empty = jax.lax.map(one_wave, rows.cut_rows(prompts, setup.waves))
  return *rows.join_groups((rollouts, scores), setup.samples_per_prompt), rows.join_rows(empty)


def wave(setup: Setup, weights, key, whole: bool, prompts: Prompts):
  """Rollouts, AnswerScores after them, and after an empty trace, of prompts that are sampled at the same time."""
  if setup.run.sampling.slots:
    ways = jax.device_count() if setup.axis_name else sharding.batch_ways()
    in_slots = functools.partial(_in_slots, setup, whole, setup.run.sampling.slots // ways)
    return sharding.on_own_rows(in_slots, (weights, key), prompts)
  rollouts, context = sample_wave(setup, weights, key, whole, prompts)
  rollouts, scores = score_wave(setup, weights, whole, prompts, rollouts, context)
  empty = score_empty(setup, weights, prompts, context.prompt_hidden_BD, context.prompt_cache)
  return rollouts, scores, empty


def _in_slots(setup: Setup, whole: bool, slots: int, weights_key, prompts: Prompts):
  """`wave` by rollout/continuous.py: each answer is scored when its row has ended. Sees one device's prompts."""
  weights, key = weights_key
  stop_ids = completion_stops(setup.form) if whole else setup.form.stop_ids
  how = (setup.run.sampling, max(1, slots), stop_ids, setup.form.pad_id)
  score = functools.partial(score_wave, setup, weights, whole)
  samples, environment = setup.samples_per_prompt, setup.environment
  found = continuous.sample(weights, setup.decoder, *how, prompts, key, samples, score, environment)
  rollouts, scores, prompt_hidden_BD, prompt_cache = found
  return rollouts, scores, score_empty(setup, weights, prompts, prompt_hidden_BD, prompt_cache)


def sample_role(setup: Setup, params, prompts: Prompts, key, role: Role):
  """Completions of a second role, `[M * samples]`, in as many waves as the policy's. Answers are not scored."""
  run, weights = setup.run, rollout_weights(setup, params)
  B = run.prompts_per_step // (jax.device_count() if setup.axis_name else 1)
  sampling = dataclasses.replace(
    role.sampling, cache_dtype=run.sampling.cache_dtype, cache_stages=run.sampling.cache_stages
  )
  how = (setup.decoder, sampling, completion_stops(setup.form), setup.form.pad_id)

  def one_wave(prompts):
    return sampler.sample(weights, *how, prompts, key, role.samples)[0]

  with jax.named_scope("critic"):
    if setup.waves == 1:
      return one_wave(prompts)
    of_prompt = len(prompts.prompt_length_B) // B
    made = jax.lax.map(one_wave, rows.cut_groups(prompts, setup.waves, of_prompt))
    return rows.join_groups(made, of_prompt * role.samples)


def sample_wave(setup: Setup, weights, key, whole: bool, prompts: Prompts):
  """Rollouts of all samples of these prompts, and the Context to score on."""
  stop_ids = completion_stops(setup.form) if whole else setup.form.stop_ids
  how = (setup.run.sampling, stop_ids, setup.form.pad_id)
  return sampler.sample(weights, setup.decoder, *how, prompts, key, setup.samples_per_prompt, setup.environment)


def score_wave(setup: Setup, weights, whole: bool, prompts: Prompts, rollouts, context):
  """The rollouts, of which `whole` ones now say whether they hold the marker, and the AnswerScores after them."""
  form, G = setup.form, len(rollouts.length_N) // len(prompts.prompt_length_B)
  answer_NA, answer_length_N, prompt_length_N = repeat_rows(
    (prompts.answer_BA, prompts.answer_length_B, prompts.prompt_length_B), G
  )
  trace_length_N, trace_cache = rollouts.length_N - rollouts.ended_N, context.trace_cache
  if whole:
    marker_N = rows.find_marker(rollouts.token_NR, rollouts.length_N, form.marker_ids)
    rollouts = rollouts.replace(marker_N=marker_N < rollouts.length_N)
    trace_length_N = jnp.minimum(marker_N, trace_length_N)
    # Attention goes by position alone: slots from the marker on are out of sight of the reference answer.
    behind = trace_cache.position_MS >= (prompt_length_N + trace_length_N)[:, None]
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
  """log c_base of other parameters than the policy's, say a frozen base, in waves: AnswerScores [B]."""
  weights = rollout_weights(setup, params)

  def one_wave(prompts):
    return score_empty(setup, weights, prompts, *sampler.prefill(weights, setup.decoder, prompts))

  if setup.waves == 1:
    return one_wave(prompts)
  return rows.join_rows(jax.lax.map(one_wave, rows.cut_rows(prompts, setup.waves)))


def score_bare(setup: Setup, params, prompts: Prompts):
  """As `score_empty_trace`, of answers that nothing stands before but the prompt as it is without prompt.trace_open."""
  count = len(setup.form.open_ids)
  shorter_BP = jnp.roll(prompts.prompt_BP, count, axis=1).at[:, :count].set(setup.form.pad_id)
  bare = prompts.replace(prompt_BP=shorter_BP, prompt_length_B=prompts.prompt_length_B - count)
  setup = setup._replace(form=dataclasses.replace(setup.form, marker_ids=()))
  return score_empty_trace(setup, params, bare)


def shares_prompts(setup: Setup, batch) -> bool:
  """Whether the rows of each group are run behind one copy of their prompt."""
  return setup.shared_rows > 1 and batch.prompt_NP is not None


def packs(setup: Setup, batch) -> bool:
  """Whether what follows a shared prompt is packed into one row for all its samples."""
  return setup.run.parallel.share_prompts == "packed" and shares_prompts(setup, batch)


def log_probs(setup: Setup, params, batch, entropy_gradient: bool = False):
  """Log-probability and entropy of each token of a TrainBatch: sampled tokens at the sampling temperature.

  The third result is the log-probability of what stands in the row, at temperature 1, where batch.target_NL says that
  something else was sampled there; elsewhere it is the first.
  """
  temperature = setup.run.sampling.temperature
  scale_NL = None if temperature == 1 else jnp.where(batch.sampled_mask_NL, 1 / temperature, 1.0)
  if batch.temperature_N is not None:
    scale_NL = jnp.where(batch.sampled_mask_NL, 1 / batch.temperature_N[:, None], 1.0)
  if shares_prompts(setup, batch):
    found = scoring.shared_log_probs(params, setup.model, batch, setup.shared_rows, scale_NL, entropy_gradient)
  else:
    rows_ = (batch.token_NL, batch.position_NL, batch.first, scale_NL, entropy_gradient)
    found = scoring.row_log_probs(params, setup.model, *rows_, batch.example_NL, batch.target_NL)
  if batch.target_NL is None:
    return *found, found[0]
  logp_NL, entropy_NL, forced_NL = found
  return logp_NL, entropy_NL, jnp.where(batch.target_NL == batch.token_NL, logp_NL, forced_NL)


def own_tokens(setup: Setup, batch):
  """Which slots of the rows are run for the row itself, not for the prompt that it shares: bool `[N, L]`."""
  start_N = batch.prompt_length_N if shares_prompts(setup, batch) else jnp.zeros(len(batch.position_NL), jnp.int32)
  return batch.position_NL >= start_N[:, None]


def needed_columns(setup: Setup, batch):
  """How many of its last columns each row needs, and the whole width of a prompt that is shared: int32 `[N]`.

  Where rows are packed: the columns of the one row that holds the own tokens of all that share the prompt.
  """
  own_NL, L = own_tokens(setup, batch), batch.token_NL.shape[1]
  if packs(setup, batch):
    return jnp.sum(own_NL, axis=1).reshape(-1, setup.shared_rows).sum(axis=1).repeat(setup.shared_rows)
  P = batch.prompt_NP.shape[1] if shares_prompts(setup, batch) else 0
  return jnp.where(own_NL.any(axis=1), P + L - jnp.argmax(own_NL, axis=1), 0)


def slots_run(setup: Setup, batch):
  """How many slots `log_probs` runs for these rows, and how many of them hold a token: int32 []."""
  N, L = batch.token_NL.shape
  slots, valid = N * L, jnp.sum(own_tokens(setup, batch))
  if shares_prompts(setup, batch):
    P, prompts = batch.prompt_NP.shape[1], N // setup.shared_rows
    own = prompts * batch.packed or N * (L - P)
    slots, valid = own + prompts * P, valid + jnp.sum(batch.prompt_length_N[:: setup.shared_rows])
  return slots, valid


def score_batch(setup: Setup, params, batch):
  """Log-probability of each token under other parameters, as many rows at a time as a micro-batch has: `[N, L]`."""
  with jax.named_scope("score_batch"):
    return _score_pieces(setup, params, batch, setup.run.optimizer.minibatches * setup.micro_batches)


def _score_pieces(setup: Setup, params, batch, pieces: int):
  if pieces == 1:
    return log_probs(setup, params, batch)[0]
  cut = rows.cut_groups(batch, pieces, setup.rows_together)
  return rows.join_groups(jax.lax.map(lambda piece: log_probs(setup, params, piece)[0], cut), setup.rows_together)


def score_start(setup: Setup, params, batch):
  """The batch with start_logp_NL and at_start_N: what several updates compare with, see arrays.TrainBatch.

  The rows of the first minibatch are not scored: its own update computes the same.
  """
  count, together = setup.run.optimizer.minibatches, setup.rows_per_prompt
  if count == 1:
    return batch
  later = jax.tree.map(lambda a: a[1:], rows.cut_groups(batch, count, together))
  with jax.named_scope("score_start"):
    later_NL = _score_pieces(setup, params, rows.join_groups(later, together), (count - 1) * setup.micro_batches)
  later = rows.cut_groups(later_NL, count - 1, together)
  start_NL = rows.join_groups(jnp.concatenate([jnp.zeros_like(later[:1]), later]), together)
  return batch.replace(start_logp_NL=start_NL, at_start_N=jnp.arange(len(start_NL)) // together % count == 0)


def make_tools(setup: Setup) -> Tools:
  """What the algorithm may call inside the program."""
  axis = setup.axis_name
  return Tools(
    samples_per_prompt=setup.samples_per_prompt,
    minibatches=setup.run.optimizer.minibatches,
    trace_limit=setup.run.sampling.max_trace_length,
    temperature=setup.run.sampling.temperature,
    marker_ids=setup.form.marker_ids,
    end_ids=completion_stops(setup.form),
    pad_id=setup.form.pad_id,
    rollout=functools.partial(rollout, setup),
    complete=functools.partial(complete, setup),
    score_empty_trace=functools.partial(score_empty_trace, setup),
    score_bare=functools.partial(score_bare, setup),
    log_probs=functools.partial(log_probs, setup),
    score_batch=functools.partial(score_batch, setup),
    score_start=functools.partial(score_start, setup),
    draw=functools.partial(draws.draw, setup.max_draws, setup.samples_per_prompt, axis),
    all_sum=(lambda x: jax.lax.psum(x, axis)) if axis else lambda x: x,
    sample=functools.partial(sample_role, setup),
    critic=setup.critic,
    all_rows=functools.partial(draws.all_rows, axis=axis),
    for_role=lambda role: make_tools(setup._replace(role=role)),
  )
