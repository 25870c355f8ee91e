"""The methods rewarded by the likelihood of the reference answer: each against its paper's equations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import toy

from nrt_jax import programs, rows, scoring
from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.arrays import repeat_rows

MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
MARKER_IDS = (toy.MARKER, toy.SECOND_MARKER)
B, G = 6, 4
PROMPTS = toy.prompts(B, answer_width=3)


# ------------------------------------------------------------------------------------------- whole completions


def test_find_marker_wants_all_of_it_within_the_length():
  m, s = MARKER_IDS
  token_NR = jnp.array([[1, m, s, 2], [m, s, m, s], [m, 1, m, s], [1, 2, m, s], [1, 2, 3, m], [m, s, 0, 0]])
  length_N = jnp.array([4, 4, 4, 3, 4, 2])
  np.testing.assert_array_equal(rows.find_marker(token_NR, length_N, MARKER_IDS), [1, 0, 2, 4, 4, 0])
  np.testing.assert_array_equal(rows.find_marker(token_NR, length_N, (m,)), [1, 0, 0, 2, 3, 0])


@functools.cache
def completions():
  # 8, 18 are two words that the toy model happens to write one after the other: a marker that some completions have.
  form = toy.form((8, 18), (8, toy.EOS))
  setup = toy.setup(model=MODEL, prompt_format=form, samples_per_prompt=G, sampling__max_trace_length=9)
  tools, params = programs.make_tools(setup), toy.params(MODEL)
  return tools, params, jax.jit(tools.complete)(params, PROMPTS, jax.random.key(3))


def test_the_reference_answer_is_scored_in_place_of_the_models_own():
  tools, params, (rollouts, scores, _) = completions()
  at_N = np.asarray(rows.find_marker(rollouts.token_NR, rollouts.length_N, tools.marker_ids))
  np.testing.assert_array_equal(rollouts.marker_N, at_N < rollouts.length_N)
  assert rollouts.marker_N.any() and not rollouts.marker_N.all() and rollouts.ended_N.any() and not rollouts.ended_N.all()
  assert (at_N + 2 < rollouts.length_N).any()  # own answers behind the marker, which must be out of sight
  prompts_N = repeat_rows(PROMPTS, G)
  trace_length_N = jnp.minimum(at_N, rollouts.length_N - rollouts.ended_N)
  spliced = rows.splice(
    prompts_N.prompt_BP, prompts_N.prompt_length_B, rollouts.token_NR, trace_length_N, tools.marker_ids,
    prompts_N.answer_BA, prompts_N.answer_length_B, toy.PAD,
  )  # fmt: skip
  whole, _ = scoring.row_log_probs(params, MODEL, spliced.token_NL, spliced.position_NL, 1)
  np.testing.assert_allclose(scores.answer_logp_NA, whole[:, -3:], atol=1e-4)
  np.testing.assert_allclose(scores.marker_logp_NM, whole[:, -5:-3], atol=1e-4)


def test_completion_rows_train_every_sampled_token():
  tools, params, (rollouts, _, _) = completions()
  batch = pg.completion_batch(tools, None, repeat_rows(PROMPTS, G), rollouts)
  for n in range(B * G):
    b, length = n // G, rollouts.length_N[n]
    prompt = PROMPTS.prompt_BP[b][-PROMPTS.prompt_length_B[b] :]
    valid = np.asarray(batch.position_NL[n]) >= 0
    np.testing.assert_array_equal(batch.token_NL[n][valid], [*prompt, *rollouts.token_NR[n, :length]])
    np.testing.assert_array_equal(batch.trace_mask_NL[n][valid], [False] * len(prompt) + [True] * int(length))
    np.testing.assert_array_equal(batch.behaviour_logp_NL[n][valid][len(prompt) :], rollouts.logp_NR[n, :length])
  whole, _ = tools.log_probs(params, batch)
  np.testing.assert_allclose(jnp.where(batch.trace_mask_NL, whole, 0), batch.behaviour_logp_NL, atol=1e-4)
