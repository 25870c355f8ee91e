"""The dimension key, and the dataclasses of arrays that cross modules.

A tensor's name ends in the letters of its axes (`logp_NL`). The letters:

  B  prompts (examples) in a step        G  samples per prompt            N  B * G rows; row n = b * G + g
  P  prompt columns                      R  trace columns                 M  marker tokens between trace and answer
  A  answer columns                      L  P + R + M + A columns         T  the queries of one forward call
  V  vocabulary                          D  model width                   F  mlp width; tokens that a turn forces
  H  query heads                         K  key/value heads               h  width of one head
  S  slots of a key/value cache          Q  hint columns

*Trace* = the sampled reasoning z. *Answer* = the reference y*, including its end token.
*Completion* = what the model generates on its own at evaluation. *Marker* = the tokens that close a trace.
A position of -1 marks an empty column: it is never attended to and never trained on.
"""

import jax
from flax import struct


@struct.dataclass
class Prompts:
  """One step's question-answer pairs as token ids. Prompts are right-aligned, traces and answers left-aligned."""

  prompt_BP: jax.Array  # int32, padded on the left
  prompt_length_B: jax.Array  # int32, at least 1
  answer_BA: jax.Array  # int32, padded on the right, ends with the end-of-answer token
  answer_length_B: jax.Array  # int32, at least 1
  trace_BR: jax.Array  # int32, a trace from the data, padded on the right (R may be 0)
  trace_length_B: jax.Array  # int32, 0 if the data has no trace
  example_B: jax.Array  # int32, position in the data stream; unique per draw, so each draw has its own keys
  # int32, padded on the left: a second prompt, which shows the answer, or the beginning of a critic's, or the world of
  # an environment; None if unused
  hint_BQ: jax.Array | None = None
  hint_length_B: jax.Array | None = None  # int32, at least 1


@struct.dataclass
class PackedPrompts:
  """One step's rows, each holding several whole examples back to back (see data/packing.py)."""

  token_BL: jax.Array  # int32, padded on the right
  position_BL: jax.Array  # int32, from 0 in each example, -1 on pads
  example_BL: jax.Array  # int32, index of the example within its row, -1 on pads
  kind_BL: jax.Array  # int8: index into packing.KINDS, -1 on pads
  shown: Prompts  # the first example of each row, for samples.jsonl


@struct.dataclass
class Rollouts:
  """Sampled traces, left-aligned: the tokens as sampled, including the stop token."""

  token_NR: jax.Array  # int32
  length_N: jax.Array  # int32, sampled tokens, including the stop token
  logp_NR: jax.Array  # float32, log-probability under the sampling policy; 0 beyond length
  ended_N: jax.Array  # bool, whether a stop token was sampled within the limit
  marker_N: jax.Array  # bool, whether that stop token was the first marker token
  # Of an environment (environments/interface.py); None where there is none. It ends a row as a stop token does.
  forced_NR: jax.Array | None = None  # bool, tokens that it wrote: never trained
  earned_N: jax.Array | None = None  # float32, the sum of its rewards
  verdict_N: jax.Array | None = None  # float32 in [0, 1], how right it finds the row, if it judges


@struct.dataclass
class AnswerScores:
  """Teacher-forced log-probabilities of marker and answer; 0 beyond the answer's length."""

  marker_logp_NM: jax.Array  # float32
  answer_logp_NA: jax.Array  # float32, log c_i: the answer after its trace


@struct.dataclass
class TrainBatch:
  """Rows `[pad | prompt | trace | marker | answer | pad]` with every coefficient of the update.

  Coefficients already include advantage, mask and normalization, so the loss is a plain sum over rows and columns;
  0 means "no gradient here". Column t holds the terms for predicting token_NL[:, t] from the columns before it. Where
  the marker replaced another stop token, the trace's terms are for the stop token: target_NL.
  """

  token_NL: jax.Array  # int32
  position_NL: jax.Array  # int32, -1 on pads
  trace_coef_NL: jax.Array  # float32, A_k times the normalizer on trace tokens
  trace_weight_NL: jax.Array  # float32, the normalizer alone on trace tokens, for KL and entropy
  behaviour_logp_NL: jax.Array  # float32, log-probability under the policy that sampled the trace
  reference_logp_NL: jax.Array  # float32, log-probability under the reference, if the loss has a KL term
  answer_coef_NL: jax.Array  # float32, s_i times the normalizer on answer tokens
  format_coef_NL: jax.Array  # float32, weight times the normalizer on marker tokens the model did not emit
  trace_mask_NL: jax.Array  # bool, tokens of the trace loss, for metrics
  sampled_mask_NL: jax.Array  # bool, tokens drawn, and therefore scored, at the sampling temperature
  answer_mask_NL: jax.Array  # bool, for metrics
  format_mask_NL: jax.Array  # bool, marker tokens that the model did not emit
  first: int = struct.field(pytree_node=False)  # all coefficients before this column are 0; the head starts here
  example_NL: jax.Array | None = None  # int32, the example of each token; examples don't attend to each other
  prompt_NP: jax.Array | None = None  # int32, padded on the left: the prompt, if the rows of a group share it
  prompt_length_N: jax.Array | None = None  # int32
  target_NL: jax.Array | None = None  # int32, what was sampled at each column; None: token_NL itself
  # float32, log-probability under the policy at the start of the step's updates, as they compute it; None: not needed
  start_logp_NL: jax.Array | None = None
  at_start_N: jax.Array | None = None  # bool, rows of the first minibatch, whose update is that policy's own
  temperature_N: jax.Array | None = None  # float32, at which a row's tokens were drawn; None: sampling.temperature
  extra: dict = struct.field(default_factory=dict)  # name -> array [N, ...]: additional inputs of one method's loss
  packed: int = struct.field(pytree_node=False, default=0)  # columns packed after a shared prompt; 0: not packed


@struct.dataclass
class LossSums:
  """A loss as sums: `total` is differentiated; a metric is (numerator, denominator), divided once at the end."""

  total: jax.Array  # float32 []
  metrics: dict  # name -> (numerator [], denominator []); or a scalar [], combined by max for "..._max", else by sum


def repeat_rows(tree, samples_per_prompt: int):
  """Repeats each row of a tree of `[B, ...]` for its samples: `[B * G, ...]`, row n = b * G + g."""
  return jax.tree.map(lambda a: a.repeat(samples_per_prompt, axis=0), tree)
