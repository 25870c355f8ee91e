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

from nrt_jax import sharding
from nrt_jax.algorithms import rlvr
from nrt_jax.algorithms.interface import Collected, Tools
from nrt_jax.arrays import Prompts
from nrt_jax.config import RunConfig
from nrt_jax.data.prompts import completion_stops
from nrt_jax.model import lora
from nrt_jax.optimizers.update_rule import make_optimizer
from nrt_jax.rollout import draws, sampler
from nrt_jax.step import movement, offload
from nrt_jax.step.policy import abstract_params, param_shardings
from nrt_jax.step.setup import DEVICES, Setup
from nrt_jax.step.state import States, TrainState
from nrt_jax.step.throughput import count_tokens
from nrt_jax.step.tools import make_tools, rollout_weights, score_empty, score_wave
from nrt_jax.step.update import choose, gather_sums, update

# ------------------------------------------------------------------------------------------------------------- step


def train_step(setup: Setup, states: States, prompts: Prompts, graded=None):
  """One step of training: see the module's docstring. Pure; jitted or pmapped by `build_train_step`.

  graded: where the verifier runs on the host, the Rollouts that `complete` sampled, the label of each, and where groups
  were drawn again the metric sums of all that was drawn (else None).
  """
  tools = step_tools(setup, graded)
  batch, sums, samples, memory, critic_batch = collect(setup, tools, states, prompts)
  critic = states.critic
  with jax.named_scope("update"):
    if critic is None:
      policy, update_sums = update(setup, tools, states.policy, batch)
    else:
      policy, update_sums = update_role("policy", setup, tools, states.policy, batch)
      critic, critic_sums = update_role("critic", setup, tools, with_frozen(setup, critic, states.policy), critic_batch)
      critic = critic.replace(params=lora.split(critic.params, setup.model)[0])
      update_sums |= {name if name.startswith("critic/") else f"critic/{name}": v for name, v in critic_sums.items()}
  sums = {**sums, **count_tokens(setup, prompts, batch, critic_batch)}
  metrics = _divide({**gather_sums(setup, sums), **update_sums})
  keep = setup.run.logging.samples_per_step * setup.samples_per_prompt
  samples = movement.add(setup, states, jax.tree.map(lambda a: a[: keep : setup.samples_per_prompt], samples))
  trainable, _ = lora.split(policy.params, setup.model)
  moved = policy.updates != states.policy.updates  # else every update was skipped, and nothing follows
  reference, average = follow(setup, states.reference, trainable, moved), states.average
  critic_reference = states.critic_reference
  if critic_reference is not None:
    critic_moved = critic.updates != states.critic.updates
    critic_reference = follow(setup, critic_reference, critic.params, critic_moved)
  if average is not None:
    average = blended(setup, "average", setup.run.optimizer.ema_decay, average, trainable, moved)
  memory = states.memory if memory is None else choose(moved, memory, states.memory)
  return States(policy, reference, memory, critic, critic_reference, average), metrics, samples


def update_role(role: str, setup: Setup, tools: Tools, state: TrainState, batch):
  """`update` on the rows of one role alone."""
  own = tools.for_role(role)
  return update(setup._replace(role=role), own, state, batch)


def with_frozen(setup: Setup, critic: TrainState, policy: TrainState) -> TrainState:
  """The critic's state with all of its parameters: with adapters, it shares the policy's frozen ones."""
  return critic.replace(params=lora.join(critic.params, lora.split(policy.params, setup.model)[1]))


def step_tools(setup: Setup, graded=None) -> Tools:
  """The tools of a step; with `graded`, completions are those that the host has graded."""
  tools = make_tools(setup)
  if graded is None:
    return tools
  rollouts, label_N, sums = graded

  def draw(prompts, attempt):
    made = attempt(prompts)
    return prompts, made.sampled, made.sums if sums is None else sums

  return tools._replace(complete=lambda *_: (rollouts, None, None), host_label_N=label_N, draw=draw)


def collect(setup: Setup, tools: Tools, states: States, prompts: Prompts) -> Collected:
  """The step up to the update: rollouts, rewards and advantages, as the rows to train on."""
  _, frozen = lora.split(states.policy.params, setup.model)
  whole = states
  if states.reference is not None:
    reference = offload.fetch(setup, "reference", states.reference)
    whole = states.replace(reference=lora.join(reference, frozen))
  if states.critic is not None:
    whole = whole.replace(critic=with_frozen(setup, states.critic, states.policy))
  if states.critic_reference is not None:
    reference = offload.fetch(setup, "reference", states.critic_reference)
    whole = whole.replace(critic_reference=lora.join(reference, frozen))
  with jax.named_scope("collect"):
    return setup.algorithm.collect(tools, setup.run.algorithm, whole, prompts, step_key(states))


