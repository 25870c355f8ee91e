"""Supervised fine-tuning by next-token prediction on `prompt | given trace | marker | answer`.

The trace is the data's own, empty where an example shows none; without any it is the control of every verifier-free
method: the same answers, the same marker, no reasoning.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from nrt_jax import losses, rows
from nrt_jax.algorithms.interface import Algorithm, Collected, Tools
from nrt_jax.arrays import LossSums, TrainBatch
from nrt_jax.errors import require_choice


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


def collect(tools: Tools, config: SftConfig, states, prompts, key) -> Collected:
  del states, key  # nothing is sampled
  spliced = splice(tools, prompts)
  learnt_NL = spliced.trace_mask_NL | spliced.answer_mask_NL
  if config.train_marker:
    learnt_NL |= spliced.marker_mask_NL
  if config.train_prompt:
    learnt_NL |= (spliced.position_NL > 0) & ~spliced.marker_mask_NL  # position 0 has nothing to be predicted from
  weight_N1 = losses.normaliser(
    learnt_NL, config.normalisation, tools.minibatches, 1, config.normalisation_constant, tools.all_sum
  )
  batch = supervised_batch(spliced, learnt_NL * weight_N1, 1 if config.train_prompt else None)
  samples = {
    "prompt": prompts.prompt_BP,
    "prompt_length": prompts.prompt_length_B,
    "trace": prompts.trace_BR,
    "trace_length": prompts.trace_length_B,
    "answer": prompts.answer_BA,
    "answer_length": prompts.answer_length_B,
  }
  return Collected(batch, {}, samples)


def loss(tools: Tools, config: SftConfig, params, batch: TrainBatch) -> LossSums:
  """Cross-entropy of the learnt tokens."""
  logp_NL, _ = tools.log_probs(params, batch)
  total = losses.supervised(logp_NL, batch.answer_coef_NL).sum()
  metrics = {
    "loss/total": total,
    "answer/logp": (jnp.sum(logp_NL * batch.answer_mask_NL), jnp.sum(batch.answer_mask_NL)),
  }
  return LossSums(total, metrics)


ALGORITHM = Algorithm(config=SftConfig, collect=collect, loss=loss, samples_traces=False)
