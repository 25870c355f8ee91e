"""Tokens that come into use: what their rows start as, and that those not in use have no probability anywhere."""

import dataclasses

import jax
import numpy as np
import pytest
import reference
import toy

from nrt_jax import config
from nrt_jax.errors import UserError
from nrt_jax.model import decoder
from nrt_jax.model.token_rows import TokensConfig, widened
from nrt_jax.step import programs
from nrt_jax.step.tools import make_tools

BEFORE, NOW = (2, 3, 5, 7), (5, 7)  # not in use before, and not in use now: 2 and 3 are new
MODEL = dataclasses.replace(toy.MODEL, vocab_inactive=NOW)


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_the_mean_of_the_old_ones_with_noise(tied):
  """Rows behind the last token, padding and unused ones, are none of the old ones."""
  model = dataclasses.replace(MODEL, tie_word_embeddings=tied, vocab_padding=1, vocab_unused=1)
  params, key = toy.params(dataclasses.replace(model, vocab_inactive=())), jax.random.key(5)
  plain, noisy = (widened(params, model, BEFORE, TokensConfig(noise=noise), key) for noise in (0.0, 0.7))
  tables = [("embedder", "embedding", False)] if tied else [("embedder", "embedding", False), ("head", "kernel", True)]
  drawn = []
  for (part, name, turned), own_key in zip(tables, jax.random.split(key)):
    found, quiet, start = (np.asarray(tree[part][name]) for tree in (noisy, plain, params))
    found, quiet, start = (found.T, quiet.T, start.T) if turned else (found, quiet, start)
    old = [i for i in range(toy.VOCAB - 2) if i not in BEFORE]
    normal = np.asarray(jax.random.normal(own_key, (2, 16)))
    for row, token in enumerate((2, 3)):
      np.testing.assert_allclose(found[token], reference.new_row(start[old], 0.7, normal[row]), atol=1e-6)
      np.testing.assert_allclose(quiet[token], start[old].mean(0), atol=1e-6)
    others = [i for i in range(toy.VOCAB) if i not in (2, 3)]
    np.testing.assert_array_equal(found[others], start[others])
    drawn.append(normal)
  assert tied or not np.allclose(drawn[0], drawn[1])
  jax.tree.map(np.testing.assert_array_equal, noisy["layers"], params["layers"])


def test_kept_rows_and_a_stage_that_brings_nothing():
  params = toy.params()
  assert widened(params, MODEL, BEFORE, TokensConfig(new_rows="keep"), jax.random.key(0)) is params
  assert widened(params, MODEL, NOW, TokensConfig(), jax.random.key(0)) is params
  assert widened(params, MODEL, (), TokensConfig(), jax.random.key(0)) is params  # back to fewer: none is new


def test_tokens_that_are_not_in_use_have_no_probability_and_no_gradient():
  hidden = jax.random.normal(jax.random.key(1), (3, 16))

  def entropy(params):
    logp = jax.nn.log_softmax(decoder.logits(params, MODEL, hidden))
    return (jax.numpy.exp(logp) * logp).sum(), logp

  grads, logp = jax.grad(entropy, has_aux=True)(toy.params())
  assert np.asarray(logp)[:, NOW].max() < -1e29
  kernel = np.asarray(grads["head"]["kernel"])
  assert not kernel[:, NOW].any() and np.delete(kernel, NOW, axis=1).any(0).all()
  whole = jax.nn.log_softmax(np.delete(np.asarray(decoder.logits(toy.params(), toy.MODEL, hidden)), NOW, axis=1))
  np.testing.assert_allclose(np.delete(np.asarray(logp), NOW, axis=1), whole, atol=1e-5)


def test_sampler_and_update_have_one_distribution_over_the_tokens_in_use():
  inactive = tuple(range(8))  # a third: without a mask, none of 192 tokens being one of them is out of the question
  setup = toy.setup("grpo", dataclasses.replace(toy.MODEL, vocab_inactive=inactive), algorithm__kl_coef=0.0)
  prompts = jax.tree.map(np.asarray, toy.prompts(8))
  states = programs.init_states(setup, toy.params(), jax.random.key(3))
  tools = make_tools(setup)

  def both():
    batch = programs.collect(setup, tools, states, prompts).batch
    return batch, tools.log_probs(states.policy.params, batch)[0]

  batch, logp_NL = jax.device_get(jax.jit(both)())
  sampled = batch.sampled_mask_NL
  assert sampled.sum() > 100 and not np.isin(batch.token_NL[sampled], inactive).any()
  np.testing.assert_allclose(logp_NL[sampled], batch.behaviour_logp_NL[sampled], atol=1e-4)


@pytest.mark.parametrize(
  "changes, says",
  [
    ({"tokens": {"active": "task"}}, "tokens.active: found 'task', allowed: all, data"),
    ({"tokens": {"new_rows": "zero"}}, "tokens.new_rows: found 'zero', allowed: keep, mean"),
    ({"tokens": {"noise": -1}}, "tokens.noise: found -1.0, allowed: 0 or more"),
    ({"tokens": {"active": "data"}, "model": {"lora_rank": 2}}, "tokens.active: found 'data' with model.lora_rank 2"),
    ({"tokens": {"active": "data"}, "algorithm": {"name": "raro"}}, "tokens.active: found 'data' with algorithm.name"),
  ],
)
def test_what_cannot_be_is_one_line(changes, says):
  with pytest.raises(UserError, match=f"^{says}") as error:
    config.stages_of(changes)
  assert "\n" not in str(error.value)
