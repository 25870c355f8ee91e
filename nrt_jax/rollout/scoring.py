"""Teacher-forced log-probabilities: of whole rows, and of an answer on the rollout's own cache."""

import jax
import jax.numpy as jnp

from nrt_jax import rows
from nrt_jax.arrays import AnswerScores
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import forward, logits
from nrt_jax.sharding import batch_ways


def token_log_probs(
  params,
  config: ModelConfig,
  hidden_NTD,
  target_NT,
  inverse_temperature_NT=None,
  entropy_gradient=False,
  forced_NT=None,
):
  """log softmax(logits / temperature)[target] and the entropy of that distribution, both float32 `[N, T]`.

  The head runs over chunks of columns, in the backward pass too (each chunk's logits are computed again), so an
  array `[N, T, V]` never exists. Rows are not chunked: they are what is spread over devices. The entropy has a gradient
  only where it is asked for. With `forced_NT` there is a third result: log softmax(logits)[forced], at temperature 1.
  """
  N, T, _ = hidden_NTD.shape
  tempered = inverse_temperature_NT is not None
  scale_NT = inverse_temperature_NT if tempered else jnp.ones((N, T))
  # Both targets are picked at once: the gradient of a pick is an array of logits.
  targets = jnp.stack([target_NT] if forced_NT is None else [target_NT, forced_NT], axis=-1)

  @jax.checkpoint
  def chunk(inputs):
    hidden, targets, scale = inputs
    with jax.named_scope("head"):
      plain = logits(params, config, hidden)
      scaled = plain * scale[..., None]
      total = jax.nn.logsumexp(scaled, axis=-1)
      picked = jnp.take_along_axis(scaled, targets, -1)
      known = scaled if entropy_gradient else jax.lax.stop_gradient(scaled)
      entropy = jax.nn.logsumexp(known, axis=-1) - jnp.sum(jax.nn.softmax(known) * known, -1)
      found = picked[..., 0] - total, entropy
      if forced_NT is None:
        return found
      if not tempered:
        return *found, picked[..., 1] - total
      forced = jnp.take_along_axis(plain, targets[..., 1:], -1)[..., 0]
      return *found, forced - jax.nn.logsumexp(plain, axis=-1)

  return _by_columns(config, chunk, (hidden_NTD, targets, scale_NT))


def best_log_probs(params, config: ModelConfig, hidden_NTD, target_NT):
  """log softmax(logits)[target], float32 `[N, T]`, and the likeliest token there, int32 `[N, T]`. In chunks, too."""

  def chunk(inputs):
    hidden, target = inputs
    with jax.named_scope("head"):
      found = logits(params, config, hidden)
      picked = jnp.take_along_axis(found, target[..., None], -1)[..., 0]
      return picked - jax.nn.logsumexp(found, axis=-1), jnp.argmax(found, -1).astype(jnp.int32)

  return _by_columns(config, chunk, (hidden_NTD, target_NT))


