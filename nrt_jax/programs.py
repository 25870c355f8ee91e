"""Every compiled program of a run. The one that matters is `train_step`: update ∘ collect, one XLA executable.

    train_step(states, prompts) -> (states, metrics, samples)

      collect   rollout weights -> prefill -> decode -> score the answer on the same caches -> rewards -> advantages
      update    for each minibatch: sum gradients over micro-batches, then one optimizer step

Nothing leaves the device in between. The same pure function runs as one program over a mesh (`jax.jit`) or with a
replicated state (`jax.pmap`, whose devices meet in `lax.psum`); both give the same numbers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nrt_jax import rows, sampler, scoring, sharding
from nrt_jax.algorithms import ALGORITHMS
from nrt_jax.algorithms.interface import Tools
from nrt_jax.arrays import Prompts, repeat_rows
from nrt_jax.config import RunConfig
from nrt_jax.model import ModelConfig, decoding_params
from nrt_jax.optimizer import learning_rate, make_optimizer
from nrt_jax.policy import abstract_params, param_shardings
from nrt_jax.prompts import PromptFormat
from nrt_jax.state import States, TrainState

DEVICES = "devices"  # the axis of pmap


class Setup(NamedTuple):
  """All that is fixed when a program is built."""

  run: RunConfig
  model: ModelConfig
  form: PromptFormat
  mesh: jax.sharding.Mesh | None  # None: one device, or pmap

  @property
  def algorithm(self):
    return ALGORITHMS[self.run.algorithm_name]

  @property
  def axis_name(self) -> str | None:
    return DEVICES if self.run.parallel.kind == "pmap" else None

  @property
  def samples_per_prompt(self) -> int:
    return self.run.samples_per_prompt if self.algorithm.samples_traces else 1


# ---------------------------------------------------------------------------------------------------------- collect


def rollout(setup: Setup, params, prompts: Prompts, key):
  """Samples traces, and scores each answer after its trace and after an empty trace, on the sampler's own caches.

  Runs in waves of `sampling.wave_prompts` prompts, so that the caches of a large step are bounded by one wave.
  Returns: Rollouts [N], AnswerScores after the trace [N], AnswerScores after an empty trace [B].
  """
  run, model, form, G = setup.run, setup.model, setup.form, setup.samples_per_prompt
  weights = rollout_weights(setup, params)

  def wave(prompts: Prompts):
    rollouts, context = sampler.sample(
      weights, model, run.sampling, form.stop_ids, form.pad_id, prompts, key, samples=G
    )
    answers = repeat_rows((prompts.answer_BA, prompts.answer_length_B, prompts.prompt_length_B), G)
    start_N = answers[2] + rollouts.length_N - rollouts.ended_N
    caches = (context.prompt_cache, context.trace_cache)
    with jax.named_scope("score_answer"):
      scores = scoring.score_answers(weights, model, form.marker_ids, *answers[:2], start_N, context.hidden_ND, caches)
    with jax.named_scope("score_empty_trace"):
      empty = _score_empty(setup, weights, prompts, context.prompt_hidden_BD, context.prompt_cache)
    return rollouts, scores, empty

  B = prompts.prompt_BP.shape[0]
  waves = B // run.sampling.wave_prompts if run.sampling.wave_prompts else 1
  if setup.axis_name and waves > 1:
    waves = max(1, waves // jax.device_count())  # each device has its share of the prompts
  if waves == 1:
    return wave(prompts)
  rollouts, scores, empty = jax.lax.map(wave, rows.cut_rows(prompts, waves))
  return *rows.join_groups((rollouts, scores), G), rows.join_rows(empty)


def rollout_weights(setup: Setup, params):
  """The policy as the decoding loop reads it. Gathered over `fsdp` once per step, or every token would gather it."""
  rules = sharding.DECODE_RULES if setup.run.parallel.rollout_weights == "gathered" else sharding.RULES
  with jax.named_scope("rollout_weights"):
    return decoding_params(params, setup.model, rules)


def _score_empty(setup: Setup, weights, prompts: Prompts, hidden_BD, cache):
  return scoring.score_answers(
    weights,
    setup.model,
    setup.form.marker_ids,
    prompts.answer_BA,
    prompts.answer_length_B,
    prompts.prompt_length_B,
    hidden_BD,
    (cache,),
  )


def score_empty_trace(setup: Setup, params, prompts: Prompts):
  """log c_base of other parameters than the policy's, say a frozen base: AnswerScores [B]."""
  weights = rollout_weights(setup, params)
  return _score_empty(setup, weights, prompts, *sampler.prefill(weights, setup.model, prompts))


