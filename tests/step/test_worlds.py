"""A step whose policy lives in an environment: what is trained, what is rewarded, and the same on every mesh."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from worlds import Echo, EchoConfig

from nrt_jax.arrays import repeat_rows
from nrt_jax.environments.table import ENVIRONMENTS, Row
from nrt_jax.step import programs

B, G, R = 8, 4, 10
BASE = {"sampling__max_trace_length": R, "samples_per_prompt": G, "environment": {"name": "echo"}}
GRPO = {"algorithm__verifier": "environment", "algorithm__reference": "none", "algorithm__kl_coef": 0.0}
MESH = {"parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2}


@pytest.fixture(autouse=True)
def echo(monkeypatch):
  monkeypatch.setitem(ENVIRONMENTS, "echo", Row(EchoConfig, Echo))


def states_of(setup):
  states = programs.init_states(setup, jax.tree.map(jnp.copy, toy.params()), jax.random.key(3))
  if setup.axis_name:
    return programs.replicate(states)
  return states if setup.mesh is None else jax.device_put(states, programs.state_shardings(setup))


@functools.cache
def collected(algorithm, **over):
  """(setup, what `collect` returns, the rollouts that it was made of) on one device."""
  setup = toy.setup(algorithm, **BASE, **over)
  tools, states = programs.make_tools(setup), states_of(setup)
  sample = tools.rollout if algorithm == "nrt" else tools.complete
  rollouts = jax.jit(sample)(toy.params(), toy.prompts(B), programs.step_key(states))[0]
  found = jax.jit(functools.partial(programs.collect, setup, tools))(states, toy.prompts(B))
  return setup, jax.device_get(found), jax.device_get(rollouts)


@pytest.mark.parametrize("algorithm", ["nrt", "grpo"])
def test_what_is_forced_is_never_trained_and_what_is_sampled_always(algorithm):
  """On the policy's own tokens sampler and update agree; on forced ones there is no coefficient at all."""
  setup, found, rollouts = collected(algorithm, **(GRPO if algorithm == "grpo" else {}))
  batch = found.batch
  length_N = rollouts.length_N - (rollouts.ended_N if algorithm == "nrt" else 0)
  place_NR = np.arange(R)[None] + batch.first + (R - length_N)[:, None]  # where a row's token r stands
  stop_column = batch.first + R  # of a trace's end, where the marker stands
  forced = own = 0
  for n in range(B * G):
    for r in range(rollouts.length_N[n]):
      column = place_NR[n, r] if r < length_N[n] else stop_column
      assert batch.trace_mask_NL[n, column] == batch.sampled_mask_NL[n, column] == ~rollouts.forced_NR[n, r]
      if rollouts.forced_NR[n, r]:
        forced += 1
        assert batch.trace_coef_NL[n, column] == batch.trace_weight_NL[n, column] == 0
      else:
        own += 1
        assert abs(batch.behaviour_logp_NL[n, column] - rollouts.logp_NR[n, r]) < 1e-6
  assert own == batch.trace_mask_NL.sum() and forced > 20
  logp_NL = jax.jit(programs.make_tools(setup).log_probs)(toy.params(), batch)[0]
  surplus = np.where(batch.trace_mask_NL, logp_NL - batch.behaviour_logp_NL, 0)
  assert np.abs(surplus).max() < 1e-4


def test_rewards_hold_what_was_earned():
  """GRPO's reward is the verdict and what was earned; NRT's gain is that of the likelihood and what was earned."""
  setup, found, rollouts = collected("grpo", **GRPO)
  assert np.std(rollouts.earned_N) > 0.1 and np.std(rollouts.verdict_N) > 0.1
  reward_N = rollouts.verdict_N + rollouts.earned_N
  np.testing.assert_allclose(found.samples["reward"], rollouts.verdict_N, rtol=1e-6)  # what the verifier said
  groups = reward_N.reshape(B, G)
  spread = groups.std(axis=1, ddof=1, keepdims=True)
  expected = np.where(spread > 1e-6, (groups - groups.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-9), 0)
  np.testing.assert_allclose(found.samples["advantage"], expected.reshape(-1), rtol=1e-3, atol=1e-4)


def test_groups_are_of_one_prompt():
  """The environment of a row is that of its prompt: Echo forces the prompt's last token."""
  rollouts = collected("grpo", **GRPO)[2]
  last_N = repeat_rows(toy.prompts(B).prompt_BP[:, -1], G)
  seen = 0
  for n in range(B * G):
    second = rollouts.forced_NR[n, 1:] & rollouts.forced_NR[n, :-1]
    assert (rollouts.token_NR[n, 1:][second] == last_N[n]).all()
    seen += second.sum()
  assert seen > 5


@functools.cache
def stepped(**over):
  """The parameters and metrics after one GRPO step, on the host."""
  setup = toy.setup("grpo", **{**BASE, **GRPO, **over})
  states, step, prompts = states_of(setup), programs.build_train_step(setup), toy.prompts(B)
  if setup.axis_name:
    prompts = jax.tree.map(lambda a: a.reshape(8, B // 8, *a.shape[1:]), prompts)
  with jax.set_mesh(setup.mesh) if setup.mesh else contextlib.nullcontext():
    states, metrics, _ = step(states, prompts)
  if setup.axis_name:
    states, metrics = programs.unreplicate((states, metrics))
  return jax.device_get((states.policy.params, metrics))


@pytest.mark.parametrize("over", [MESH, {"parallel__kind": "pmap"}, {"sampling__slots": 8}])
def test_a_step_is_the_same_on_a_mesh_under_pmap_and_in_slots(over):
  (expected, metrics), (got, others) = stepped(), stepped(**over)
  assert 5e-3 < toy.largest_difference(expected, toy.params()) and toy.largest_difference(got, expected) < 2e-5
  assert metrics["environment/forced_tokens"] > 1 and 0 < metrics["environment/verdict"] < 1
  for name in ("environment/earned", "environment/verdict", "environment/forced_tokens", "reward/mean", "loss/trace"):
    np.testing.assert_allclose(metrics[name], others[name], rtol=2e-4, atol=2e-5, err_msg=name)
