"""The compiled step: one program, the same on every mesh. algorithms/test_objective.py tests its gradient."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from nrt_jax.model import lora
from nrt_jax.optimizers.update_rule import make_optimizer
from nrt_jax.performance.compilations import Compilations
from nrt_jax.step import programs

B, STEPS = 16, 2
PROMPTS = [toy.prompts(B, seed=step, trace_width=2) for step in range(STEPS)]
# Two optimizer updates of each rollout: the second is off-policy, so that the trust region matters.
BASE = {"prompts_per_step": B, "optimizer__minibatches": 2, "algorithm__normalisation": "token"}


def fresh_states(setup):
  """States on the setup's devices. Their parameters are copies, since a step destroys what it is given."""
  states = programs.init_states(setup, jax.tree.map(jnp.copy, toy.params(setup.model)), jax.random.key(3))
  if setup.run.parallel.kind == "pmap":
    return programs.replicate(states)
  return states if setup.mesh is None else jax.device_put(states, programs.state_shardings(setup))


def run(algorithm="nrt", model=toy.MODEL, **over):
  """Parameters after each of the steps, and each step's metrics, all on the host."""
  setup = toy.setup(algorithm, model, **{**BASE, **over})
  states, step = fresh_states(setup), programs.build_train_step(setup)
  pmap = setup.run.parallel.kind == "pmap"
  out = []
  with jax.set_mesh(setup.mesh) if setup.mesh else contextlib.nullcontext():
    for prompts in PROMPTS:
      if pmap:
        ways = jax.local_device_count()
        prompts = jax.tree.map(lambda a: a.reshape(ways, B // ways, *a.shape[1:]), prompts)
      states, metrics, _ = step(states, prompts)
      one = programs.unreplicate((states, metrics)) if pmap else (states, metrics)
      out.append(jax.device_get((one[0].policy.params, one[1])))
  return out


@pytest.fixture(scope="module")
def plain():
  """On one device, in one piece: what every other way of running must repeat."""
  return run()


WORK = ("update/padded_fraction", "tokens/shared")  # how many slots are run: this is what may differ


def assert_same_run(got, expected):
  """To rounding: sums run in another order, which float32 feels in the 7th digit, and Adam (eps 1e-3, learning rate
  1e-2) turns an error d of a gradient into at most 10 d of a parameter. 2e-5 leaves room for two steps of that; a
  wrong mean over devices or pieces is off by a factor, and moves parameters by about 1e-2."""
  for (params, metrics), (expected_params, expected_metrics) in zip(got, expected, strict=True):
    assert toy.largest_difference(params, expected_params) < 2e-5
    metrics, expected_metrics = ({k: v for k, v in m.items() if k not in WORK} for m in (metrics, expected_metrics))
    assert metrics.keys() == expected_metrics.keys()
    for name in metrics:
      np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=2e-4, atol=2e-5, err_msg=name)


def test_the_steps_do_something(plain):
  """What the comparisons below rest on: parameters move, and the second update of a rollout is off-policy."""
  start, (first, metrics), (second, _) = toy.params(), *plain
  assert 5e-3 < toy.largest_difference(start, first) and 5e-3 < toy.largest_difference(first, second)
  assert metrics["policy/ratio_max"] > 1.01 and metrics["optimizer/grad_norm"] > 0.1
  assert 0 < metrics["trace/marker_fraction"] < metrics["trace/ended_fraction"] < 1
  assert all(np.isfinite(value) for _, metrics in plain for value in metrics.values())


VARIANTS = {
  "mesh_8_1_1": {"parallel__data": 8},
  "mesh_2_2_2_slices_2_micro_4": {
    "parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2, "parallel__slices": 2,
    "parallel__micro_batches": 4,
  },
  "mesh_1_4_2_waves_sharded_rollout": {
    "parallel__data": 1, "parallel__fsdp": 4, "parallel__tensor": 2, "parallel__rollout_weights": "sharded",
    "sampling__wave_prompts": 8,
  },
  "pmap_micro_2": {"parallel__kind": "pmap", "parallel__micro_batches": 2},
  "own_prompts_buckets_3": {
    "parallel__share_prompts": "off", "parallel__micro_batches": 8, "parallel__length_buckets": 3,
  },
  "mesh_2_2_2_shared_prompts_buckets_2": {
    "parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2, "parallel__micro_batches": 2,
    "parallel__length_buckets": 2, "parallel__share_prompts": "on",
  },
  "mesh_2_2_2_packed_rows": {
    "parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2, "parallel__micro_batches": 2,
    "parallel__length_buckets": 4, "parallel__share_prompts": "packed",
  },
  "micro_4_waves_4_scan_remat": {
    "parallel__micro_batches": 4, "sampling__wave_prompts": 4,
    "model": dataclasses.replace(toy.MODEL, layer_loop="scan", remat="full", head_chunk=64),
  },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_to_run_gives_the_same_numbers(plain, name):
  assert_same_run(run(**VARIANTS[name]), plain)


@pytest.fixture(scope="module")
def plain_sft():
  return run("sft")


@pytest.mark.parametrize("name", ["mesh_8_1_1", "pmap"])
def test_supervised_steps_are_the_same_too(plain_sft, name):
  assert_same_run(run("sft", **VARIANTS.get(name, {"parallel__kind": "pmap"})), plain_sft)


def test_state_is_cut_by_the_mesh():
  """Parameters, and both of Adam's moments, lie over fsdp and tensor, and come out of a step as they went in."""
  setup = toy.setup(**BASE, parallel__data=2, parallel__fsdp=2, parallel__tensor=2)
  shardings = programs.state_shardings(setup)
  states = jax.eval_shape(functools.partial(programs.init_states, setup), toy.params(), jax.random.key(0))
  cut = jax.tree.map(lambda a, s: s.shard_shape(a.shape) != a.shape, states, shardings)
  matrices = [a for path, a in jax.tree_util.tree_leaves_with_path(toy.params()) if path[-1].key != "scale"]
  assert sum(jax.tree.leaves(cut)) == 3 * len(matrices)
  policy = shardings.policy
  adam = next(part for part in policy.opt_state if hasattr(part, "mu"))
  assert jax.tree.leaves(adam.mu) == jax.tree.leaves(adam.nu) == jax.tree.leaves(policy.params)


# ------------------------------------------------------------------------------------ one step, by hand


@pytest.fixture(scope="module")
def one_device():
  """A setup with its compiled step on one device."""
  setup = toy.setup(**BASE)
  return setup, programs.build_train_step(setup)


def test_a_step_by_hand(one_device, plain):
  """Collect once; then, prompt parity by prompt parity, gradient, clipping and Adam written out with optax."""
  setup, _ = one_device
  tools, config, run_config = programs.make_tools(setup), setup.run.algorithm, setup.run
  states = fresh_states(setup)
  key = jax.random.fold_in(states.policy.key, 0)
  batch = jax.jit(lambda: setup.algorithm.collect(tools, config, states, PROMPTS[0], key).batch)()
  gradient = jax.jit(jax.grad(lambda params, piece: setup.algorithm.loss(tools, config, params, piece).total))
  optimizer = make_optimizer(run_config.optimizer, run_config.total_steps)
  params, opt_state = states.policy.params, states.policy.opt_state
  for parity in (0, 1):
    mine = np.array([n for n in range(B * setup.samples_per_prompt) if n // setup.samples_per_prompt % 2 == parity])
    changes, opt_state = optimizer.update(gradient(params, jax.tree.map(lambda a: a[mine], batch)), opt_state, params)
    params = optax.apply_updates(params, changes)
  assert toy.largest_difference(params, plain[0][0]) < 2e-5


def test_keys_of_steps(one_device):
  """Two steps on the same prompts draw different traces; the same step draws the same ones again."""
  setup, step = one_device

  def traces(number):
    states = fresh_states(setup)
    states = states.replace(policy=states.policy.replace(step=jnp.int32(number)))
    new, _, samples = step(states, PROMPTS[0])
    assert int(new.policy.step) == number + 1 and int(new.policy.updates) == 2
    return np.asarray(samples["trace"])

  first, again, second = traces(0), traces(0), traces(1)
  np.testing.assert_array_equal(first, again)
  assert (first != second).any(-1).all()
  assert len(first) == setup.run.logging.samples_per_step


def test_same_seed_same_bits(one_device):
  setup, step = one_device
  ends = []
  for _ in range(2):
    states = fresh_states(setup)
    for prompts in PROMPTS:
      states, metrics, _ = step(states, prompts)
    ends.append(jax.device_get((states.policy.params, states.policy.opt_state, metrics)))
  jax.tree.map(np.testing.assert_array_equal, *ends)


# ---------------------------------------------------------------------------------------- one program


def executions(act):
  """Name of each event of JAX's profiler -> how often it occurred while `act` ran to its end."""
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      jax.block_until_ready(act())
    (path,) = pathlib.Path(directory).rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(path))
    return collections.Counter(event.name for plane in profile.planes for line in plane.lines for event in line.events)


@pytest.mark.parametrize("platform,loop,scans", [
  ("gpu", "auto", (True, False)), ("gpu", "scan", (True, True)), ("tpu", "auto", (True, True)),
  ("cpu", "auto", (False, False)),
])  # fmt: skip
def test_rollouts_unroll_the_layers_on_a_gpu(platform, loop, scans):
  setup = toy.setup(model=dataclasses.replace(toy.MODEL, platform=platform, layer_loop=loop))
  assert (setup.model.scan_layers, setup.decoder.scan_layers) == scans


def test_a_step_runs_one_executable(one_device):
  """Counted by the profiler, whose events are first calibrated on a program that runs three times."""
  setup, step = one_device
  states, prompts = fresh_states(setup), jax.device_put(PROMPTS[0])
  states, *_ = step(states, prompts)  # compiled
  double = jax.jit(lambda x: x * 2)
  x = double(jnp.ones(4))
  control = executions(lambda: double(double(double(x))))
  names = [name for name, count in control.items() if count == 3 and "Execut" in name and "(jit" not in name]
  assert names, "this JAX names its executions otherwise: see the profiler's events"
  with jax.transfer_guard("disallow"):  # neither prompts nor any other array come from the host meanwhile
    counted = executions(lambda: step(states, prompts))
  assert {name: counted[name] for name in names} == dict.fromkeys(names, 1)


@pytest.mark.parametrize("name", ["one_device", "mesh_2_2_2_slices_2_micro_4"])
def test_nothing_leaves_the_program_but_its_results(name):
  """No callback, infeed, outfeed, send or receive in the optimised program; states are written in place."""
  setup = toy.setup(**BASE, **VARIANTS.get(name, {}))
  with jax.set_mesh(setup.mesh) if setup.mesh else contextlib.nullcontext():
    states = fresh_states(setup)
    compiled = programs.build_train_step(setup).lower(states, PROMPTS[0]).compile()
  text = compiled.as_text()
  for word in ("callback", "infeed", "outfeed", " send(", " recv(", "host_compute", "SendToHost", "RecvFromHost"):
    assert word not in text, word
  shards = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(states) if leaf.dtype == jnp.float32]
  assert compiled.memory_analysis().alias_size_in_bytes >= sum(shard.nbytes for shard in shards)
  out_shapes = jax.eval_shape(programs.build_train_step(setup), states, PROMPTS[0])
  assert jax.tree.structure(out_shapes[0]) == jax.tree.structure(states)
  assert all(metric.shape == () for metric in out_shapes[1].values())
  assert all(len(sample) == setup.run.logging.samples_per_step for sample in out_shapes[2].values())


def test_a_callback_would_be_seen():
  def noisy(x):
    jax.debug.callback(lambda _: None, x)
    return x

  assert "callback" in jax.jit(noisy).lower(1.0).compile().as_text()


def test_state_is_donated_and_nothing_is_compiled_again(one_device):
  setup, step = one_device
  states = fresh_states(setup)
  for prompts in PROMPTS * 2:
    old, (states, *_) = states, step(states, prompts)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.policy.params) + jax.tree.leaves(old.policy.opt_state))
  with Compilations() as compiled:
    step(states, PROMPTS[0])
  assert not compiled.names