def log_probs(setup: Setup, params, batch, entropy_gradient: bool = False):
  """Log-probability and entropy of each token of a TrainBatch: sampled tokens at the sampling temperature."""
  temperature = setup.run.sampling.temperature
  scale_NL = None if temperature == 1 else jnp.where(batch.sampled_mask_NL, 1 / temperature, 1.0)
  return scoring.row_log_probs(
    params, setup.model, batch.token_NL, batch.position_NL, batch.first, scale_NL, entropy_gradient
  )


def score_batch(setup: Setup, params, batch):
  """Log-probability of each token under other parameters, as many rows at a time as a micro-batch has: `[N, L]`."""
  pieces = setup.run.optimizer.minibatches * setup.run.parallel.micro_batches
  with jax.named_scope("score_batch"):
    if pieces == 1:
      return log_probs(setup, params, batch)[0]
    return rows.join_rows(jax.lax.map(lambda piece: log_probs(setup, params, piece)[0], rows.cut_rows(batch, pieces)))


def make_tools(setup: Setup) -> Tools:
  """What the algorithm may call inside the program."""
  axis = setup.axis_name
  return Tools(
    samples_per_prompt=setup.samples_per_prompt,
    minibatches=setup.run.optimizer.minibatches,
    marker_ids=setup.form.marker_ids,
    pad_id=setup.form.pad_id,
    rollout=functools.partial(rollout, setup),
    score_empty_trace=functools.partial(score_empty_trace, setup),
    log_probs=functools.partial(log_probs, setup),
    score_batch=functools.partial(score_batch, setup),
    all_sum=(lambda x: jax.lax.psum(x, axis)) if axis else lambda x: x,
  )


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

  def loss(params, micro_batch):
    sums = algorithm.loss(tools, run.algorithm, params, micro_batch)
    return sums.total, sums.metrics

  def gradients(params, minibatch):
    grad = jax.grad(loss, has_aux=True)
    pieces = run.parallel.micro_batches
    if pieces == 1:
      return grad(params, minibatch)
    micro_batches = rows.cut_rows(minibatch, pieces)
    first, rest = jax.tree.map(lambda a: a[0], micro_batches), jax.tree.map(lambda a: a[1:], micro_batches)

    def accumulate(carry, micro_batch):
      grads, sums = grad(params, micro_batch)
      return (jax.tree.map(jnp.add, carry[0], grads), add_sums(carry[1], sums)), None

    return jax.lax.scan(accumulate, grad(params, first), rest)[0]

  def one_update(carry, minibatch):
    params, opt_state, done = carry
    with jax.named_scope("gradients"):
      grads, sums = gradients(params, minibatch)
    grads = tools.all_sum(grads)
    with jax.named_scope("optimizer"):
      changes, opt_state = optimizer.update(grads, opt_state, params)
      params = optax.apply_updates(params, changes)
    sums = _gather_sums(setup, sums)
    sums["optimizer/grad_norm"] = (optax.tree.norm(grads), 1.0)
    sums["optimizer/lr"] = (jnp.float32(learning_rate(run.optimizer, run.total_steps)(done)), 1.0)
    return (params, opt_state, done + 1), sums

  carry = (state.params, state.opt_state, state.updates)
  if run.optimizer.minibatches == 1:
    carry, sums = one_update(carry, batch)
  else:
    minibatches = rows.cut_groups(batch, run.optimizer.minibatches, setup.samples_per_prompt)
    carry, each = jax.lax.scan(one_update, carry, minibatches)
    sums = {
      name: jnp.max(value) if name.endswith("_max") else jax.tree.map(jnp.sum, value) for name, value in each.items()
    }
  params, opt_state, updates = carry
  return TrainState(state.step + 1, updates, params, opt_state, state.key), sums


