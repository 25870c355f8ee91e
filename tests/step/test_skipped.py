"""Updates that are not finite: skipped inside the program, with the state left as it was, however a step is run."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from nrt_jax.sharding import OFFLOADABLE
from nrt_jax.step import programs
from nrt_jax.step.update import update

MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
B = 16
# A reference and an average that follow the policy, and two updates of each rollout: whatever a state may hold.
BASE = {
  "prompts_per_step": B, "optimizer__minibatches": 2, "optimizer__ema_decay": 0.9, "algorithm__kl_coef": 0.1,
  "algorithm__reference": "moving_average",
}  # fmt: skip
VARIANTS = {
  "mesh_micro_2_offload": {
    "parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2, "parallel__micro_batches": 2,
    "parallel__offload": OFFLOADABLE,
  },
  "pmap": {"parallel__kind": "pmap"},
  "one_device_lora_int8": {"model": dataclasses.replace(MODEL, lora_rank=2), "optimizer__moment_dtype": "int8"},
}  # fmt: skip


class Program:
  """The compiled step of a setup, on states that lie on the host."""

  def __init__(self, algorithm="nrt", model=MODEL, **over):
    self.setup = toy.setup(algorithm, model, **over)
    self._step = programs.build_train_step(self.setup)
    params = jax.tree.map(jnp.copy, toy.params(model))
    self.start = self._on_host(programs.init_states(self.setup, params, jax.random.key(3)))

  def __call__(self, states, prompts):
    setup = self.setup
    states = states.replace(policy=states.policy.replace(key=jax.random.wrap_key_data(states.policy.key)))
    if setup.axis_name:
      states = programs.replicate(states)
      prompts = jax.tree.map(lambda a: a.reshape(8, len(a) // 8, *a.shape[1:]), prompts)
    elif setup.mesh is not None:
      states = jax.device_put(states, programs.state_shardings(setup))
    else:
      states = jax.tree.map(jnp.asarray, states)
    with jax.set_mesh(setup.mesh) if setup.mesh else contextlib.nullcontext():
      states, metrics, _ = self._step(states, prompts)
    if setup.axis_name:
      states, metrics = programs.unreplicate((states, metrics))
    return self._on_host(states), jax.device_get(metrics)

  def _on_host(self, states):
    key = jax.random.key_data(states.policy.key)
    return jax.device_get(states.replace(policy=states.policy.replace(key=key)))


def with_nan(states):
  """The states with one NaN among the parameters, from which every prediction becomes NaN."""
  params = jax.tree.map(np.copy, states.policy.params)
  params["final_norm"]["scale"][3] = np.nan
  return states.replace(policy=states.policy.replace(params=params))


def bits(tree) -> list:
  return [(np.asarray(leaf).dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_skipped_step_leaves_every_bit_but_the_step_number(name):
  step, prompts = Program(**{**BASE, **VARIANTS[name]}), toy.prompts(B)
  after, metrics = step(step.start, prompts)
  assert metrics["optimizer/skipped"] == 0 and after.policy.updates == 2
  assert np.isfinite(metrics["loss/total"])
  assert toy.largest_difference(after.policy.params, step.start.policy.params) > 1e-3
  assert all(bits(left) != bits(right) for left, right in ((after.reference, step.start.reference),
                                                           (after.average, step.start.average)))
  poisoned = with_nan(after)
  skipped, metrics = step(poisoned, prompts)
  assert metrics["optimizer/skipped"] == 1 and np.isnan(metrics["loss/total"])
  assert (skipped.policy.step, skipped.policy.updates) == (2, 2)
  assert bits(skipped.replace(policy=skipped.policy.replace(step=poisoned.policy.step))) == bits(poisoned)


def test_only_the_minibatch_that_is_not_finite_is_skipped():
  """The first of two has a coefficient that is NaN, as an advantage may be: the step is the second's update alone."""
  prompts = toy.prompts(B, trace_width=2)

  def updated(batch, **over):
    setup = toy.setup("sft", prompts_per_step=len(batch.token_NL), **over)
    states = programs.init_states(setup, toy.params(), jax.random.key(3))
    state, sums = jax.jit(lambda batch: update(setup, programs.make_tools(setup), states.policy, batch))(batch)
    return states.policy, state, sums["optimizer/skipped"]

  setup = toy.setup("sft", prompts_per_step=B)
  states = programs.init_states(setup, toy.params(), jax.random.key(3))
  batch = programs.collect(setup, programs.make_tools(setup), states, prompts).batch
  bad = batch.replace(answer_coef_NL=jnp.asarray(batch.answer_coef_NL).at[0, -1].set(jnp.nan))
  start, got, (skipped, updates) = updated(bad, optimizer__minibatches=2)
  assert (skipped, updates, got.updates, got.step) == (1, 2, 1, 1)
  _, expected, (skipped, _) = updated(jax.tree.map(lambda a: a[1::2], batch))
  assert skipped == 0 and toy.largest_difference(got.params, expected.params) < 1e-6
  assert toy.largest_difference(got.params, start.params) > 1e-3