def test_no_random_key_is_used_twice(one_device):
  setup, _ = one_device
  with jax.debug_key_reuse(True):
    states = fresh_states(setup)
    jax.make_jaxpr(functools.partial(programs.train_step, setup))(states, PROMPTS[0])
    with pytest.raises(jax.errors.KeyReuseError):  # the check does check
      jax.jit(lambda key: jax.random.uniform(key) + jax.random.normal(key))(jax.random.key(0))


def test_the_first_copy_is_read_from_its_device_alone():
  """A program over all devices for each leaf, beside a step in flight, has made XLA:CPU wait for ever."""
  tree = {"a": np.arange(6.0).reshape(2, 3), "n": np.float32(7)}
  copies = programs.replicate(tree)
  assert {a.shape for a in copies.values()} == {(8, 2, 3), (8,)}
  for one in (programs.unreplicate(copies), programs.unreplicate(jax.device_get(copies))):
    jax.tree.map(np.testing.assert_array_equal, one, tree)
  assert {d for a in programs.unreplicate(copies).values() for d in a.devices()} == {jax.local_devices()[0]}


def test_generate_leaves_the_parameters_usable():
  """Trap 12: evaluation must not donate what training goes on with."""
  setup = toy.setup()
  params = jax.tree.map(jnp.copy, toy.params())
  generate = programs.build_generate(setup, dataclasses.replace(setup.run.sampling, temperature=0.0))
  first = generate(params, PROMPTS[0], jax.random.key(0))
  second = generate(params, PROMPTS[0], jax.random.key(1))
  np.testing.assert_array_equal(first.token_NR, second.token_NR)  # greedy: the key does not matter
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_reference_follows():
  """frozen: the stage's start for ever; moving_average: decay * old + (1 - decay) * policy after each step."""
  over = {"algorithm__kl_coef": 0.1, "algorithm__reference_decay": 0.75}
  setup = toy.setup(**BASE, **over, algorithm__reference="moving_average")
  states, *_ = programs.build_train_step(setup)(fresh_states(setup), PROMPTS[0])
  expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, toy.params(), states.policy.params)
  assert toy.largest_difference(states.reference, expected) < 1e-6
  assert toy.largest_difference(states.reference, toy.params()) > 1e-3
  frozen = toy.setup(**BASE, **over, algorithm__reference="frozen")
  states = jax.eval_shape(programs.build_train_step(frozen), fresh_states(frozen), PROMPTS[0])[0]
  assert jax.tree.structure(states.reference) == jax.tree.structure(toy.params())
  kept = programs.follow(frozen, {"p": jnp.ones(2)}, {"p": jnp.zeros(2)})
  np.testing.assert_array_equal(kept["p"], 1)
  assert programs.init_states(toy.setup(), toy.params(), jax.random.key(0)).reference is None


