"""The critic as a judge: both orders of a pair, votes counted for answers and not for places."""

import contextlib

import critics
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from nrt_jax import sharding
from nrt_jax.rollout import sampler, scoring
from nrt_jax.step import judge


def arrays(count=8):
  rng = np.random.default_rng(0)
  answers = [rng.integers(0, 9, (count, 4)).astype(np.int32) for _ in range(2)]
  lengths = [rng.integers(1, 5, count).astype(np.int32) for _ in range(2)]
  head, head_length = rng.integers(0, 9, (count, 7)).astype(np.int32), np.full(count, 5, np.int32)
  return head, head_length, answers[0], lengths[0], answers[1], lengths[1]


@pytest.mark.parametrize("mesh", [False, True])
def test_votes_are_for_answers_wherever_they_stand(mesh, monkeypatch):
  """A script that knows which answer begins with the lower token, and says so of either order."""
  setup = toy.setup("raro", algorithm__critic={"samples": 4, "max_length": 8}, parallel__fsdp=2)
  setup = setup if mesh else setup._replace(mesh=None)
  seen = []

  def say(prompts, sample):
    token, width = prompts.prompt_BP, prompts.prompt_BP.shape[1]
    start = width - prompts.prompt_length_B + 5
    middle = jnp.argmax(token == 16, axis=1)
    first = jnp.take_along_axis(token, start[:, None], 1)[:, 0]
    second = jnp.take_along_axis(token, (middle + 1)[:, None], 1)[:, 0]
    return jnp.where(first <= second, critics.FIRST, critics.SECOND)

  def sample(weights, decoder, sampling, stops, pad, prompts, key, samples):
    seen.append((len(prompts.prompt_length_B), samples))
    role = type("Role", (), {"sampling": sampling, "samples": samples})
    return critics.scripted(setup.critic, say)(None, prompts, key, role), None

  monkeypatch.setattr(sampler, "sample", sample)
  program, given = judge.build_judge(setup, votes=6), arrays()
  with jax.set_mesh(setup.mesh) if mesh else contextlib.nullcontext():
    placed = sharding.place_rows(setup.mesh, given) if mesh else given
    params = toy.params() if not mesh else jax.device_put(toy.params(), program_shardings(setup))
    votes = np.asarray(program(params, *placed, jax.random.key(0)))
  assert seen[0] == (16, 3)  # both orders, three samples each
  lower = given[2][:, 0] < given[4][:, 0]
  different = given[2][:, 0] != given[4][:, 0]
  assert different.sum() > 4
  np.testing.assert_array_equal(votes[different], np.where(lower, [[6], [0]], [[0], [6]]).T[different])


def program_shardings(setup):
  return judge.param_shardings(setup.model, setup.mesh)


def test_a_real_critic_votes_within_bounds():
  """Sampled by a model: never more votes than verdicts, and the same key gives the same votes."""
  setup = toy.setup("raro", algorithm__critic={"samples": 4, "max_length": 3, "reasoning": False})
  program = judge.build_judge(setup, votes=4)
  votes = [np.asarray(program(toy.params(), *arrays(), jax.random.key(1))) for _ in range(2)]
  np.testing.assert_array_equal(*votes)
  assert votes[0].shape == (8, 2) and (votes[0].sum(axis=1) <= 4).all() and (votes[0] >= 0).all()

def test_a_verdict_of_one_token_has_the_probability_of_a_scored_row():
  """Against whole rows of prompt and token; ragged prompts, padded on the left."""
  setup, prompts, ids = toy.setup("sft"), toy.prompts(4), (10, 11, 12)
  found = np.asarray(judge.build_choice(setup, ids)(toy.params(), prompts))
  for n, token in enumerate(ids):
    token_NL = jnp.concatenate([prompts.prompt_BP, jnp.full((4, 1), token)], axis=1)
    start_N1 = prompts.prompt_BP.shape[1] - prompts.prompt_length_B[:, None]
    position_NL = jnp.maximum(jnp.arange(token_NL.shape[1])[None] - start_N1, -1)
    expected, _ = scoring.row_log_probs(toy.params(), setup.model, token_NL, position_NL, 1)
    np.testing.assert_allclose(found[:, n], expected[:, -1], atol=1e-5)