def complete(setup: Setup, states: States, prompts: Prompts):
  """The Rollouts that `train_step` would sample, for a grader on the host: the step up to the grading call."""
  return make_tools(setup).complete(states.policy.params, prompts, step_key(states))[0]


def step_key(states: States):
  """All random numbers of a step come from this: a resumed run draws the same."""
  return jax.random.fold_in(states.policy.key, states.policy.step)


def follow(setup: Setup, reference, params, moved=True):
  """The reference after a step: as it was, or a moving average that follows the policy, if that has moved."""
  if reference_kind(setup) != "moving_average":
    return reference
  return blended(setup, "reference", setup.run.algorithm.reference_decay, reference, params, moved)


def blended(setup: Setup, part: str, decay: float, old, new, moved=True):
  """`blend` of a part of the state that may wait in the host's memory, and does so again afterwards."""
  old = offload.fetch(setup, part, old)
  return offload.store(setup, part, choose(moved, blend(decay, old, new), old))


def blend(decay: float, old, new):
  """One step of a moving average of parameters."""
  return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, old, new)


def params_for(setup: Setup, states: States, use: str):
  """The policy's parameters for one of optimizer.AVERAGE_USES: averaged where the config says so, else as trained."""
  if not averages(setup.run, use):
    return states.policy.params
  average = states.average
  if setup.mesh is not None:
    average = jax.device_put(average, lora.split(param_shardings(setup.model, setup.mesh), setup.model)[0])
  return lora.join(average, lora.split(states.policy.params, setup.model)[1])


def averages(run: RunConfig, use: str) -> bool:
  """Whether averaged parameters exist and are meant for this use."""
  return run.optimizer.ema_decay > 0 and use in run.optimizer.ema_for


def reference_kind(setup: Setup) -> str:
  """none | frozen | moving_average."""
  return getattr(setup.run.algorithm, "reference", "none")


def _divide(sums: dict) -> dict:
  """The one division: numerator / denominator, 0 where nothing was counted."""
  return {
    name: jnp.float32(value) if name.endswith("_max") else value[0] / jnp.where(value[1] == 0, 1, value[1])
    for name, value in sums.items()
  }


# ------------------------------------------------------------------------------------------------------------ states


def init_states(setup: Setup, params, key, step=0, critic_params=None) -> States:
  """The states at the start of a stage: a fresh optimizer; parameters, key and step number go on from the last one.

  critic_params: the trainable parameters that a critic of its own starts from; None: the policy's.
  """
  optimizer = make_optimizer(setup.run.optimizer, setup.run.total_steps)
  trainable, _ = lora.split(params, setup.model)
  policy = TrainState(jnp.int32(step), jnp.int32(0), params, optimizer.init(trainable), key)
  reference = None if reference_kind(setup) == "none" else jax.tree.map(jnp.copy, trainable)
  average = jax.tree.map(jnp.copy, trainable) if setup.run.optimizer.ema_decay else None
  critic = critic_reference = None
  if own_critic(setup):
    own = jax.tree.map(jnp.copy, trainable if critic_params is None else critic_params)
    own_key = jax.random.fold_in(key, 1)  # never read: the policy's is the run's; no two leaves are one buffer
    critic = TrainState(jnp.int32(step), jnp.int32(0), own, optimizer.init(own), own_key)
    critic_reference = None if reference is None else jax.tree.map(jnp.copy, own)
  memory = setup.algorithm.memory(setup.run.algorithm, setup.critic)
  return States(policy, reference, memory, critic, critic_reference, average)


def own_critic(setup: Setup) -> bool:
  """Whether the critic is a model of its own."""
  return setup.algorithm.has_critic and setup.run.algorithm.critic.own_weights


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
    lambda moment, cut: sharding.where_it_divides(cut, moment.shape),  # scales of blocks are fewer than parameters
    states.policy.opt_state,
    trainable,
    transform_non_params=lambda _: everywhere,
  )
  policy = TrainState(everywhere, everywhere, params, opt_state, everywhere)
  memory = jax.tree.map(lambda _: everywhere, states.memory)
  placed = functools.partial(offload.shardings, setup)
  policy = policy.replace(opt_state=placed("optimizer", states.policy.opt_state, opt_state))
  parts = {"reference": states.reference, "critic_reference": states.critic_reference, "average": states.average}
  reference, critic_reference, average = (
    None if tree is None else placed(part.removeprefix("critic_"), tree, trainable) for part, tree in parts.items()
  )
  critic = None
  if states.critic is not None:
    own = placed("optimizer", states.critic.opt_state, opt_state)
    critic = TrainState(everywhere, everywhere, trainable, own, everywhere)
  return States(policy, reference, memory, critic, critic_reference, average)


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
  inputs = (states, by_rows, (by_rows, by_rows, everywhere)) if setup.grades_on_host else (states, by_rows)
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


