"""A model as a judge between two answers, outside of training: a critic's tournament, and verdicts of one token."""

import jax
import jax.numpy as jnp

from nrt_jax import sharding
from nrt_jax.algorithms import critic as critics
from nrt_jax.data.prompts import completion_stops
from nrt_jax.model.decoder import logits
from nrt_jax.rollout import sampler
from nrt_jax.step.policy import param_shardings
from nrt_jax.step.setup import Setup
from nrt_jax.step.tools import rollout_weights


def build_judge(setup: Setup, votes: int):
  """A critic's votes on pairs of answers, half of them in each order, for a tournament.

  (params, head_XQ, head_length_X, answer_XA, length_X, other_XA, other_length_X, key) -> votes for either `[X, 2]`,
  int32; ties and what can't be parsed are nobody's.
  """
  form, config = setup.critic, setup.run.algorithm

  def judge(params, head_XQ, head_length_X, answer_XA, length_X, other_XA, other_length_X, key):
    shown = [critics.neutralise(form, *one) for one in ((answer_XA, length_X), (other_XA, other_length_X))]
    X = len(length_X)
    pairs = critics.Pairs(
      head_XQ, head_length_X, shown[0], length_X, shown[1], other_length_X, jnp.ones(X, bool)
    )
    first_XO = jnp.broadcast_to(jnp.array([True, False])[None], (X, 2))
    prompts = critics.build_prompts(form, pairs, first_XO, jnp.arange(X), setup.form.pad_id)
    weights, sampling = rollout_weights(setup, params), config.role().sampling
    said = sampler.sample(
      weights, setup.decoder, sampling, completion_stops(setup.form), setup.form.pad_id, prompts, key, votes // 2
    )[0]
    verdict = critics.read_verdicts(form, said).reshape(X, 2, votes // 2)
    first = ((verdict[:, 0] == critics.FIRST).sum(1) + (verdict[:, 1] == critics.SECOND).sum(1)).astype(jnp.int32)
    second = ((verdict[:, 0] == critics.SECOND).sum(1) + (verdict[:, 1] == critics.FIRST).sum(1)).astype(jnp.int32)
    return jnp.stack([first, second], axis=1)

  if setup.mesh is None:
    return jax.jit(judge)
  everywhere, by_rows = sharding.replicated(setup.mesh), sharding.rows_sharding(setup.mesh)
  inputs = (param_shardings(setup.model, setup.mesh), *(by_rows,) * 6, everywhere)
  return jax.jit(judge, in_shardings=inputs, out_shardings=everywhere)


def build_choice(setup: Setup, token_ids: tuple):
  """How likely each of some tokens comes next: (params, prompts) -> log-probabilities `[B, n]`, float32, on one device.

  For a judge whose verdict is one token, and need not be sampled.
  """

  def choose(params, prompts):
    weights = rollout_weights(setup, params)
    hidden_BD, _ = sampler.prefill(weights, setup.decoder, prompts)
    return jax.nn.log_softmax(logits(weights, setup.decoder, hidden_BD))[:, jnp.asarray(token_ids)]

  return jax.jit(choose)
