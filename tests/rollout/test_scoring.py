import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from nrt_jax import rows
from nrt_jax.arrays import repeat_rows
from nrt_jax.model import decoder
from nrt_jax.rollout import scoring
from nrt_jax.step import programs

B, G, R = 5, 4, 6
MARKER_IDS = (toy.MARKER, toy.SECOND_MARKER)


@functools.partial(jax.jit, static_argnums=(0, 1))
def both_ways(model, temperature, params, prompts, key):
  """Scores on the rollout's caches, and the log-probabilities of the spliced rows from one pass without cache."""
  form = toy.form(MARKER_IDS, (MARKER_IDS[0], toy.EOS))
  over = {"sampling__max_trace_length": R, "sampling__temperature": temperature, "samples_per_prompt": G}
  tools = programs.make_tools(toy.setup(model=model, prompt_format=form, **over))
  rollouts, on_cache, empty = tools.rollout(params, prompts, key)
  prompts_N = repeat_rows(prompts, G)
  answers = (prompts_N.answer_BA, prompts_N.answer_length_B)
  length_N = rollouts.length_N - rollouts.ended_N

  def whole(trace_length_N):
    spliced = rows.splice(
      prompts_N.prompt_BP, prompts_N.prompt_length_B, rollouts.token_NR, trace_length_N, MARKER_IDS, *answers, toy.PAD
    )
    scale_NL = jnp.where(spliced.trace_mask_NL, 1 / temperature, 1.0)
    logp_NL, _ = scoring.row_log_probs(params, model, spliced.token_NL, spliced.position_NL, spliced.first, scale_NL)
    return spliced, logp_NL

  return rollouts, on_cache, empty, whole(length_N), whole(jnp.zeros_like(length_N))


@pytest.fixture(scope="module", params=[1.0, 0.7])
def scored(request):
  return both_ways(toy.MODEL, request.param, toy.params(), toy.prompts(B), jax.random.key(0))


def suffix_columns(spliced, logp_NL):
  return np.where(spliced.marker_mask_NL | spliced.answer_mask_NL, logp_NL, 0)[:, -(len(MARKER_IDS) + 4) :]


def test_sampler_and_scorer_agree(scored):
  """To 1e-4 in float32: the behaviour log-probabilities are the policy's, at the sampling temperature."""
  rollouts, _, _, (spliced, logp_NL), _ = scored
  aligned = rows.align_trace(rollouts.logp_NR, rollouts.length_N - rollouts.ended_N, spliced, len(MARKER_IDS), 4)
  assert spliced.trace_mask_NL.any(-1).mean() > 0.5
  np.testing.assert_allclose(aligned, np.where(spliced.trace_mask_NL, logp_NL, 0), atol=1e-4)
  assert np.abs(aligned).max() > 1


def test_answer_on_the_rollouts_cache(scored):
  rollouts, on_cache, _, (spliced, logp_NL), _ = scored
  got = np.concatenate([on_cache.marker_logp_NM, on_cache.answer_logp_NA], 1)
  np.testing.assert_allclose(got, suffix_columns(spliced, logp_NL), atol=1e-4)
  assert rollouts.marker_N.any() and not rollouts.ended_N.all()  # emitted and forced markers
  beyond = np.arange(4)[None] >= toy.prompts(B).answer_length_B.repeat(G)[:, None]
  assert beyond.any() and not np.asarray(on_cache.answer_logp_NA)[beyond].any()


def test_answer_after_an_empty_trace(scored):
  _, on_cache, empty, _, (spliced, logp_NL) = scored
  got = np.concatenate([empty.marker_logp_NM, empty.answer_logp_NA], 1)
  expected = suffix_columns(spliced, logp_NL)
  np.testing.assert_allclose(got.repeat(G, 0), expected, atol=1e-4)
  assert np.abs(expected - np.concatenate([on_cache.marker_logp_NM, on_cache.answer_logp_NA], 1)).max() > 0.1


def test_emitted_marker_is_scored_as_sampled():
  rollouts, on_cache, *_ = both_ways(toy.MODEL, 1.0, toy.params(), toy.prompts(B), jax.random.key(0))
  emitted = np.flatnonzero(rollouts.marker_N)
  sampled = np.asarray(rollouts.logp_NR)[emitted, np.asarray(rollouts.length_N)[emitted] - 1]
  np.testing.assert_allclose(np.asarray(on_cache.marker_logp_NM)[emitted, 0], sampled, atol=1e-4)


def test_the_updates_temperature_is_that_of_what_was_sampled():
  """Trace, emitted marker and other stop tokens at the sampling temperature; answers and forced markers at 1.

  Token by token against whole distributions of a row, for traces of every end: the scale is nowhere and everywhere in
  mutants of `log_probs`.
  """
  temperature, setup = 0.5, toy.setup(sampling__temperature=0.5)
  tools, params = programs.make_tools(setup), toy.params()
  states = programs.init_states(setup, params, jax.random.key(3))
  batch = jax.jit(lambda: programs.collect(setup, tools, states, toy.prompts(16)).batch)()
  logp_NL, _, row_logp_NL = jax.jit(tools.log_probs)(params, batch)
  hidden_NLD = decoder.forward(params, toy.MODEL, batch.token_NL, batch.position_NL)[0]
  logits_NLV = np.asarray(decoder.logits(params, toy.MODEL, hidden_NLD), np.float64)
  stop = batch.first + setup.run.sampling.max_trace_length
  kinds = set()
  for n in range(len(batch.token_NL)):
    for t in range(batch.first, batch.token_NL.shape[1]):
      if batch.position_NL[n, t] < 0 or not (batch.trace_mask_NL | batch.answer_mask_NL | batch.format_mask_NL)[n, t]:
        continue
      token, target = int(batch.token_NL[n, t]), int(batch.target_NL[n, t])
      drawn = bool(batch.trace_mask_NL[n, t])
      kinds.add((t == stop, drawn, token == target))
      for value, of, heat in ((logp_NL, target, temperature if drawn else 1.0), (row_logp_NL, token, 1.0)):
        if value is row_logp_NL and token == target:
          continue
        scaled = logits_NLV[n, t - 1] / heat
        np.testing.assert_allclose(value[n, t], scaled[of] - np.log(np.exp(scaled).sum()), atol=1e-4)
  # Trace and answer; at the place of the marker an emitted one, another stop token, and one put in by force.
  assert kinds == {(False, True, True), (False, False, True), (True, True, True), (True, True, False),
                   (True, False, True)}  # fmt: skip