def test_average_follows():
  """avg_t = d avg_(t-1) + (1 - d) params_t from the stage's start, of what is trained; cut as the parameters are."""
  model = dataclasses.replace(toy.MODEL, num_hidden_layers=1, lora_rank=2)
  setup = toy.setup(model=model, **BASE, optimizer__ema_decay=0.75)
  states, step = fresh_states(setup), programs.build_train_step(setup)
  expected, frozen = (jax.device_get(tree) for tree in lora.split(toy.params(model), model))
  for prompts in PROMPTS:
    states, *_ = step(states, prompts)
    trained = jax.device_get(lora.split(states.policy.params, model)[0])
    expected = jax.tree.map(lambda old, new: np.float64(0.75) * old + 0.25 * new, expected, trained)
  assert toy.largest_difference(states.average, expected) < 1e-6
  assert toy.largest_difference(states.average, trained) > 1e-3
  for use in ("evaluation", "export"):
    params = programs.params_for(setup, states, use)
    assert toy.largest_difference(lora.split(params, model)[0], expected) < 1e-6
    assert toy.largest_difference(lora.split(params, model)[1], frozen) == 0
  only_export = toy.setup(model=model, **BASE, optimizer__ema_decay=0.75, optimizer__ema_for=["export"])
  assert programs.params_for(only_export, states, "evaluation") is states.policy.params
  whole = toy.setup(**BASE, optimizer__ema_decay=0.75, parallel__data=2, parallel__fsdp=2, parallel__tensor=2)
  shardings = programs.state_shardings(whole)
  assert shardings.average == shardings.policy.params
  assert programs.init_states(toy.setup(), toy.params(), jax.random.key(0)).average is None
