"""State in host memory: the same numbers, less device memory, and checkpoints that restore it."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from paths import ROOT

from nrt_jax import workdir
from nrt_jax.errors import UserError
from nrt_jax.performance import memory
from nrt_jax.records.checkpoint import CheckpointConfig, Checkpoints
from nrt_jax.sharding import OFFLOADABLE, ParallelConfig
from nrt_jax.step import offload, programs

# A reference that moves, an average, and two updates of each rollout: whatever the state may hold is used and changed.
OVER = {
  "prompts_per_step": 16, "optimizer__minibatches": 2, "optimizer__ema_decay": 0.9, "algorithm__kl_coef": 0.1,
  "algorithm__reference": "moving_average", "parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2,
}  # fmt: skip


def fresh_states(setup):
  states = programs.init_states(setup, jax.tree.map(jnp.copy, toy.params()), jax.random.key(3))
  return jax.device_put(states, programs.state_shardings(setup))


def kinds(tree) -> set:
  return {a.sharding.memory_kind for a in jax.tree.leaves(tree) if a.ndim}


def same_bits(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
    a, b = (jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def offloaded():
  """The setup, its compiled step and the states after one step."""
  setup = toy.setup(**OVER, parallel__offload=OFFLOADABLE)
  states = fresh_states(setup)
  with jax.set_mesh(setup.mesh):
    step = programs.build_train_step(setup).lower(states, toy.prompts(16)).compile()
    before = states
    states = step(states, toy.prompts(16))[0]
  assert all(a.is_deleted() for a in jax.tree.leaves((before.policy.opt_state, before.reference, before.average)))
  return setup, step, states


def test_a_step_gives_the_same_bits(offloaded):
  _, _, states = offloaded
  plain = toy.setup(**OVER)
  with jax.set_mesh(plain.mesh):
    expected, metrics, _ = programs.build_train_step(plain)(fresh_states(plain), toy.prompts(16))
  assert float(metrics["optimizer/grad_norm"]) > 0.1
  same_bits(states, expected)
  assert toy.largest_difference(states.average, toy.params()) > 1e-4


def test_state_lies_where_it_was_asked_to(offloaded):
  """What comes out of a step goes into the next as it is."""
  setup, step, states = offloaded
  for part in (states.policy.opt_state, states.reference, states.average):
    assert kinds(part) == {offload.HOST}
  assert kinds(states.policy.params) == {"device"}
  wanted = programs.state_shardings(setup)
  assert jax.tree.leaves(jax.tree.map(lambda a: a.sharding, states)) == jax.tree.leaves(wanted)
  with jax.set_mesh(setup.mesh):
    again = step(states.replace(), toy.prompts(16, seed=1))[0]
  assert int(again.policy.step) == 2


def test_only_what_is_named_waits_there():
  setup = toy.setup(**OVER, parallel__offload=("reference",))
  states = programs.state_shardings(setup)
  where = {part: {s.memory_kind for s in jax.tree.leaves(tree)} for part, tree in vars(states).items()}
  assert where["reference"] == {offload.HOST} and where["policy"] == where["average"] == {"device"}


def test_averaged_parameters_are_evaluated_on_the_device(offloaded):
  setup = offloaded[0]
  states = fresh_states(setup)
  params = programs.params_for(setup, states, "evaluation")
  assert kinds(states.average) == {offload.HOST} and kinds(params) == {"device"}
  same_bits(params, states.average)


def test_a_checkpoint_is_restored_to_where_it_lay(offloaded, tmp_path):
  """And by a run that offloads nothing, to the device: what is on disk does not say."""
  setup = offloaded[0]
  states = fresh_states(setup)
  checkpoints = Checkpoints(tmp_path, CheckpointConfig(async_save=False))
  checkpoints.save(1, states, {})
  again = workdir.restore(setup, checkpoints, 1)
  same_bits(again, states)
  assert kinds(again.policy.opt_state) == kinds(again.reference) == {offload.HOST}
  assert kinds(again.policy.params) == {"device"}
  assert kinds(workdir.restore(toy.setup(**OVER), checkpoints, 1)) == {"device"}


@pytest.mark.parametrize(
  "settings, says",
  [
    ({"offload": ("refrence",)}, "parallel.offload: found 'refrence', allowed: average, optimizer, reference (did"),
    ({"offload": ["optimizer"], "kind": "pmap"}, "parallel.offload: found ('optimizer',) with parallel.kind 'pmap'"),
  ],
)
def test_bad_settings_are_one_line(settings, says):
  with pytest.raises(UserError) as error:
    ParallelConfig(**settings)
  assert str(error.value).startswith(says) and "\n" not in str(error.value)


def test_devices_without_such_memory_are_refused():
  class Memory:
    kind = "device"

  class Device:
    platform = "cat"
    addressable_memories = staticmethod(lambda: [Memory])

  offload.check(ParallelConfig(), [Device])
  with pytest.raises(UserError, match="parallel.offload: found .*, allowed: .* on cat devices, whose memories are dev"):
    offload.check(ParallelConfig(offload=("optimizer",)), [Device])
  offload.check(ParallelConfig(offload=("optimizer",)), jax.devices())


def test_a_plan_counts_the_host_apart():
  assert memory.Memory(1, 20, 300, 4000, host=50000).total == 4321


# ---- Compiled for a TPU --------------------------------------------------------------------------------------------

FOR_A_TPU = """
import dataclasses, json, math, sys
from nrt_jax.performance.planning import program, topology
topology.prepare()
import jax, toy
from nrt_jax import sharding
from nrt_jax.step import programs

devices = topology.devices(topology.parse("v5e:2x2"))
sizes = {"vocab_size": 1024, "hidden_size": 512, "intermediate_size": 1024, "head_dim": 128}
model = dataclasses.replace(toy.MODEL, **sizes, layer_loop="scan", platform="tpu")

run = toy.run_config(
  **json.loads(sys.argv[1]), sampling__cache_stages=1, parallel__fsdp=4, parallel__offload=sharding.OFFLOADABLE
)
setup = programs.Setup(run, model, toy.form(), sharding.make_mesh(run.parallel, devices))
(lowered,) = program.lower(setup).values()
stats = lowered.compile().memory_analysis()
found = {name: getattr(stats, name) for name in dir(stats) if name.endswith("_in_bytes")}
states = programs.abstract_states(setup)
for leaf, cut in zip(jax.tree.leaves(states), jax.tree.leaves(programs.state_shardings(setup)), strict=True):
  if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    size = math.prod(cut.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    found[cut.memory_kind] = found.get(cut.memory_kind, 0) + size
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_on_a_tpu_it_takes_the_memory_of_the_host():
  """The compiler's own account: what waits is no argument on the device, and becomes its output on the host."""
  over = {key: value for key, value in OVER.items() if not key.startswith("parallel")}
  env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}", "XLA_FLAGS": ""}
  command = [sys.executable, "-c", FOR_A_TPU, json.dumps(over)]
  done = subprocess.run(command, check=False, cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["pinned_host"] > 0.79 * (found["pinned_host"] + found["device"]) > 2**22  # four trees of five
  assert found["host_argument_size_in_bytes"] >= found["pinned_host"]
  assert found["host_alias_size_in_bytes"] == found["host_argument_size_in_bytes"]
  assert 0 < found["argument_size_in_bytes"] - found["device"] < 0.02 * found["pinned_host"]  # prompts, and rounding up
