"""Rough estimates of a step on a mesh, without compiling: only good enough to choose which layouts to compile."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from nrt_jax import sharding
from nrt_jax.model import costs, kernels, lora
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import forward
from nrt_jax.performance.planning import roofline
from nrt_jax.performance.planning.program import Rows
from nrt_jax.rollout import sampler
from nrt_jax.step import programs
from nrt_jax.step.policy import abstract_params

TRACED_LAYERS = 3  # in `saved_bytes`: a leading axis of this size is the layer axis


@functools.lru_cache
def saved_bytes(model: ModelConfig, tensor: int, length: int) -> int:
  """Bytes that one layer saves of a row of `length` tokens for its backward pass, on one of `tensor` devices.

  Exactly what JAX saves under `remat`; XLA may recompute some of it.
  """
  local = dataclasses.replace(
    model,
    num_hidden_layers=TRACED_LAYERS,
    num_attention_heads=model.num_attention_heads // tensor,
    num_key_value_heads=max(1, model.num_key_value_heads // tensor),
    intermediate_size=model.intermediate_size // tensor,
    moe_intermediate_size=model.moe_intermediate_size // tensor,
    sliding_layers=None,
    rope_layers=None,
    vocab_size=8,
    vocab_unused=0,
    vocab_padding=0,
    lora_rows=(),
    layer_loop="scan",
  )
  trainable, frozen = lora.split(abstract_params(local), local)

  def saved(rows: int) -> int:
    token = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def backward(trainable, frozen, token, position):
      return jax.vjp(lambda part: forward(lora.join(part, frozen), local, token, position)[0], trainable)[1]

    leaves = jax.tree.leaves(jax.eval_shape(backward, trainable, frozen, token, token))
    return sum(x.size * x.dtype.itemsize for x in leaves if x.ndim and x.shape[0] == TRACED_LAYERS)

  return (saved(2) - saved(1)) // TRACED_LAYERS  # excludes what is saved of the weights


def update_bytes(setup: programs.Setup, rows: Rows) -> float:
  """Bytes of the update on one device besides the state: gradients, saved activations, all of one layer, the tables.

  The tables of embedding and head are gathered over `fsdp`; so are their gradients before they are scattered.
  """
  run, model, mesh = setup.run, setup.model, setup.mesh.shape
  tensor, shards, width = mesh["tensor"], mesh["fsdp"] * mesh["tensor"], jnp.dtype(model.compute_dtype).itemsize
  pieces = roofline.pieces_of(run)
  together = rows.count / sharding.data_parallel_ways(setup.mesh) / (run.optimizer.minibatches * pieces)
  saved = together * model.num_hidden_layers * saved_bytes(model, tensor, rows.length)
  tokens = together * rows.length
  layer = together * saved_bytes(dataclasses.replace(model, remat="none"), tensor, rows.length)
  scores = 3 * 4 * tokens * min(rows.length, 2048) * model.num_attention_heads / tensor
  if kernels.choose(model, (1, rows.length)) in ("cudnn", "splash"):
    scores = 0
  head = 2 * 4 * min(model.head_chunk, tokens) * model.vocab_size / tensor
  tables = 2 * (4 + width) * costs.head_size(model) / tensor
  gradients = costs.state_bytes(model)["optimizer"] / 2 / shards * (2 if pieces > 1 else 1)
  return gradients + saved + layer + scores + head + tables


def sampling_bytes(setup: programs.Setup, rows: Rows) -> float:
  """Bytes of a wave on one device besides the state: weights, caches twice, and one pass over whole rows.

  That pass is the scoring of answers or the prefill: four arrays of hidden states, and their attention.
  """
  run, model, tensor = setup.run, setup.model, setup.mesh.shape["tensor"]
  n, width = roofline.lengths_of(setup, rows), jnp.dtype(model.compute_dtype).itemsize
  prompts = n.prompts / setup.waves / sharding.data_parallel_ways(setup.mesh)
  slots = sampler.cache_sizes(run.sampling.max_trace_length, run.sampling.cache_stages)[-1]
  cache = prompts * (n.prompt + n.samples * slots) * costs.cache_bytes_per_token(model, width) / tensor
  hidden = 4 * prompts * max(n.prompt, n.samples * (n.marker + n.answer)) * model.hidden_size * width
  scores = 2 * 4 * prompts * n.samples * n.answer * n.row * model.num_attention_heads / tensor
  if kernels.choose(model, (1, int(n.answer)), cache_rows=(1, 1)) == "splash":  # it copies a layer's caches
    scores = prompts * n.samples * n.row * costs.cache_bytes_per_token(model, width) / model.num_hidden_layers / tensor
  return width * costs.parameter_count(model) / tensor + 2 * cache + hidden + scores


def critic_bytes(setup: programs.Setup) -> float:
  """Bytes of the critic's part of a wave besides the state, on one device; 0 without a critic.

  Weights, three arrays of its prompts' hidden states, and caches once, for nobody scores behind them.
  """
  run, model, tensor, n = setup.run, setup.model, setup.mesh.shape["tensor"], roofline.critic_lengths(setup)
  if n is None:
    return 0.0
  width = jnp.dtype(model.compute_dtype).itemsize
  prompts = n.prompts / setup.waves / sharding.data_parallel_ways(setup.mesh)
  slots = sampler.cache_sizes(n.trace, run.sampling.cache_stages)[-1]
  cache = prompts * (n.prompt + n.samples * slots) * costs.cache_bytes_per_token(model, width) / tensor
  hidden = 3 * prompts * n.prompt * model.hidden_size * width
  return width * costs.parameter_count(model) / tensor + cache + hidden


def state_bytes(setup: programs.Setup) -> float:
  """Bytes of the training state on one device: parameters, optimizer, and copies such as the reference."""
  leaves = jax.tree.leaves(programs.abstract_states(setup))
  total = sum(x.size * x.dtype.itemsize for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
  return total / (setup.mesh.shape["fsdp"] * setup.mesh.shape["tensor"])


def working_bytes(setup: programs.Setup, rows: Rows) -> float:
  """Bytes that one device will need besides the state: the largest of sampling, the critic's sampling and update."""
  sampling = sampling_bytes(setup, rows) if setup.algorithm.samples_traces else 0
  return max(update_bytes(setup, rows), sampling, critic_bytes(setup))


