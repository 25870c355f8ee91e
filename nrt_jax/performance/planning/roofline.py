"""A lower bound on the time of a step on a slice: each phase takes the longest of compute, memory, links and network.

All rates are peak rates, with full overlap within a phase. Latencies are ignored: a decoding step of a small batch,
whose collectives move little data, takes longer.
"""

from typing import NamedTuple

from nrt_jax import sharding
from nrt_jax.model import costs
from nrt_jax.performance.planning.program import Rows
from nrt_jax.step import programs
from nrt_jax.step.hardware import Chip

# Scopes of the program that are merged into one phase here.
MERGED = {"sample_token": "decode", "gradients": "update"}


class Estimate(NamedTuple):
  """One phase on one device, over the whole step."""

  phase: str
  flops: float
  hbm_bytes: float  # weights, caches and training state; not activations
  wire_bytes: float
  compute: float  # seconds
  memory: float
  links: float
  network_bytes: float = 0.0  # from other slices
  network: float = 0.0  # seconds; 0 where no figure for the network is public

  @property
  def seconds(self) -> float:
    return getattr(self, self.bottleneck)

  @property
  def bottleneck(self) -> str:
    return max(("compute", "memory", "links", "network"), key=lambda name: getattr(self, name))


def merged(by_phase: dict) -> dict:
  """Sums by phase, adding up scopes that are merged."""
  total = {}
  for phase, value in by_phase.items():
    name = MERGED.get(phase, phase)
    total[name] = total.get(name, 0) + value
  return total


def pieces_of(run) -> int:
  """Micro-batches per minibatch; 0 means one, except on CPUs."""
  return run.parallel.micro_batches or 1


def lengths_of(setup: programs.Setup, rows: Rows) -> costs.Lengths:
  """Lengths with all columns filled: the worst case, and what dense programs compute anyway."""
  run = setup.run
  return costs.Lengths(
    prompts=run.prompts_per_step,
    samples=setup.samples_per_prompt,
    prompt=run.prompt.max_prompt_length,
    trace=run.sampling.max_trace_length,
    marker=len(setup.form.marker_ids),
    answer=run.prompt.max_answer_length,
    rows=rows.count,
  )


def critic_lengths(setup: programs.Setup) -> costs.Lengths | None:
  """Those of what the critic samples, all columns filled; None without one. Its answers are scored by nobody."""
  if not setup.algorithm.has_critic:
    return None
  config = setup.run.algorithm
  prompts = setup.run.prompts_per_step * config.pairs(setup.samples_per_prompt).judged * config.critic.orders
  return costs.Lengths(prompts, config.role().samples, setup.critic.prompt_width, config.critic.max_length, 0, 0)


def model_flops(setup: programs.Setup, rows: Rows) -> dict:
  """Model FLOPs of a step by phase, over all devices. A shared prompt counts once, as in the update."""
  again = rows.count - rows.count // setup.shared_rows  # rows whose prompt is run with another row
  spared = again * costs.train_flops(setup.model, setup.run.prompt.max_prompt_length, 0) if again else 0
  update = {"update": rows.count * costs.train_flops(setup.model, rows.length, rows.heads) - spared}
  if not setup.algorithm.samples_traces:
    return update
  phases, critic = costs.step_flops(setup.decoder, lengths_of(setup, rows)), critic_lengths(setup)
  if critic is not None:  # the program's scopes are those of the policy: prefill, decode
    own = costs.step_flops(setup.decoder, critic)
    phases |= {name: phases[name] + own[name] for name in ("prefill", "decode")}
  return {**phases, **update}


def hbm_bytes(setup: programs.Setup, rows: Rows) -> dict:
  """The fewest bytes by phase that one device reads and writes for weights, caches and training state."""
  run, model, mesh = setup.run, setup.model, setup.mesh.shape
  tensor, shards, ways = mesh["tensor"], mesh["fsdp"] * mesh["tensor"], sharding.data_parallel_ways(setup.mesh)
  state = costs.state_bytes(model)
  trained, shard = state["optimizer"] / 8, costs.parameter_count(model) / shards
  gathered = 2 * costs.parameter_count(model) / tensor
  minibatches, pieces = run.optimizer.minibatches, pieces_of(run)
  accumulated = 12 * trained / shards if pieces > 1 else 4 * trained / shards
  found = {
    # forward, recomputed forward and backward passes each read all weights of the device's tensor shard
    "update": minibatches * pieces * ((3 if model.remat == "full" else 2) * gathered + accumulated),
    "optimizer": minibatches * 28 * trained / shards,  # reads parameter, gradient, moments; writes all but the gradient
  }
  if not setup.algorithm.samples_traces:
    return found
  waves, n = setup.waves, lengths_of(setup, rows)
  prompts = n.prompts / waves / ways
  read = costs.decode_bytes(setup.decoder, prompts * n.samples, prompts, n)
  cache = (prompts * n.prompt + prompts * n.samples * n.trace) * costs.cache_bytes_per_token(model) / tensor
  def weights(tokens):
    return waves * costs.weight_bytes(setup.decoder, tokens) / tensor

  decoded, critic = n.trace * sum(read.values()), critic_lengths(setup)
  if critic is not None:
    own = critic.prompts / waves / ways
    decoded += critic.trace * sum(costs.decode_bytes(setup.decoder, own * critic.samples, own, critic).values())
  return {
    **found,
    "rollout_weights": 4 * shard + gathered,
    "prefill": (1 if critic is None else 2) * weights(prompts * n.prompt),
    "decode": waves * decoded / tensor,
    "score_answer": weights(prompts * n.samples * (n.marker + n.answer)) + waves * cache,
    "score_empty_trace": weights(prompts * (n.marker + n.answer)) + waves * cache,
  }


def estimate(
  setup: programs.Setup, rows: Rows, chip: Chip, compiled_flops: dict, wire: dict, network: dict
) -> list[Estimate]:
  """The phases of a step. compiled_flops, wire, network: of one device, by phase, read from the program.

  Uses the larger of compiled and model FLOPs: kernels hide theirs, and model FLOPs exclude recomputation.
  """
  devices = setup.mesh.size
  model = {phase: flops / devices for phase, flops in model_flops(setup, rows).items()}
  least, compiled, links, between = hbm_bytes(setup, rows), merged(compiled_flops), merged(wire), merged(network)
  names = [name for name in (*model, *least, *links, *between, *compiled)]
  found = []
  for phase in dict.fromkeys(names):
    flops, moved = max(model.get(phase, 0), compiled.get(phase, 0)), least.get(phase, 0)
    sent, crossing = links.get(phase, 0), between.get(phase, 0)
    seconds = (flops / chip.flops, moved / chip.hbm_bandwidth, sent / chip.link_bandwidth)
    crossed = crossing / chip.dcn_bandwidth if chip.dcn_bandwidth else 0.0
    found.append(Estimate(phase, flops, moved, sent, *seconds, crossing, crossed))
  return found