def build_draws(setup: Setup):
  """What runs between `complete` and the step where the host's verdicts decide which groups are drawn again.

  Returns: part(prompts [K * B], number) -> prompts [B], those of a draw; start(prompts, rollouts, label_N) -> a Kept of
  their shapes that keeps nothing yet; add(Kept, prompts, rollouts, label_N) -> (Kept, whether all groups vary, the
  step's arguments after the states).
  """
  axis, G = setup.axis_name, setup.samples_per_prompt

  def part(prompts, number):
    return draws.part(prompts, setup.max_draws, number)

  def judged(rollouts, label_N):
    return rlvr.judged(make_tools(setup), setup.run.algorithm, rollouts, label_N)

  def start(prompts, rollouts, label_N):
    return draws.nothing(prompts, judged(rollouts, label_N), G)

  def add(kept, prompts, rollouts, label_N):
    kept = draws.add(kept, prompts, judged(rollouts, label_N), G, axis)
    return kept, draws.full(kept, axis), (kept.prompts, (*draws.flat(kept), draws.metrics(kept, axis)))

  if axis:
    by_device = functools.partial(jax.pmap, axis_name=axis)
    return by_device(part, in_axes=(0, None)), by_device(start), by_device(add)
  if setup.mesh is None:
    return jax.jit(part), jax.jit(start), jax.jit(add)
  everywhere, by_rows = sharding.replicated(setup.mesh), sharding.rows_sharding(setup.mesh)
  kept = draws.Kept(by_rows, by_rows, by_rows, everywhere, everywhere, everywhere)
  arguments = (by_rows, (by_rows, by_rows, everywhere))
  start, add = jax.jit(start, out_shardings=kept), jax.jit(add, out_shardings=(kept, everywhere, arguments))
  return jax.jit(part, out_shardings=by_rows), start, add


def build_generate(setup: Setup, sampling: sampler.SamplingConfig, samples: int = 1):
  """Completions for evaluation: (params, prompts, key) -> Rollouts that end at an end token, not at the marker."""

  def generate(params, prompts, key):
    return sample_completions(setup, rollout_weights(setup, params), sampling, prompts, key, samples)[0]

  return _for_evaluation(setup, generate)


def build_evaluate(setup: Setup, sampling: sampler.SamplingConfig, samples: int = 1):
  """Completions of each prompt, and how likely each makes the reference answer, on the same caches.

  (params, prompts, key) -> (Rollouts, AnswerScores in the place of the own answer, AnswerScores after an empty trace);
  a completion without marker is all trace, behind which the marker is put in by force.
  """

  def evaluate(params, prompts, key):
    weights = rollout_weights(setup, params)
    rollouts, context = sample_completions(setup, weights, sampling, prompts, key, samples)
    rollouts, scores = score_wave(setup, weights, True, prompts, rollouts, context)
    return rollouts, scores, score_empty(setup, weights, prompts, context.prompt_hidden_BD, context.prompt_cache)

  return _for_evaluation(setup, evaluate)


def sample_completions(setup: Setup, weights, sampling: sampler.SamplingConfig, prompts: Prompts, key, samples: int):
  """Whole completions as `sampling` has them, not as the training does: (Rollouts, Context)."""
  how = (sampling, completion_stops(setup.form), setup.form.pad_id)
  return sampler.sample(weights, setup.decoder, *how, prompts, key, samples, setup.environment)


def _for_evaluation(setup: Setup, program):
  """The program jitted: parameters and prompts cut by the mesh, if there is one, and results on every device."""
  if setup.mesh is None:
    return jax.jit(program)
  everywhere, by_rows = sharding.replicated(setup.mesh), sharding.rows_sharding(setup.mesh)
  params = param_shardings(setup.model, setup.mesh)
  return jax.jit(program, in_shardings=(params, by_rows, everywhere), out_shardings=everywhere)


def replicate(tree):
  """Copies a tree onto every local device with a leading device axis, for pmap."""
  # Under the name that a step's outputs have, or whatever reads either would be compiled for both.
  copy = jax.pmap(lambda tree, _: tree, axis_name=DEVICES, in_axes=(None, 0))
  return copy(tree, jnp.arange(jax.local_device_count()))


def unreplicate(tree):
  """The first device's copy, read from that device alone; of arrays on the host, too.

  Indexing would run a collective for each leaf: beside those of a step in flight, XLA:CPU can wait for ever.
  """
  first = lambda a: a.addressable_shards[0].data.reshape(a.shape[1:]) if isinstance(a, jax.Array) else a[0]
  return jax.tree.map(first, tree)
