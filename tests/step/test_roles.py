"""A step with a critic: the same on every mesh and under pmap, one program, its buffer and its own weights."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from nrt_jax.errors import UserError
from nrt_jax.model import lora
from nrt_jax.performance.compilations import Compilations
from nrt_jax.step import host_grading, programs, sizes

MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)  # programs of two roles are long as it is
B, G = 8, 4
CRITIC = {"samples": 4, "max_length": 4, "reasoning": False, "temperature": 0.8}
BASE = {
  "prompts_per_step": B, "samples_per_prompt": G, "sampling__max_trace_length": 8, "algorithm__replay_size": 48,
  "algorithm__critic": CRITIC, "algorithm__kl_coef": 0.05, "algorithm__verifier": "token_match",
}  # fmt: skip
PROMPTS = [toy.prompts(B, seed=step) for step in range(3)]
OWN = {"algorithm__critic": {**CRITIC, "own_weights": True}}


@functools.cache
def taught():
  """Parameters of a policy that answers, and of a critic that says labels: some supervised steps for each role."""
  params = toy.params(MODEL)
  sft = toy.setup("sft", MODEL, prompts_per_step=B, optimizer__learning_rate=3e-2)
  label = {"algorithm__label_coef": 1.0, "algorithm__lambda_policy": 0.0, "algorithm__kl_coef": 0.0}
  critic = toy.setup("raro", MODEL, **{**BASE, **label, "optimizer__learning_rate": 1e-2})
  sft, critic = ((setup, programs.build_train_step(setup)) for setup in (sft, critic))
  for (setup, step), steps in ((sft, 40), (critic, 40), (sft, 6), (critic, 12), (sft, 2)):
    states = programs.init_states(setup, jax.tree.map(jnp.copy, params), jax.random.key(0))
    for i in range(steps):
      states, _, _ = step(states, PROMPTS[i % len(PROMPTS)])
    params = states.policy.params
  return jax.device_get(params)


def fresh_states(setup):
  states = programs.init_states(setup, jax.tree.map(jnp.asarray, taught()), jax.random.key(3))
  if setup.run.parallel.kind == "pmap":
    return programs.replicate(states)
  return states if setup.mesh is None else jax.device_put(states, programs.state_shardings(setup))


def run(**over):
  """(states, metrics) after each of three steps, on the host."""
  setup, out = toy.setup("raro", MODEL, **{**BASE, **over}), []
  states, step = fresh_states(setup), programs.build_train_step(setup)
  pmap = setup.run.parallel.kind == "pmap"
  with jax.set_mesh(setup.mesh) if setup.mesh else contextlib.nullcontext():
    for prompts in PROMPTS:
      if pmap:
        prompts = jax.tree.map(lambda a: a.reshape(8, B // 8, *a.shape[1:]), prompts)
      states, metrics, _ = step(states, prompts)
      one = programs.unreplicate((states, metrics)) if pmap else (states, metrics)
      out.append(jax.device_get((one[0].replace(policy=one[0].policy.replace(key=None)), one[1])))
  return out


@functools.cache
def plain():
  return run()


@functools.cache
def plain_own():
  return run(**OWN)


WORK = ("update/padded_fraction", "tokens/shared", "critic/update/padded_fraction")


def assert_same_run(got, expected):
  """As in test_programs.py: 2e-5 of a parameter is rounding after some steps, a wrong mean moves 1e-2."""
  for (states, metrics), (wanted, wanted_metrics) in zip(got, expected, strict=True):
    assert toy.largest_difference(states.policy.params, wanted.policy.params) < 5e-5
    if wanted.critic is not None:
      assert toy.largest_difference(states.critic.params, wanted.critic.params) < 5e-5
    for name in wanted.memory["replay"]:  # token ids: exactly
      np.testing.assert_array_equal(states.memory["replay"][name], wanted.memory["replay"][name], err_msg=name)
    metrics, wanted_metrics = ({k: v for k, v in m.items() if k not in WORK} for m in (metrics, wanted_metrics))
    assert metrics.keys() == wanted_metrics.keys()
    for name in metrics:
      np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=5e-4, atol=5e-5, err_msg=name)


@pytest.mark.parametrize("expected", [plain, plain_own])
def test_the_steps_do_something(expected):
  """What the comparisons rest on: answers, verdicts of all kinds, rewards that differ, and a buffer that fills."""
  steps = expected()
  for _, metrics in steps:
    assert metrics["policy/answered"] > 0.4 and metrics["critic/parsed"] > 0.4
    assert 0 < metrics["critic/accuracy"] < 1 and metrics["reward/std"] > 0 and metrics["critic/reward_std"] > 0
    assert metrics["advantage/abs_mean"] > 0 and metrics["critic/advantage_abs_mean"] > 0
    assert all(np.isfinite(value) for value in metrics.values())
  filled = [metrics["replay/filled"] for _, metrics in steps]
  assert 0 < filled[0] < filled[1] <= 48 and steps[0][0].memory["steps"] == 1
  first, last = steps[0][0], steps[-1][0]
  assert toy.largest_difference(first.policy.params, last.policy.params) > 1e-3
  if expected is plain_own:
    assert toy.largest_difference(first.critic.params, last.critic.params) > 1e-3
    assert toy.largest_difference(last.critic.params, last.policy.params) > 1e-3


MESH_2_2_2 = {"parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2}
VARIANTS = {
  "mesh_8_1_1": {"parallel__data": 8},
  "mesh_2_2_2_micro_2": {**MESH_2_2_2, "parallel__micro_batches": 2, "parallel__share_prompts": "off"},
  "pmap": {"parallel__kind": "pmap"},
  "waves_shared_prompts_buckets": {
    "sampling__wave_prompts": 4, "parallel__share_prompts": "on", "parallel__micro_batches": 4,
    "parallel__length_buckets": 2,
  },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_to_run_gives_the_same_numbers(name):
  assert_same_run(run(**VARIANTS[name]), plain())


@pytest.mark.parametrize("name", ["mesh_2_2_2_micro_2", "pmap"])
def test_a_critic_of_its_own_too(name):
  assert_same_run(run(**OWN, **VARIANTS[name]), plain_own())


def test_one_program_without_the_host():
  """All of it is one executable that calls nobody, its state is donated, and later steps compile nothing."""
  setup = toy.setup("raro", MODEL, **BASE)
  states = fresh_states(setup)
  lowered = host_grading.lower_programs(setup, states, PROMPTS[0])
  assert len(lowered) == 1
  compiled = lowered[0].compile()
  text = compiled.as_text()
  assert "callback" not in text and "infeed" not in text and "outfeed" not in text
  old, (states, *_) = states, compiled(states, PROMPTS[0])
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.policy.params, old.memory)))
  with Compilations() as seen:
    compiled(states, PROMPTS[1])
  assert not seen.names


def test_the_policy_waits_below_the_floor():
  """The critic's rows have their gradient all the same."""
  (_, above), *_ = run(algorithm__accuracy_floor=0.0)
  (_, below), *_ = run(algorithm__accuracy_floor=1.0)
  assert above["policy/updated"] == 1 and below["policy/updated"] == 0
  assert below["critic/advantage_abs_mean"] == above["critic/advantage_abs_mean"] > 0
  assert below["optimizer/grad_norm"] != above["optimizer/grad_norm"] and below["optimizer/grad_norm"] > 0


def test_adapters_share_the_frozen_weights():
  """With LoRA a critic of its own has adapters of its own, and the policy's frozen weights."""
  model = dataclasses.replace(MODEL, lora_rank=2)
  setup = toy.setup("raro", model, **{**BASE, **OWN})
  states = programs.init_states(setup, toy.params(model), jax.random.key(0))
  trainable, _ = lora.split(states.policy.params, model)
  assert jax.tree.structure(states.critic.params) == jax.tree.structure(trainable)
  whole = programs.with_frozen(setup, states.critic, states.policy).params
  assert jax.tree.structure(whole) == jax.tree.structure(states.policy.params)
  states, _, _ = jax.jit(functools.partial(programs.train_step, setup))(states, PROMPTS[0])
  assert jax.tree.structure(states.critic.params) == jax.tree.structure(trainable)


def test_more_fresh_pairs_than_completions_are_refused():
  over = {"algorithm__critic": {**CRITIC, "pairs": 20}, "parallel__micro_batches": 1}
  setup = toy.setup("raro", MODEL, **{**BASE, **over})
  with pytest.raises(UserError, match="algorithm.critic.pairs: found 20 with samples_per_prompt 4, of which 10"):
    sizes.check(setup)
