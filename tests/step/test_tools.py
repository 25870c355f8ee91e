"""What tools.py scores that no other file compares with whole rows."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import toy

from nrt_jax.errors import UserError
from nrt_jax.rollout import scoring
from nrt_jax.step import opening, tools

MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)


def test_the_bare_prompt_has_neither_trace_open_nor_marker():
  """Scored behind it, the answer is as likely as in a row of the prompt's first tokens and the answer."""
  opened, prompts = (18, 19), toy.prompts(2, prompt_width=6)
  length_B = np.maximum(prompts.prompt_length_B, 3)  # what trace_open stands behind, one token or more
  prompt_BP = np.where(prompts.prompt_BP == toy.PAD, 1, prompts.prompt_BP)
  prompt_BP[:, -2:] = opened
  prompts = prompts.replace(prompt_BP=prompt_BP, prompt_length_B=length_B)
  setup = toy.setup(model=MODEL, prompt_format=dataclasses.replace(toy.form(), open_ids=opened))
  params = toy.params(MODEL)
  score_bare = jax.jit(functools.partial(tools.score_bare, setup))
  found = score_bare(params, prompts)
  one = score_bare(params, prompts.replace(answer_BA=prompts.answer_BA[:, :1], answer_length_B=np.ones(2, np.int32)))
  np.testing.assert_allclose(one.answer_logp_NA, found.answer_logp_NA[:, :1], rtol=1e-4, atol=1e-5)
  assert found.marker_logp_NM.shape == (2, 0)
  token_NL, position_NL = np.full((2, 9), toy.PAD), np.full((2, 9), -1)
  rows = [
    (prompt_BP[b, 6 - length_B[b] : -2].tolist(), prompts.answer_BA[b, : prompts.answer_length_B[b]].tolist())
    for b in range(2)  # the longest and the shortest
  ]
  for b, (bare, answer) in enumerate(rows):
    token_NL[b, : len(bare + answer)], position_NL[b, : len(bare + answer)] = bare + answer, range(len(bare + answer))
  score = jax.jit(scoring.row_log_probs, static_argnums=(1, 4))
  logp_NL = score(params, MODEL, token_NL, position_NL, 1)[0]
  for b, (bare, answer) in enumerate(rows):
    expected = logp_NL[b, len(bare) : len(bare) + len(answer)]
    np.testing.assert_allclose(found.answer_logp_NA[b, : len(answer)], expected, rtol=1e-4, atol=1e-5)


def test_what_another_policy_expects_is_scored_in_waves():
  """All prompts at once would need the caches of a whole step, which is what waves are to avoid."""
  prompts, params = toy.prompts(8, prompt_width=64), toy.params(MODEL)

  def compiled(**over):
    setup = toy.setup(model=MODEL, prompts_per_step=8, prompt__max_prompt_length=64, **over)
    return jax.jit(functools.partial(tools.score_empty_trace, setup)).lower(params, prompts).compile()

  whole, waves = compiled(), compiled(sampling__wave_prompts=2)
  found, expected = waves(params, prompts), whole(params, prompts)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
  needed = [program.memory_analysis().temp_size_in_bytes for program in (waves, whole)]
  assert needed[0] < 0.5 * needed[1]


def test_what_a_chat_template_opens_is_not_known():
  run = toy.run_config(algorithm__base_place="prompt", prompt__trace_open="<think>")
  form = dataclasses.replace(toy.form(), template="chat")
  with pytest.raises(UserError, match="^algorithm.base_place: found 'prompt' with prompt.trace_open '<think>'"):
    opening.open_setup(run, MODEL, None, form)
  assert opening.open_setup(run, MODEL, None, toy.form()).run == run
