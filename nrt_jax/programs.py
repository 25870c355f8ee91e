"""Every compiled program of a run. The one that matters is `train_step`: update ∘ collect, one XLA executable.

    train_step(states, prompts) -> (states, metrics, samples)

      collect   rollout weights -> prefill -> decode -> score the answer on the same caches -> rewards -> advantages
      update    for each minibatch: sum gradients over micro-batches, then one optimizer step

Nothing leaves the device in between. The same pure function runs as one program over a mesh (`jax.jit`) or with a
replicated state (`jax.pmap`, whose devices meet in `lax.psum`); both give the same numbers.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from nrt_jax import lora, rows, sampler, sharding
from nrt_jax.algorithms.interface import Collected, Tools
from nrt_jax.arrays import Prompts
from nrt_jax.optimizer import learning_rate, make_optimizer
from nrt_jax.policy import abstract_params, param_shardings
from nrt_jax.state import States, TrainState
from nrt_jax.tools import DEVICES, Setup, completion_stops, make_tools, rollout_weights

# ----------------------------------------------------------------------------------------------------------- update


def add_sums(left: dict, right: dict) -> dict:
  """Adds metrics: pairs and plain numbers by sum, names that end in "_max" by max."""
  return {
    name: jnp.maximum(left[name], right[name])
    if name.endswith("_max")
    else jax.tree.map(jnp.add, left[name], right[name])
    for name in left
  }


def _gather_sums(setup: Setup, sums: dict) -> dict:
  """Metrics over all devices of a pmap, plain sums turned into (sum, 1) pairs; nothing to gather under jit."""
  axis = setup.axis_name
  gathered = {}
  for name, value in sums.items():
    if name.endswith("_max"):
      gathered[name] = jax.lax.pmax(value, axis) if axis else value
    else:
      value = jax.tree.map(lambda v: jax.lax.psum(jnp.float32(v), axis), value) if axis else value
      gathered[name] = value if isinstance(value, tuple) else (value, 1.0)
  return gathered


def _divide(sums: dict) -> dict:
  """The one division: numerator / denominator, 0 where nothing was counted."""
  return {
    name: jnp.float32(value) if name.endswith("_max") else value[0] / jnp.where(value[1] == 0, 1, value[1])
    for name, value in sums.items()
  }


def update(setup: Setup, tools: Tools, state: TrainState, batch) -> tuple[TrainState, dict]:
  """One optimizer step per minibatch of the rollout; returns the new state and the metric sums."""
  run, algorithm = setup.run, setup.algorithm
  optimizer = make_optimizer(run.optimizer, run.total_steps)

  trainable, frozen = lora.split(state.params, setup.model)

  def loss(trainable, micro_batch):
    sums = algorithm.loss(tools, run.algorithm, lora.join(trainable, frozen), micro_batch)
    return sums.total, sums.metrics

  def gradients(trainable, minibatch):
    grad = functools.partial(jax.grad(loss, has_aux=True), trainable)
    pieces = run.parallel.micro_batches
    if pieces == 1:
      return grad(minibatch)
    micro_batches = rows.cut_groups(minibatch, pieces, setup.rows_together)
    first, rest = jax.tree.map(lambda a: a[0], micro_batches), jax.tree.map(lambda a: a[1:], micro_batches)

    def accumulate(carry, micro_batch):
      grads, sums = grad(micro_batch)
      return (jax.tree.map(jnp.add, carry[0], grads), add_sums(carry[1], sums)), None

    return jax.lax.scan(accumulate, grad(first), rest)[0]

  def one_update(carry, minibatch):
    trainable, opt_state, done = carry
    with jax.named_scope("gradients"):
      grads, sums = gradients(trainable, minibatch)
    grads = tools.all_sum(grads)
    with jax.named_scope("optimizer"):
      changes, opt_state = optimizer.update(grads, opt_state, trainable)
      trainable = optax.apply_updates(trainable, changes)
    sums = _gather_sums(setup, sums)
    sums["optimizer/grad_norm"] = (optax.tree.norm(grads), 1.0)
    sums["optimizer/lr"] = (jnp.float32(learning_rate(run.optimizer, run.total_steps)(done)), 1.0)
    return (trainable, opt_state, done + 1), sums

  carry = (trainable, state.opt_state, state.updates)
  if run.optimizer.minibatches == 1:
    carry, sums = one_update(carry, batch)
  else:
    minibatches = rows.cut_groups(batch, run.optimizer.minibatches, setup.rows_per_prompt)
    carry, each = jax.lax.scan(one_update, carry, minibatches)
    sums = {
      name: jnp.max(value) if name.endswith("_max") else jax.tree.map(jnp.sum, value) for name, value in each.items()
    }
  trainable, opt_state, updates = carry
  return TrainState(state.step + 1, updates, lora.join(trainable, frozen), opt_state, state.key), sums


def train_step(setup: Setup, states: States, prompts: Prompts, graded=None):
  """One step of training: see the module's docstring. Pure; jitted or pmapped by `build_train_step`.

  graded: where the verifier runs on the host, the Rollouts that `complete` sampled, and the label of each.
  """
  tools = step_tools(setup, graded)
  batch, sums, samples, memory = collect(setup, tools, states, prompts)
  with jax.named_scope("update"):
    policy, update_sums = update(setup, tools, states.policy, batch)
  sums = {**sums, "tokens/trained": jnp.sum(batch.position_NL >= 0)}
  metrics = _divide({**_gather_sums(setup, sums), **update_sums})
  keep = setup.run.logging.samples_per_step * setup.samples_per_prompt
  samples = jax.tree.map(lambda a: a[: keep : setup.samples_per_prompt], samples)
  reference = follow(setup, states.reference, lora.split(policy.params, setup.model)[0])
  return States(policy, reference, states.memory if memory is None else memory), metrics, samples


def step_tools(setup: Setup, graded=None) -> Tools:
  """The tools of a step; with `graded`, completions are those that the host has graded."""
  tools = make_tools(setup)
  if graded is None:
    return tools
  return tools._replace(complete=lambda *_: (graded[0], None, None), host_label_N=graded[1])


def collect(setup: Setup, tools: Tools, states: States, prompts: Prompts) -> Collected:
  """The step up to the update: rollouts, rewards and advantages, as the rows to train on."""
  _, frozen = lora.split(states.policy.params, setup.model)
  whole = states if states.reference is None else states.replace(reference=lora.join(states.reference, frozen))
  with jax.named_scope("collect"):
    return setup.algorithm.collect(tools, setup.run.algorithm, whole, prompts, step_key(states))


def complete(setup: Setup, states: States, prompts: Prompts):
  """The Rollouts that `train_step` would sample, for a grader on the host: the step up to the grading call."""
  return make_tools(setup).complete(states.policy.params, prompts, step_key(states))[0]


def step_key(states: States):
  """All random numbers of a step come from this: a resumed run draws the same."""
  return jax.random.fold_in(states.policy.key, states.policy.step)


def follow(setup: Setup, reference, params):
  """The reference after a step: as it was, or a moving average that follows the policy."""
  if reference_kind(setup) != "moving_average":
    return reference
  decay = setup.run.algorithm.reference_decay
  return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, reference, params)


def reference_kind(setup: Setup) -> str:
  """none | frozen | moving_average."""
  return getattr(setup.run.algorithm, "reference", "none")


# ------------------------------------------------------------------------------------------------------------ states


def init_states(setup: Setup, params, key, step=0) -> States:
  """The states at the start of a stage: a fresh optimizer; parameters, key and step number go on from the last one."""
  optimizer = make_optimizer(setup.run.optimizer, setup.run.total_steps)
  trainable, _ = lora.split(params, setup.model)
  policy = TrainState(jnp.int32(step), jnp.int32(0), params, optimizer.init(trainable), key)
  reference = None if reference_kind(setup) == "none" else jax.tree.map(jnp.copy, trainable)
  return States(policy, reference, setup.algorithm.memory(setup.run.algorithm))


def abstract_states(setup: Setup) -> States:
  """Shapes and dtypes of the states: what a checkpoint of this stage holds."""
  key = jax.eval_shape(jax.random.key, 0)
  return jax.eval_shape(functools.partial(init_states, setup), abstract_params(setup.model), key)


def state_shardings(setup: Setup):
  """How the mesh cuts the states: optimizer moments like the parameters they belong to, all else replicated."""
  if setup.mesh is None:
    return None
  everywhere = sharding.replicated(setup.mesh)
  params = param_shardings(setup.model, setup.mesh)
  trainable, _ = lora.split(params, setup.model)
  states = abstract_states(setup)
  opt_state = optax.tree_map_params(
    make_optimizer(setup.run.optimizer, setup.run.total_steps),
    lambda _, cut: cut,
    states.policy.opt_state,
    trainable,
    transform_non_params=lambda _: everywhere,
  )
  policy = TrainState(everywhere, everywhere, params, opt_state, everywhere)
  memory = jax.tree.map(lambda _: everywhere, states.memory)
  return States(policy, None if states.reference is None else trainable, memory)


# ---------------------------------------------------------------------------------------------------------- programs


def build_train_step(setup: Setup):
  """The compiled step: callable (states, prompts) -> (states, metrics, samples); `states` is donated.

  With a verifier on the host, (states, prompts, graded): see `train_step`, and host_grading.py, which runs it.
  """
  step = functools.partial(train_step, setup)
  if setup.axis_name:
    return jax.pmap(step, axis_name=DEVICES, donate_argnums=0)
  if setup.mesh is None:
    return jax.jit(step, donate_argnums=0)
  states, everywhere = state_shardings(setup), sharding.replicated(setup.mesh)
  by_rows = sharding.rows_sharding(setup.mesh)
  inputs = (states, by_rows, by_rows) if setup.grades_on_host else (states, by_rows)
  return jax.jit(step, donate_argnums=0, in_shardings=inputs, out_shardings=(states, everywhere, everywhere))


def build_complete(setup: Setup):
  """The first half of a step whose verifier runs on the host: callable (states, prompts) -> Rollouts, cut by rows."""
  step = functools.partial(complete, setup)
  if setup.axis_name:
    return jax.pmap(step, axis_name=DEVICES)
  if setup.mesh is None:
    return jax.jit(step)
  by_rows = sharding.rows_sharding(setup.mesh)
  return jax.jit(step, in_shardings=(state_shardings(setup), by_rows), out_shardings=by_rows)


def build_generate(setup: Setup, sampling: sampler.SamplingConfig, samples: int = 1):
  """Completions for evaluation: (params, prompts, key) -> Rollouts that end at an end token, not at the marker."""
  stop_ids = completion_stops(setup.form)

  def generate(params, prompts, key):
    weights = rollout_weights(setup, params)
    return sampler.sample(weights, setup.decoder, sampling, stop_ids, setup.form.pad_id, prompts, key, samples)[0]

  if setup.mesh is None:
    return jax.jit(generate)
  everywhere, by_rows = sharding.replicated(setup.mesh), sharding.rows_sharding(setup.mesh)
  params = param_shardings(setup.model, setup.mesh)
  return jax.jit(generate, in_shardings=(params, by_rows, everywhere), out_shardings=everywhere)


def replicate(tree):
  """Copies a tree onto every local device with a leading device axis, for pmap."""
  copy = jax.pmap(lambda tree, _: tree, in_axes=(None, 0))
  return copy(tree, jnp.arange(jax.local_device_count()))


def unreplicate(tree):
  """The first device's copy."""
  return jax.tree.map(lambda a: a[0], tree)
