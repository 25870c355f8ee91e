"""Supervised fine-tuning by next-token prediction on `prompt | given trace | marker | answer`.

The trace is the data's own, empty where an example shows none; without any it is the control of every verifier-free
method: the same answers, the same marker, no reasoning.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nrt_jax import rows
from nrt_jax.algorithms.interface import Algorithm, Collected, Tools
from nrt_jax.arrays import LossSums, PackedPrompts, TrainBatch
from nrt_jax.data.packing import KINDS
from nrt_jax.errors import require_choice
from nrt_jax.objectives import losses


@dataclass(frozen=True)
class SftConfig:
  """What is learnt of a row, and how the loss is normalised."""

  train_prompt: bool = False  # True: the prompt's tokens too, as in pretraining
  train_marker: bool = True  # False where the marker must not be learnt
  normalisation: str = "token"  # token | sequence | constant
  normalisation_constant: float = 1.0  # tokens

  def __post_init__(self):
    require_choice("algorithm.normalisation", self.normalisation, losses.NORMALISATIONS)


def splice(tools: Tools, prompts) -> rows.Rows:
  """The rows of prompts, given traces, marker and answers."""
  return rows.splice(
    prompts.prompt_BP,
    prompts.prompt_length_B,
    prompts.trace_BR,
    prompts.trace_length_B,
    tools.marker_ids,
    prompts.answer_BA,
    prompts.answer_length_B,
    tools.pad_id,
  )


def supervised_batch(spliced: rows.Rows, coef_NL, first: int | None = None) -> TrainBatch:
  """Rows of which nothing was sampled, with the weight of each token's cross-entropy."""
  zeros_NL, nowhere_NL = jnp.zeros(coef_NL.shape), jnp.zeros(coef_NL.shape, bool)
  return TrainBatch(
    token_NL=spliced.token_NL,
    position_NL=spliced.position_NL,
    trace_coef_NL=zeros_NL,
    trace_weight_NL=zeros_NL,
    behaviour_logp_NL=zeros_NL,
    reference_logp_NL=zeros_NL,
    answer_coef_NL=coef_NL,
    format_coef_NL=zeros_NL,
    trace_mask_NL=spliced.trace_mask_NL,
    sampled_mask_NL=nowhere_NL,
    answer_mask_NL=spliced.answer_mask_NL,
    format_mask_NL=nowhere_NL,
    first=spliced.first if first is None else first,
  )


def open_packed(packed: PackedPrompts) -> rows.Rows:
  """Packed rows as they are: no prompt's end is a fixed column, so the head starts at the second one."""
  masks = {f"{kind}_mask_NL": packed.kind_BL == KINDS.index(kind) for kind in KINDS[1:]}
  return rows.Rows(token_NL=packed.token_BL, position_NL=packed.position_BL, first=1, **masks)


def weigh(tools: Tools, config: SftConfig, learnt_NL, position_NL, example_NL):
  """The learnt tokens times their normaliser. In packed rows it is the examples that are counted, not the rows."""

  def normaliser(mask_NL, how):
    return losses.normaliser(mask_NL, how, tools.minibatches, 1, config.normalisation_constant, tools.all_sum)

  if example_NL is None or config.normalisation == "token":
    return learnt_NL * normaliser(learnt_NL, config.normalisation)
  weight_NL = learnt_NL * normaliser(position_NL == 0, "token")  # 1 / examples of the minibatch
  if config.normalisation == "constant":
    return weight_NL / config.normalisation_constant
  return weight_NL / jnp.maximum(count_in_example(learnt_NL, example_NL), 1)


def count_in_example(mask_NL, example_NL):
  """For each column, how many columns of its example are in the mask: int32 `[N, L]`."""

  def one(mask_L, example_L):
    count_L = jax.ops.segment_sum(mask_L.astype(jnp.int32), jnp.maximum(example_L, 0), num_segments=mask_L.size)
    return count_L[jnp.maximum(example_L, 0)]

  return jax.vmap(one)(mask_NL, example_NL)


def collect(tools: Tools, config: SftConfig, states, prompts, key) -> Collected:
  del states, key  # nothing is sampled
  packed = isinstance(prompts, PackedPrompts)
  spliced, example_NL = (open_packed(prompts), prompts.example_BL) if packed else (splice(tools, prompts), None)
  shown = prompts.shown if packed else prompts
  learnt_NL = spliced.trace_mask_NL | spliced.answer_mask_NL
  if config.train_marker:
    learnt_NL |= spliced.marker_mask_NL
  if config.train_prompt:
    learnt_NL |= (spliced.position_NL > 0) & ~spliced.marker_mask_NL  # position 0 has nothing to be predicted from
  coef_NL = weigh(tools, config, learnt_NL, spliced.position_NL, example_NL)
  batch = supervised_batch(spliced, coef_NL, 1 if config.train_prompt else None).replace(example_NL=example_NL)
  samples = {
    "prompt": shown.prompt_BP,
    "prompt_length": shown.prompt_length_B,
    "trace": shown.trace_BR,
    "trace_length": shown.trace_length_B,
    "answer": shown.answer_BA,
    "answer_length": shown.answer_length_B,
  }
  return Collected(batch, {}, samples)


def loss(tools: Tools, config: SftConfig, params, batch: TrainBatch) -> LossSums:
  """Cross-entropy of the learnt tokens."""
  logp_NL, *_ = tools.log_probs(params, batch)
  total = losses.supervised(logp_NL, batch.answer_coef_NL).sum()
  metrics = {
    "loss/total": total,
    "answer/logp": (jnp.sum(logp_NL * batch.answer_mask_NL), jnp.sum(batch.answer_mask_NL)),
  }
  return LossSums(total, metrics)


ALGORITHM = Algorithm(config=SftConfig, collect=collect, loss=loss, samples_traces=False, packs=True)
