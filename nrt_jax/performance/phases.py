"""Times the phases of a step as separate programs, built from the same functions as the step.

They run on the run's own states and batch. XLA can neither fuse nor overlap anything across phases, and values pass
between them through memory, so their sum may differ from the step.
"""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import rows, sharding
from nrt_jax.algorithms.interface import draw_once
from nrt_jax.model import costs
from nrt_jax.rollout import sampler
from nrt_jax.step import host_grading, programs, tools
from nrt_jax.step.setup import DEVICES, Setup
from nrt_jax.step.state import States
from nrt_jax.step.throughput import count_tokens
from nrt_jax.step.update import update

ROLLOUT = ("rollout", "complete")  # the tools that sample; they are timed in parts


class Phase(NamedTuple):
  """Measurements of one phase, totaled over a step."""

  seconds: list  # one per repeat
  tokens: float | None = None  # tokens that it processes
  moved: float | None = None  # bytes that it must read, over all devices


class Measured(NamedTuple):
  """All phases of a step on one batch."""

  phases: dict  # name -> Phase, in the order of the step
  tokens: dict  # as throughput.model_flops takes them
  states: object  # after the updates


def measure(setup: Setup, states, prompts, present: tuple, repeats: int, grading=None) -> Measured:
  """Times the step's work on `prompts`, or, if it may draw again, on those of its first draw. `states` is donated.

  present: throughput.PHASES that the compiled step has; grading: (compiled `complete`, tokenizer, grade) if the
  verifier runs on the host.
  """
  phases, graded = {}, ()
  if setup.max_draws > 1:
    prompts = programs.build_draws(setup)[0](prompts, 0)
  if grading is not None:
    complete, tokenizer, grade = grading
    rollouts = complete(states, prompts)
    label = functools.partial(host_grading.label_rows, setup, tokenizer, grade, prompts, rollouts)
    seconds, labels = repeat(label, repeats)
    phases["host_grading"] = Phase(seconds)
    graded = ((rollouts, labels, None),)
  (batch, critic_batch), calls, counts = collector(setup, states, prompts, *graded)(states, prompts, *graded)
  tokens = {name.removeprefix("tokens/"): float(np.sum(value)) for name, value in counts.items()}
  sampled = [name for name in ROLLOUT if name in calls]
  if sampled:
    of_rollout, tokens["generated"] = sampling_phases(setup, states, calls[sampled[0]], sampled[0], present, repeats)
    phases = of_rollout | phases
  if "sample" in calls:
    phases["critic"] = critic_phase(setup, states, calls["sample"], tokens["critic_generated"], repeats)
  for name in ("score_batch", "score_start"):
    if name in present and name in calls:
      program = build(setup, functools.partial(score_rows, setup, name), states.policy.params, calls[name])
      seconds, _ = repeat(functools.partial(program, states.policy.params, calls[name]), repeats)
      phases[name] = Phase(seconds, tokens["trained"])
  if critic_batch is not None:  # first, for it may read what the policy's update donates
    own, state = setup._replace(role="critic"), programs.with_frozen(setup, states.critic, states.policy)
    state = jax.tree.map(jnp.copy, state)
    phases["update_critic"] = Phase(update_seconds(own, state, critic_batch, repeats)[0])
    setup = setup._replace(role="policy")
  seconds, policy = update_seconds(setup, states.policy, batch, repeats)
  phases["update"] = Phase(seconds, tokens["trained"])
  return Measured(phases, tokens, states.replace(policy=policy))


def critic_phase(setup: Setup, states, prompts, generated: float, repeats: int) -> Phase:
  """Sampling the verdicts on these prompts of the critic, its own weights or the policy's."""
  role = setup.run.algorithm.role()
  state = states.policy if states.critic is None else programs.with_frozen(setup, states.critic, states.policy)
  small = States(states.policy.replace(params=None, opt_state=None))  # all that a step's key depends on

  def sample(params, small, prompts):
    return tools.sample_role(setup, params, prompts, programs.step_key(small), role)

  arguments = (state.params, small, prompts)
  program = build(setup, sample, *arguments)
  return Phase(repeat(functools.partial(program, *arguments), repeats)[0], generated)


# ----------------------------------------------------------------------------------------------------------- programs


def build(setup: Setup, function, *arguments, donate=(), **shardings):
  """Compiles `function` for these arguments in the same way as the step: pmapped, or one program over the mesh."""
  if setup.axis_name:
    program = jax.pmap(function, axis_name=DEVICES, donate_argnums=donate)
  else:
    program = jax.jit(function, donate_argnums=donate, **shardings)
  return program.lower(*arguments).compile()


def repeat(run, repeats: int) -> tuple[list, object]:
  """Seconds of each of `repeats` runs, after one that is not counted; and the result of the last."""
  seconds, out = [], None
  for number in range(repeats + 1):
    out = None  # frees its memory for the next run
    start = time.perf_counter()
    out = jax.block_until_ready(run())
    seconds += [time.perf_counter() - start] if number else []
  return seconds, out


def collector(setup: Setup, *arguments):
  """`collect`, compiled."""
  shardings = {}
  if setup.mesh is not None:
    by_rows, everywhere = sharding.rows_sharding(setup.mesh), sharding.replicated(setup.mesh)
    shardings["out_shardings"] = (by_rows, by_rows, everywhere)
  return build(setup, functools.partial(collect, setup), *arguments, **shardings)