def test_scanned_layers_score_alike():
  model = dataclasses.replace(toy.MODEL, layer_loop="scan")
  scanned = both_ways(model, 1.0, toy.params(model), toy.prompts(B), jax.random.key(0))
  unrolled = both_ways(toy.MODEL, 1.0, toy.params(), toy.prompts(B), jax.random.key(0))
  assert toy.largest_difference(scanned[1:3], unrolled[1:3]) < 1e-4


# ---------------------------------------------------------------------------------------------------- the head


@functools.partial(jax.jit, static_argnums=0)
def head_terms(model, params, hidden_NTD, target_NT, scale_NT, pull_NT):
  def terms(params, hidden_NTD):
    logp, entropy = scoring.token_log_probs(params, model, hidden_NTD, target_NT, scale_NT)
    return jnp.sum(pull_NT * logp), (logp, entropy)

  return jax.grad(terms, (0, 1), has_aux=True)(params, hidden_NTD)


def head_inputs(N=6, T=7):
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(N, T, toy.MODEL.hidden_size)).astype(np.float32)
  return hidden, rng.integers(0, toy.VOCAB, (N, T)), rng.uniform(0.5, 2, (N, T)), rng.normal(size=(N, T))


@pytest.mark.parametrize("chunk", [1, 12, 18, 30, 42])  # 1, 2, 3, 5 or all 7 of the columns at a time
@pytest.mark.parametrize("tied", [False, True])
def test_chunked_head(chunk, tied):
  """Values, entropy and gradients by parameters and hidden states, also where the chunks do not divide the columns."""
  model = dataclasses.replace(toy.MODEL, tie_word_embeddings=tied)
  params, inputs = toy.params(model), head_inputs()
  expected = head_terms(dataclasses.replace(model, head_chunk=10**6), params, *inputs)
  got = head_terms(dataclasses.replace(model, head_chunk=chunk), params, *inputs)
  assert toy.largest_difference(got, expected) < 1e-5 * toy.largest(expected)


def test_head_twin():
  hidden_NTD, target_NT, scale_NT, pull_NT = head_inputs()
  _, (logp, entropy) = head_terms(toy.MODEL, toy.params(), hidden_NTD, target_NT, scale_NT, pull_NT)
  scaled = hidden_NTD.astype(np.float64) @ np.asarray(toy.params()["head"]["kernel"], np.float64) * scale_NT[..., None]
  log_p = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
  np.testing.assert_allclose(logp, np.take_along_axis(log_p, target_NT[..., None], -1)[..., 0], atol=1e-5)
  np.testing.assert_allclose(entropy, -(np.exp(log_p) * log_p).sum(-1), atol=1e-5)


def largest_with_vocabulary(hlo_text, vocab):
  """Most elements of any array of the program that has a vocabulary axis."""
  shapes = re.findall(r"(?:f32|bf16|f64|pred|s32)\[([\d,]+)\]", hlo_text)
  dims = [[int(d) for d in shape.split(",")] for shape in shapes]
  return max(int(np.prod(d)) for d in dims if vocab in d)


def test_no_array_of_rows_by_columns_by_vocabulary():
  """In the optimised program of a whole training step, forward and backward: logits exist a chunk at a time."""
  vocab = 40  # no other axis of the program has this size
  largest = {}
  for chunk in (32, 10**6):
    model = dataclasses.replace(toy.MODEL, vocab_size=vocab, head_chunk=chunk)
    setup = toy.setup(model=model)
    states = programs.init_states(setup, toy.params(model), jax.random.key(0))
    text = programs.build_train_step(setup).lower(states, toy.prompts(8)).compile().as_text()
    largest[chunk] = largest_with_vocabulary(text, vocab)
  rows_, columns = 8 * 4, 6 + 1 + 4  # of the head: trace, marker and answer
  assert largest[10**6] >= rows_ * columns * vocab  # the measure sees the array where it exists
  assert largest[32] <= rows_ * vocab * 2  # one chunk: a column of each row, or a weight of the head


@pytest.mark.parametrize("chunk", [2, 2048])
def test_best_log_probs(chunk):
  """Against plain NumPy, in chunks of columns and at once."""
  rng = np.random.default_rng(0)
  hidden, target = rng.normal(size=(2, 5, 16)).astype(np.float32), rng.integers(0, toy.VOCAB, (2, 5))
  model = dataclasses.replace(toy.MODEL, head_chunk=chunk)
  logp, best = scoring.best_log_probs(toy.params(), model, hidden, target)
  expected = hidden.astype(np.float64) @ np.asarray(toy.params()["head"]["kernel"], np.float64)
  for n in range(2):
    for t in range(5):
      row = expected[n, t]
      assert float(logp[n, t]) == pytest.approx(row[target[n, t]] - np.log(np.exp(row).sum()), abs=1e-5)
      assert int(best[n, t]) == int(np.argmax(row))