def update_flops(setup: programs.Setup, rows: Rows) -> float:
  """FLOPs of the update over all devices, including recomputation: the head, and layers under remat="full"."""
  model = setup.model
  planned = roofline.model_flops(setup, rows)["update"]
  head = 2 * costs.head_size(model) * rows.heads * rows.count
  return planned + head + (planned / 3 - head if model.remat == "full" else 0)


def gradient_bytes(setup: programs.Setup) -> float:
  """Bytes of the float32 gradients that the devices of one tensor shard hold together."""
  return 4 * costs.state_bytes(setup.model)["optimizer"] / 8 / setup.mesh.shape["tensor"]


def network(setup: programs.Setup) -> dict:
  """Bytes that one device receives from other slices, by phase: gradients.

  XLA sums them for each micro-batch, before they are added up; those of micro-batches are in the compute dtype.
  """
  slices, mesh = sharding.slices_of(setup.mesh, setup.run.parallel), setup.mesh.shape
  pieces = roofline.pieces_of(setup.run)
  own = gradient_bytes(setup) / mesh["fsdp"] / (mesh["data"] // slices)
  width = jnp.dtype(setup.model.compute_dtype).itemsize / 4 if pieces > 1 else 1
  return {"update": setup.run.optimizer.minibatches * pieces * width * 2 * (slices - 1) / slices * own}


def wire(setup: programs.Setup, rows: Rows) -> dict:
  """Bytes that one device receives, by phase.

  Each layer has two sums over `tensor` in the forward pass, two in the backward pass, and one more if layers are
  recomputed. Weights are gathered over `fsdp` per pass, gradients scattered once.
  """
  run, model, mesh = setup.run, setup.model, setup.mesh.shape
  ways, D, layers = sharding.data_parallel_ways(setup.mesh), model.hidden_size, model.num_hidden_layers
  ring, others = 2 * (mesh["tensor"] - 1) / mesh["tensor"], (mesh["fsdp"] - 1) / mesh["fsdp"]
  weights = 2 * costs.parameter_count(model) / mesh["tensor"] * others
  again = model.remat == "full"
  pieces = run.optimizer.minibatches * roofline.pieces_of(run)
  tokens = rows.count * rows.length / ways
  gradients = gradient_bytes(setup)
  inside = mesh["data"] // sharding.slices_of(setup.mesh, run.parallel)  # devices of the data axis in one slice
  data = 2 * (inside - 1) / inside / mesh["fsdp"]
  found = {
    "update": (4 + again) * layers * tokens * D * 2 * ring
    + pieces * ((2 + again) * weights + gradients * others) + run.optimizer.minibatches * gradients * data,
  }  # fmt: skip
  if setup.algorithm.samples_traces:
    n = roofline.lengths_of(setup, rows)
    sampled = n.prompts * n.samples * n.trace / ways
    found["rollout_weights"] = weights
    found["decode"] = 2 * layers * sampled * D * 2 * ring
    found["score_answer"] = 2 * layers * n.prompts * n.samples * (n.marker + n.answer) / ways * D * 2 * ring
  return found
