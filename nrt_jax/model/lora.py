"""Low-rank adapters: W + (alpha / rank) A B with W frozen (LoRA, arXiv 2106.09685, eq. 3), for all methods.

Adapters are parameters next to the matrix they adapt ("q" and "q_lora"). Only they have gradients and optimizer state.
Rollouts and exports read the merged W + (alpha / rank) A B, which a rollout computes once per step.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import traverse_util

from nrt_jax.model.architecture import LORA, ModelConfig


def split(params, config: ModelConfig) -> tuple[dict, dict]:
  """(trainable, frozen) parts of a parameter tree: with adapters, only these are trainable, else everything is."""
  if not config.lora_rank:
    return params, {}
  flat = traverse_util.flatten_dict(params)
  adapters = {path: leaf for path, leaf in flat.items() if path[-2].endswith(LORA)}
  frozen = {path: leaf for path, leaf in flat.items() if path not in adapters}
  return traverse_util.unflatten_dict(adapters), traverse_util.unflatten_dict(frozen)


def join(trainable, frozen) -> dict:
  """Undoes `split`."""
  if not frozen:
    return trainable
  return traverse_util.unflatten_dict(
    {**traverse_util.flatten_dict(frozen), **traverse_util.flatten_dict(trainable)}
  )


def without(config: ModelConfig) -> ModelConfig:
  """The architecture without adapters: that of `merge`'s result and of every model directory."""
  return dataclasses.replace(config, lora_rank=0)


def merge(params, config: ModelConfig) -> dict:
  """Adds every adapter to its matrix, in the matrix's dtype; the result has the tree of `without(config)`."""
  if not config.lora_rank:
    return params
  adapters, frozen = split(params, config)
  layers = dict(frozen["layers"])
  for name, pair in adapters["layers"].items():
    target = name.removesuffix(LORA)
    kernel = layers[target]["kernel"]
    a, b = (pair[k].astype(jnp.float32) for k in ("a", "b"))
    count = a.shape[0]  # layers
    product = a.reshape(count, -1, config.lora_rank) @ b.reshape(count, config.lora_rank, -1)
    total = kernel.astype(jnp.float32) + config.lora_alpha / config.lora_rank * product.reshape(kernel.shape)
    layers[target] = {**layers[target], "kernel": total.astype(kernel.dtype)}
  return {**frozen, "layers": layers}


def attach(params, adapted, config: ModelConfig) -> dict:
  """`params` of a model without adapters, in the compute dtype, plus the adapters of `adapted` (a random tree)."""
  adapters, _ = split(adapted, config)
  _, frozen = split(adapted, config)
  return join(adapters, jax.tree.map(lambda p, like: p.astype(like.dtype), params, frozen))


def count_trainable(params, config: ModelConfig) -> int:
  """The number of trainable parameters."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(split(params, config)[0]))
