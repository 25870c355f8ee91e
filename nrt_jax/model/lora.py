"""Low-rank adapters: W + (alpha / rank) A B with W frozen (LoRA, arXiv 2106.09685, eq. 3), for all methods.

Adapters are parameters next to the matrix they adapt ("q" and "q_lora"). Only they have gradients and optimizer state.
Rollouts and exports read the merged W + (alpha / rank) A B, which a rollout computes once per step. Each expert has
adapters of its own; a router has none.

Tokens that a run adds to the vocabulary, such as its marker, mean nothing yet, and no adapter could change that. Their
rows of embedding and head (`lora_rows`) are trained whole, as parameters of their own in place of the frozen rows.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import traverse_util

from nrt_jax.model.architecture import EXPERT_MATRICES, LORA, ModelConfig

TOKEN_ROWS = ("embedder", "head")  # the parameters that are rows of tokens


def split(params, config: ModelConfig) -> tuple[dict, dict]:
  """(trainable, frozen) parts of a parameter tree: with adapters, they and added tokens' rows, else everything.

  With a frozen trunk (`config.trained`), embedding and head.
  """
  if config.trained == "all" and not config.lora_rank:
    return params, {}
  flat = traverse_util.flatten_dict(params)
  if config.trained == "all":
    trainable = {path: leaf for path, leaf in flat.items() if path[-2].endswith(LORA)}
  else:
    trainable = {path: leaf for path, leaf in flat.items() if path[0] in TOKEN_ROWS}
  frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
  return traverse_util.unflatten_dict(trainable), traverse_util.unflatten_dict(frozen)


def join(trainable, frozen) -> dict:
  """Undoes `split`."""
  if not frozen:
    return trainable
  return traverse_util.unflatten_dict(
    {**traverse_util.flatten_dict(frozen), **traverse_util.flatten_dict(trainable)}
  )


def without(config: ModelConfig) -> ModelConfig:
  """The architecture without adapters: that of `merge`'s result and of every model directory. Nothing is frozen."""
  return dataclasses.replace(config, lora_rank=0, lora_rows=(), trained="all")


def added_rows(params, config: ModelConfig) -> dict:
  """The rows of `config.lora_rows`, float32 `[n, D]`, as parameters beside embedding and head (tied: one for both)."""
  if not config.lora_rows:
    return {}
  ids = jnp.asarray(config.lora_rows)
  rows = {"embedder" + LORA: {"rows": params["embedder"]["embedding"][ids].astype(jnp.float32)}}
  if not config.tie_word_embeddings:
    rows["head" + LORA] = {"rows": params["head"]["kernel"][:, ids].T.astype(jnp.float32)}
  return rows


def merge(params, config: ModelConfig) -> dict:
  """Adds every adapter to its matrix, and puts added rows in place, in the dtype of the frozen weights.

  The result has the tree of `without(config)`.
  """
  if not config.lora_rank:
    return params
  adapters, frozen = split(params, config)
  layers = dict(frozen["layers"])
  for name, pair in adapters["layers"].items():
    target = name.removesuffix(LORA)
    kernel = layers[target]["kernel"]
    a, b = (pair[k].astype(jnp.float32) for k in ("a", "b"))
    lead = kernel.shape[: 2 if config.num_experts and target in EXPERT_MATRICES else 1]  # layers, and experts
    product = a.reshape(*lead, -1, config.lora_rank) @ b.reshape(*lead, config.lora_rank, -1)
    total = kernel.astype(jnp.float32) + config.lora_alpha / config.lora_rank * product.reshape(kernel.shape)
    layers[target] = {**layers[target], "kernel": total.astype(kernel.dtype)}
  return {**frozen, "layers": layers, **_with_rows(adapters, frozen, config)}


def _with_rows(adapters, frozen, config: ModelConfig) -> dict:
  """Embedding and head with the added rows in place of the frozen ones."""
  if not config.lora_rows:
    return {}
  ids, table_VD = jnp.asarray(config.lora_rows), frozen["embedder"]["embedding"]
  merged = {"embedder": {"embedding": table_VD.at[ids].set(_rows(adapters, "embedder").astype(table_VD.dtype))}}
  if not config.tie_word_embeddings:
    kernel_DV = frozen["head"]["kernel"]
    merged["head"] = {"kernel": kernel_DV.at[:, ids].set(_rows(adapters, "head").T.astype(kernel_DV.dtype))}
  return merged


def _rows(params, name: str):
  return params[name + LORA]["rows"]


def embed_added(params, config: ModelConfig, token_NT, x_NTD):
  """The embeddings `x_NTD` of tokens with those of added rows in place; the frozen table has no gradient."""
  if not config.lora_rows:
    return x_NTD
  own_NTn = token_NT[..., None] == jnp.asarray(config.lora_rows)[None, None]
  # A product with one-hot rows is exact, and so is its gradient's sum; a gather's gradient would be a scatter.
  rows_nD, exact = _rows(params, "embedder").astype(x_NTD.dtype), jax.lax.Precision.HIGHEST
  added_NTD = jnp.matmul(own_NTn.astype(x_NTD.dtype), rows_nD, precision=exact)
  return jnp.where(own_NTn.any(-1, keepdims=True), added_NTD, x_NTD)


def logits_added(params, config: ModelConfig, hidden, out):
  """The logits `out` `[..., V]` of hidden states `[..., D]` with those of added rows in place."""
  if not config.lora_rows:
    return out
  rows_nD = _rows(params, "embedder" if config.tie_word_embeddings else "head").astype(hidden.dtype)
  added = jnp.einsum("...d,nd->...n", hidden, rows_nD, preferred_element_type=out.dtype)
  return out.at[..., jnp.asarray(config.lora_rows)].set(added)


def attach(params, adapters, config: ModelConfig) -> dict:
  """`params` of a model without adapters, as they are held, plus `adapters`; added rows start as those of `params`."""
  return join({**adapters, **added_rows(params, config)}, params)


def count_trainable(params, config: ModelConfig) -> int:
  """The number of trainable parameters."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(split(params, config)[0]))