def collect(setup: Setup, states, prompts, graded=None):
  """(TrainBatch, arguments of the tools that the algorithm called, token counts) of one draw of prompts."""
  calls = {}
  step_tools = programs.step_tools(setup, graded)

  def recorded(name):
    def call(params, rows_, *rest):
      if name in ROLLOUT:
        calls[name] = first_wave(setup, rows_)
      else:
        calls[name] = rows_ if name == "sample" else [*calls.get(name, ()), rows_]
      return getattr(step_tools, name)(params, rows_, *rest)

    return call

  recording = {name: recorded(name) for name in (*ROLLOUT, "sample", "score_batch", "score_start")}
  made = programs.collect(setup, step_tools._replace(**recording, draw=draw_once), states, prompts)
  counts = count_tokens(setup, prompts, made.batch, made.critic)
  counts |= {name: value for name, value in made.sums.items() if name.startswith("tokens/critic_")}
  return (made.batch, made.critic), calls, counts


def first_wave(setup: Setup, prompts):
  count = setup.waves
  return prompts if count == 1 else jax.tree.map(lambda a: a[0], rows.cut_rows(prompts, count))


def score_rows(setup: Setup, name: str, params, batches):
  return [getattr(tools, name)(setup, params, batch) for batch in batches]


def update_seconds(setup: Setup, policy, batch, repeats: int):
  """Seconds of each update, and the state after them; each state is donated to the next update."""

  def one(policy, batch):
    return update(setup, programs.step_tools(setup), policy, batch)[0]

  program, at = build(setup, one, policy, batch, donate=0), [policy]

  def run():
    at[0] = program(at[0], batch)
    return at[0]

  return repeat(run, repeats)


# ----------------------------------------------------------------------------------------------------------- sampling


def sampling_phases(setup: Setup, states, prompts, tool: str, present: tuple, repeats: int):
  """({name: Phase}, generated tokens) of sampling and scoring one wave, times the number of waves."""
  whole, count, phases = tool == "complete", setup.waves, {}
  small = States(states.policy.replace(params=None, opt_state=None))  # all that a step's key depends on

  def timed(function, *arguments):
    seconds, out = repeat(functools.partial(build(setup, function, *arguments), *arguments), repeats)
    return [count * s for s in seconds], out

  def prefill(weights, prompts):
    return sampler.prefill(weights, setup.decoder, prompts, sampler.cache_dtype(setup.decoder, setup.run.sampling))

  def in_slots(weights, small, prompts):  # drops the inputs of scoring empty traces, unused here
    return tools.wave(setup, weights, programs.step_key(small), whole, prompts)[:2]

  def sample(weights, small, prompts):
    return tools.sample_wave(setup, weights, programs.step_key(small), whole, prompts)

  def score(weights, prompts, rollouts, context):
    return tools.score_wave(setup, weights, whole, prompts, rollouts, context)

  seconds, weights = timed(functools.partial(tools.rollout_weights, setup), states.policy.params)
  phases["rollout_weights"] = Phase([s / count for s in seconds])  # once for all waves
  prefill_seconds, (hidden, cache) = timed(prefill, weights, prompts)
  phases["prefill"] = Phase(prefill_seconds, count * total(prompts.prompt_length_B))
  if "score_empty_trace" in present:
    seconds, _ = timed(functools.partial(tools.score_empty, setup), weights, prompts, hidden, cache)
    phases["score_empty_trace"] = Phase(seconds, count * total(prompts.answer_length_B))
  del hidden, cache

  slots = setup.run.sampling.slots > 0
  seconds, (rollouts, context) = timed(in_slots if slots else sample, weights, small, prompts)
  generated = count * total(rollouts.length_N)
  decode_seconds = [s - p for s, p in zip(seconds, prefill_seconds)]  # sampling starts with a prefill
  if slots:  # rows are scored between tokens, and the number of weight reads is unknown
    phases["decode_in_slots"] = Phase(decode_seconds, generated)
  else:
    phases["decode"] = Phase(decode_seconds, generated, count * decode_bytes(setup, prompts, rollouts))
  if "score_answer" in present and not slots:
    seconds, _ = timed(score, weights, prompts, rollouts, context)
    answers = setup.samples_per_prompt * total(prompts.answer_length_B)
    phases["score_answer"] = Phase(seconds, count * answers)
  order = ("rollout_weights", "prefill", "decode", "decode_in_slots", "score_answer", "score_empty_trace")
  return {name: phases[name] for name in order if name in phases}, generated


def total(lengths) -> float:
  return float(np.sum(np.asarray(lengths)))


def decode_bytes(setup: Setup, prompts, rollouts) -> float:
  """Bytes that decoding these rollouts must read, over all devices: the weights once for each token of the longest
  row, a prompt's cache once for each token of its longest sample, and each row's own cache.
  """
  model, G = setup.decoder, setup.samples_per_prompt
  width = jnp.dtype(model.compute_dtype).itemsize
  cached = sampler.cache_dtype(model, setup.run.sampling)
  cache_width = cached.itemsize + (4 / model.head_dim if cached == jnp.int8 else 0)  # plus one scale per head
  length_N, length_B = np.asarray(rollouts.length_N), np.asarray(prompts.prompt_length_B).reshape(-1)
  loops = length_N.max(axis=-1).mean()  # under pmap each device has its own loop
  replicas = jax.device_count() // setup.run.parallel.tensor if setup.axis_name or setup.mesh is not None else 1
  weights = costs.weight_bytes(model, length_N.size / replicas, width)
  slots = 0.0
  for prompt, trace_G in zip(length_B, length_N.reshape(-1, G)):
    longest = float(trace_G.max())
    slots += costs.seen_tokens(model, float(prompt), longest) - costs.seen_tokens(model, 0, longest)
    slots += sum(costs.seen_tokens(model, 0, float(trace)) for trace in trace_G)
  return loops * replicas * weights + slots * costs.cache_bytes_per_token(model, cache_width)
