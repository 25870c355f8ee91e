"""Work and throughput of a step: tokens are counted inside the program, rates are computed outside.

`train` writes them to metrics.jsonl and `benchmark` to its report, with the same definitions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nrt_jax.model import costs
from nrt_jax.step import hardware
from nrt_jax.step.setup import Setup
from nrt_jax.step.tools import shares_prompts

# The parts of a step that cost model FLOPs. Each is a named scope of the compiled program, if the method needs it.
PHASES = ("prefill", "decode", "critic", "score_answer", "score_empty_trace", "score_batch", "score_start", "update")


def count_tokens(setup: Setup, prompts, batch, critic_batch=None) -> dict:
  """Token counts of a step, which `rates` later removes from its metrics. Called inside the program."""
  if setup.algorithm.has_critic:
    return _count_roles(setup, prompts, batch, critic_batch)
  trained, sequences = jnp.sum(batch.position_NL >= 0), jnp.sum(batch.position_NL == 0)  # packed rows hold several
  N = batch.token_NL.shape[0]
  if batch.first == 1:  # prompts are trained on too, or rows are packed
    given = sequences
  else:  # a mean, since a step may be given more prompts than it trains on
    given = N * jnp.mean(prompts.prompt_length_B)
  counts = {"tokens/trained": trained, "tokens/sequences": sequences, "tokens/predicted": trained - given}
  if setup.algorithm.samples_traces:
    B = N // setup.rows_per_prompt
    prompt_length_B = prompts.hint_length_B if setup.algorithm.needs_hints else prompts.prompt_length_B
    counts["tokens/prompt"] = B * jnp.mean(prompt_length_B)
    counts["tokens/answer"] = B * jnp.mean(prompts.answer_length_B)
  if shares_prompts(setup, batch):
    counts["tokens/shared"] = jnp.sum(batch.prompt_length_N) - jnp.sum(batch.prompt_length_N[:: setup.shared_rows])
  return counts


def _count_roles(setup: Setup, prompts, batch, critic_batch) -> dict:
  """The counts where a critic's rows are trained on too, in the same batch or in one of their own."""
  B, roles = len(prompts.prompt_length_B), [(setup, batch)]
  if critic_batch is not None:
    roles = [(setup._replace(role=role), rows) for role, rows in (("policy", batch), ("critic", critic_batch))]
  counts = {"trained": 0, "sequences": 0, "predicted": 0, "shared": 0}
  for own, rows in roles:
    trained, given = jnp.sum(rows.position_NL >= 0), jnp.sum(rows.prompt_length_N)
    shared = given - jnp.sum(rows.prompt_length_N[:: own.shared_rows])
    found = (trained, len(rows.position_NL), trained - given, shared if shares_prompts(own, rows) else 0)
    counts = {name: count + more for (name, count), more in zip(counts.items(), found, strict=True)}
  counts |= {"prompt": B * jnp.mean(prompts.prompt_length_B), "answer": B * jnp.mean(prompts.answer_length_B)}
  return {f"tokens/{name}": value for name, value in counts.items()}


class Work(NamedTuple):
  """What is known of a compiled step, apart from its token counts."""

  setup: Setup
  phases: tuple  # its members of PHASES
  peak_flops: float | None  # of all devices together, per second; None if unknown


def describe(setup: Setup, compiled) -> Work:
  """The Work of a step's compiled programs, with the peak rate of its chips if hardware.py has them."""
  chip = hardware.lookup(jax.devices()[0].device_kind)
  if chip is None:
    return Work(setup, (), None)
  return Work(setup, phases_in(compiled), chip.flops * jax.device_count())


def phases_in(compiled) -> tuple:
  """Which of PHASES the compiled programs contain: the compiler removes what no result needs."""
  text = "\n".join(program.as_text() for program in compiled)
  return tuple(name for name in PHASES if name == "update" or f"/{name}/" in text)


def model_flops(work: Work, tokens: dict) -> dict:
  """Model FLOPs of a step by phase, over all devices, at the mean lengths of its rows. `tokens`: name -> number.

  A prompt that the update runs once for its samples counts once there. Passes of other parameters over prompts alone
  (base_policy = "reference") do not count.
  """
  run, model = work.setup.run, work.setup.model
  flops = {}
  if work.setup.algorithm.samples_traces:
    B, samples = run.prompts_per_step, work.setup.samples_per_prompt
    prompts = B * tokens.get("draws", 1)
    lengths = costs.Lengths(
      prompts=prompts,
      samples=samples,
      prompt=tokens["prompt"] / B,
      trace=tokens["generated"] / (prompts * samples),
      marker=len(work.setup.form.marker_ids),
      answer=tokens["answer"] / B,
    )
    flops = costs.step_flops(model, lengths)
    if work.setup.algorithm.has_critic:
      flops["critic"] = _critic_flops(work.setup, tokens)
  count = max(tokens["sequences"], 1)
  row = (tokens["trained"] / count, tokens["predicted"] / count)
  flops["score_batch"] = count * costs.forward_flops(model, 0, *row)
  flops["score_start"] = (1 - 1 / run.optimizer.minibatches) * flops["score_batch"]  # not of the first minibatch
  flops["update"] = count * costs.train_flops(model, *row)
  if tokens.get("shared"):
    flops["update"] -= tokens["shared"] / lengths.prompt * costs.train_flops(model, lengths.prompt, 0)
  return {name: flops[name] for name in PHASES if name in work.phases and name in flops}


def _critic_flops(setup: Setup, tokens: dict) -> float:
  """Model FLOPs of sampling the critic's verdicts."""
  config, samples = setup.run.algorithm, setup.run.algorithm.role().samples
  count = setup.run.prompts_per_step * config.pairs(setup.samples_per_prompt).judged * config.critic.orders
  trace = tokens["critic_generated"] / (count * samples)
  lengths = costs.Lengths(count, samples, tokens["critic_prompt"] / count, trace, marker=0, answer=0)
  flops = costs.step_flops(setup.model, lengths)
  return flops["prefill"] + flops["decode"]


def take_tokens(values: dict) -> dict:
  """Removes the "tokens/..." metrics from `values`; returns them without prefix, plus the number of draws, if any."""
  tokens = {name.removeprefix("tokens/"): values.pop(name) for name in [*values] if name.startswith("tokens/")}
  return tokens | ({"draws": values["draws/count"]} if "draws/count" in values else {})


def rates(work: Work, values: dict, seconds: float) -> dict:
  """The metrics of a step that took `seconds`, with rates in place of token counts, and the peak memory."""
  tokens = take_tokens(values)
  values["time/step"] = seconds
  for name in ("generated", "critic_generated", "trained"):
    if name in tokens:
      values[f"throughput/{name}_tokens_per_s"] = tokens[name] / seconds
  if work.peak_flops:
    values["throughput/mfu"] = sum(model_flops(work, tokens).values()) / seconds / work.peak_flops
  peak = peak_bytes()
  if peak is not None:
    values["memory/peak_gib"] = peak / 2**30
  return values


def peak_bytes() -> int | None:
  """Peak memory in use on the first local device since the start; None if the backend does not report it."""
  memory = jax.local_devices()[0].memory_stats() or {}
  return memory.get("peak_bytes_in_use")
