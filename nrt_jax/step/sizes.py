"""Whether a run's sizes divide over its devices: found out before anything is compiled."""

import jax

from nrt_jax import sharding
from nrt_jax.errors import UserError
from nrt_jax.step import offload, programs
from nrt_jax.step.setup import Setup


def check(setup: Setup) -> None:
  """Raises UserError where parameters do not divide over the mesh, or a step's prompts not into the pieces wanted."""
  run, mesh = setup.run, setup.mesh
  if run.parallel.offload:
    offload.check(run.parallel, jax.devices() if mesh is None else list(mesh.devices.flat))
  programs.state_shardings(setup)
  ways = jax.device_count() if mesh is None else sharding.data_parallel_ways(mesh)
  pieces = ways * run.optimizer.minibatches
  if run.prompts_per_step % pieces:
    raise UserError(
      f"prompts_per_step: found {run.prompts_per_step}, allowed: a multiple of {pieces} "
      f"({ways} data-parallel devices x optimizer.minibatches {run.optimizer.minibatches})"
    )
  rows = run.prompts_per_step * setup.rows_per_prompt // setup.rows_together // pieces
  if rows % setup.micro_batches:
    together = {1: "rows", 2: "pairs of rows"}.get(setup.rows_together, "groups of rows that share a prompt")
    raise UserError(
      f"parallel.micro_batches: found {setup.micro_batches}, allowed: a divisor of {rows}, "
      f"the {together} that one device has in a minibatch"
    )
  if setup.critic is not None:
    check_pairs(setup)
  check_longest_row(setup)
  wave = run.sampling.wave_prompts
  if wave and setup.algorithm.samples_traces and (run.prompts_per_step % wave or wave % ways):
    raise UserError(
      f"sampling.wave_prompts: found {wave}, allowed: a divisor of prompts_per_step {run.prompts_per_step} "
      f"that is a multiple of {ways}, the data-parallel devices"
    )
  slots = run.sampling.slots
  if slots % ways or (slots and run.parallel.rollout_weights != "gathered"):
    raise UserError(
      f"sampling.slots: found {slots}, allowed: a multiple of {ways}, the data-parallel devices, with "
      f"parallel.rollout_weights 'gathered' (found {run.parallel.rollout_weights!r})"
    )
  if run.evaluation.data is not None and mesh is not None and run.evaluation.batch_prompts % ways:
    raise UserError(
      f"evaluation.batch_prompts: found {run.evaluation.batch_prompts}, allowed: a multiple of {ways}, "
      "the data-parallel devices"
    )


def check_pairs(setup: Setup) -> None:
  """Raises UserError where a critic is to learn from more fresh pairs than a question has completions."""
  config, G = setup.run.algorithm, setup.samples_per_prompt
  counts = config.pairs(G)
  if counts.fresh_learnt > G or not counts.learnt:
    found = f"{config.critic.pairs} with samples_per_prompt {G}, of which {counts.fresh_learnt} would be fresh"
    raise UserError(f"algorithm.critic.pairs: found {found}, allowed: 1 to {G} fresh ones")


def check_longest_row(setup: Setup) -> None:
  """Raises UserError where a row may be longer than the model's rotary positions are right for."""
  run, allowed = setup.run, setup.model.longest_row
  R = run.sampling.max_trace_length if setup.algorithm.samples_traces else run.data.max_trace_length
  width = len(setup.form.marker_ids)
  after = max(R + width + run.prompt.max_answer_length, run.evaluation.max_completion_length)
  longest = run.prompt.max_prompt_length + after
  if allowed is not None and longest > allowed:
    kind = setup.model.rope_scaling.rope_type
    more = ", or model.long_rope = True" if kind == "longrope" and not setup.model.long_rope else ""
    raise UserError(
      f"model.path: found rope scaling {kind!r} with rows of up to {longest} tokens, allowed: {allowed}{more}"
    )