def train_step(setup: Setup, states: States, prompts: Prompts):
  """One step of training: see the module's docstring. Pure; jitted or pmapped by `build`."""
  tools = make_tools(setup)
  key = jax.random.fold_in(states.policy.key, states.policy.step)
  with jax.named_scope("collect"):
    batch, sums, samples, memory = setup.algorithm.collect(tools, setup.run.algorithm, states, prompts, key)
  with jax.named_scope("update"):
    policy, update_sums = update(setup, tools, states.policy, batch)
  sums = {**sums, "tokens/trained": jnp.sum(batch.position_NL >= 0)}
  metrics = _divide({**_gather_sums(setup, sums), **update_sums})
  keep = setup.run.logging.samples_per_step * setup.samples_per_prompt
  samples = jax.tree.map(lambda a: a[: keep : setup.samples_per_prompt], samples)
  reference = follow(setup, states.reference, policy.params)
  return States(policy, reference, memory), metrics, samples


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
  policy = TrainState(jnp.int32(step), jnp.int32(0), params, optimizer.init(params), key)
  reference = None if reference_kind(setup) == "none" else jax.tree.map(jnp.copy, params)
  return States(policy, reference, setup.algorithm.memory(setup.run.algorithm))


def abstract_states(setup: Setup) -> States:
  """Shapes and dtypes of the states: what a checkpoint of this stage holds."""
  return jax.eval_shape(functools.partial(init_states, setup), abstract_params(setup.model), jax.random.key(0))


def state_shardings(setup: Setup):
  """How the mesh cuts the states: optimizer moments like the parameters they belong to, all else replicated."""
  if setup.mesh is None:
    return None
  everywhere = sharding.replicated(setup.mesh)
  params = param_shardings(setup.model, setup.mesh)
  states = abstract_states(setup)
  opt_state = optax.tree_map_params(
    make_optimizer(setup.run.optimizer, setup.run.total_steps),
    lambda _, cut: cut,
    states.policy.opt_state,
    params,
    transform_non_params=lambda _: everywhere,
  )
  policy = TrainState(everywhere, everywhere, params, opt_state, everywhere)
  memory = jax.tree.map(lambda _: everywhere, states.memory)
  return States(policy, None if states.reference is None else params, memory)


# ---------------------------------------------------------------------------------------------------------- programs


def build_train_step(setup: Setup):
  """The compiled step: callable (states, prompts) -> (states, metrics, samples); `states` is donated."""
  step = functools.partial(train_step, setup)
  if setup.axis_name:
    return jax.pmap(step, axis_name=DEVICES, donate_argnums=0)
  if setup.mesh is None:
    return jax.jit(step, donate_argnums=0)
  states, everywhere = state_shardings(setup), sharding.replicated(setup.mesh)
  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(states, sharding.rows_sharding(setup.mesh)),
    out_shardings=(states, everywhere, everywhere),
  )


def build_generate(setup: Setup, sampling: sampler.SamplingConfig, samples: int = 1):
  """Completions for evaluation: (params, prompts, key) -> Rollouts that end at an end token, not at the marker."""
  stop_ids = tuple(i for i in setup.form.stop_ids if i != setup.form.marker_ids[0])

  def generate(params, prompts, key):
    weights = rollout_weights(setup, params)
    return sampler.sample(weights, setup.model, sampling, stop_ids, setup.form.pad_id, prompts, key, samples)[0]

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
