"""How much each token of a trace moved the reference answer: it is scored behind every prefix of the trace.

    movement_t = log p(y* | x, z_<=t) - log p(y* | x, z_<t),   summed over the answer's tokens, the marker given

The prompt and the whole trace are run once. What lies behind a cut is then hidden from the answer by its position, so
that a cut costs marker and answer alone. The movements of a trace add up to what all of it changed.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import forward
from nrt_jax.rollout.scoring import score_answers
from nrt_jax.sharding import batch_ways

SCORES = 2**26  # attention scores of all heads that are in memory at once, where several cuts are scored together


@struct.dataclass
class Movement:
  """Answers behind each prefix of a trace. C = ceil(R / every) stretches of `every` tokens, the last one shorter."""

  moved_NC: jax.Array  # float32, nats by which a stretch of the trace moved the answer; 0 beyond the trace
  answer_logp_NA: jax.Array  # float32, behind the whole trace
  empty_logp_NA: jax.Array  # float32, behind none of it


def measure(params, config: ModelConfig, marker_ids, every: int, prompt, trace, answer) -> Movement:
  """The Movement of N rows. prompt, trace, answer: each (token `[N, width]`, its length `[N]`); prompts padded left.

  every: tokens of the trace between two cuts. A stop token must not be counted as part of the trace.
  """
  (prompt_NP, prompt_length_N), (trace_NR, trace_length_N), (answer_NA, answer_length_N) = prompt, trace, answer
  P, R = prompt_NP.shape[1], trace_NR.shape[1]
  token_NT, column = jnp.concatenate([prompt_NP, trace_NR], 1), jnp.arange(P + R)[None]
  start_N = P - prompt_length_N
  valid = (column >= start_N[:, None]) & (column < P + trace_length_N[:, None])
  position_NT = jnp.where(valid, column - start_N[:, None], -1)
  hidden_NTD, cache = forward(params, config, token_NT, position_NT)
  suffix = dataclasses.replace(config, attention="xla")  # short, and kernels need not run several cuts at once

  def behind(cut):
    length_N = jnp.minimum(cut, trace_length_N)
    end_N = prompt_length_N + length_N
    hidden_ND = jnp.take_along_axis(hidden_NTD, (P + length_N - 1)[:, None, None], 1)[:, 0]
    seen = jnp.where(cache.position_MS < end_N[:, None], cache.position_MS, -1)  # kernels may move a row's columns
    answers = (marker_ids, answer_NA, answer_length_N, end_N)
    return score_answers(params, suffix, *answers, hidden_ND, (cache.replace(position_MS=seen),)).answer_logp_NA

  cuts = jnp.arange(-(-R // every) + 1) * every
  tokens = len(prompt_NP) * (len(marker_ids) + answer_NA.shape[1])
  logp_CNA = jax.lax.map(behind, cuts, batch_size=_together(config, tokens, P + R))
  total_CN = logp_CNA.sum(-1)
  return Movement((total_CN[1:] - total_CN[:-1]).T, logp_CNA[-1], logp_CNA[0])


def _together(config: ModelConfig, tokens: int, slots: int) -> int | None:
  """How many cuts of `tokens` each are scored at once: their logits and scores are bounded. None: one by one."""
  most = min(config.head_chunk * batch_ways(), SCORES // (config.num_attention_heads * slots))
  return most // tokens if most >= 2 * tokens and not config.num_experts else None