def _by_columns(config: ModelConfig, chunk, arrays):
  """The tuple of `[N, T]` that chunk(arrays `[N, T, ...]`) returns, computed some columns at a time."""
  N, T = arrays[0].shape[:2]
  width = min(T, max(1, config.head_chunk * batch_ways() // N))
  chunks = -(-T // width)
  if chunks == 1:
    return chunk(arrays)

  def cut(x):
    x = jnp.pad(x, ((0, 0), (0, chunks * width - T)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(N, chunks, width, *x.shape[2:]).swapaxes(0, 1)

  found = jax.lax.map(chunk, tuple(map(cut, arrays)))
  return tuple(x.swapaxes(0, 1).reshape(N, chunks * width)[:, :T] for x in found)


def row_log_probs(
  params,
  config: ModelConfig,
  token_NL,
  position_NL,
  first: int,
  inverse_temperature_NL=None,
  entropy_gradient=False,
  example_NL=None,
  target_NL=None,
):
  """Log-probability of each token given those before it, and the entropy there; 0 before column `first` and on pads.

  Returns: logp_NL, entropy_NL, float32. `first` is static and at least 1. example_NL: of packed rows, see
  decoder.forward; an example's first token is then predicted from the end of another, and means nothing. target_NL:
  tokens scored instead of token_NL; a third result is then the log-probability of token_NL at temperature 1.
  """
  hidden_NLD, _ = forward(params, config, token_NL, position_NL, example_NT=example_NL)
  scale = None if inverse_temperature_NL is None else inverse_temperature_NL[:, first:]
  hidden, target = hidden_NLD[:, first - 1 : -1], token_NL[:, first:]
  targets = (target, None) if target_NL is None else (target_NL[:, first:], target)
  found = token_log_probs(params, config, hidden, targets[0], scale, entropy_gradient, targets[1])
  valid = position_NL[:, first:] >= 0
  return tuple(jnp.pad(jnp.where(valid, x, 0.0), ((0, 0), (first, 0))) for x in found)


def shared_log_probs(params, config: ModelConfig, batch, shared: int, scale_NL=None, entropy_gradient=False):
  """`row_log_probs` of a TrainBatch of which each `shared` adjacent rows have the same prompt, which is run once.

  What follows the prompt must lie in the columns from P on. With batch.packed it is run in one row for each prompt, of
  so many columns. Returns as `row_log_probs` does with batch.target_NL; 0 in the first P columns.
  """
  P, own_NL = batch.prompt_NP.shape[1], batch.position_NL >= batch.prompt_length_N[:, None]
  prompt_BP, length_B = (x.reshape(-1, shared, *x.shape[1:])[:, 0] for x in (batch.prompt_NP, batch.prompt_length_N))
  position_BP = jnp.arange(P)[None] - (P - length_B[:, None])
  prompt_hidden_BPD, cache = forward(params, config, prompt_BP, jnp.maximum(position_BP, -1))

  valid = own_NL[:, P:]
  token, position = batch.token_NL[:, P:], jnp.where(valid, batch.position_NL[:, P:], -1)
  scale, example = None if scale_NL is None else scale_NL[:, P:], None
  targets = (token, None) if batch.target_NL is None else (batch.target_NL[:, P:], token)
  if batch.packed:
    bring, put_back, example = rows.pack(valid, shared, batch.packed)
    token, position, scale = bring(token, 0), bring(position, -1), None if scale is None else bring(scale, 1.0)
    targets = tuple(None if x is None else bring(x, 0) for x in targets)
  hidden, _ = forward(params, config, token, position, (cache,), example_NT=example)
  # The first own token is predicted from the prompt's last, which lies in no column of the row.
  before = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
  prompt_hidden_BD, each = prompt_hidden_BPD[:, -1], len(token) // len(length_B)
  is_first = position == length_B.repeat(each)[:, None]
  before = jnp.where(is_first[..., None], prompt_hidden_BD.repeat(each, axis=0)[:, None], before)
  found = token_log_probs(params, config, before, targets[0], scale, entropy_gradient, targets[1])
  found = (put_back(x) for x in found) if batch.packed else (jnp.where(valid, x, 0.0) for x in found)
  return tuple(jnp.pad(x, ((0, 0), (P, 0))) for x in found)


def score_answers(params, config: ModelConfig, marker_ids, answer_NA, answer_length_N, start_N, hidden_ND, caches):
  """Scores marker + answer on top of what `caches` hold: |answer| tokens, not a second pass over prompt and trace.

  Args: start_N: position of the first marker token; hidden_ND: final hidden state of the token before it.
  """
  N, M = answer_NA.shape[0], len(marker_ids)
  marker = jnp.broadcast_to(jnp.asarray(marker_ids, jnp.int32).reshape(1, M), (N, M))
  suffix = jnp.concatenate([marker, answer_NA], 1)
  column = jnp.arange(suffix.shape[1])[None]
  valid = column < M + answer_length_N[:, None]
  position = jnp.where(valid, start_N[:, None] + column, -1)
  hidden = hidden_ND[:, None]
  if suffix.shape[1] > 1:  # a single token is predicted from what is there
    more, _ = forward(params, config, suffix[:, :-1], position[:, :-1], caches)
    hidden = jnp.concatenate([hidden.astype(more.dtype), more], 1)
  logp, _ = token_log_probs(params, config, hidden, suffix)
  logp = jnp.where(valid, logp, 0.0)
  return AnswerScores(marker_logp_NM=logp[:, :M], answer_logp_NA=logp[:, M:])
