"""Attention over several segments of keys and values at once, and KV caches.

Masks follow from positions alone: a query at position p sees the slots with 0 <= position <= p (and, with a sliding
window w, p - position < w), so padding, ragged prompts and empty slots need no masks of their own. `config` is always
an architecture.ModelConfig.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

MASKED = -1e30  # finite, so that a row with nothing to attend to also stays finite


@struct.dataclass
class Int8:
  """Keys or values in eight bits, `number * scale`, with one scale per token and head."""

  number: jax.Array  # int8 [..., S, h]
  scale: jax.Array  # float32 [..., S, 1]

  def astype(self, _):  # a no-op: attention widens the numbers when it multiplies by them
    return self


@struct.dataclass
class KVCache:
  """Keys and values of one attention segment. Each of its M rows serves N / M of the N query rows.

  `key` and `value` are one array `[layers, M, K, S, h]` if layers are scanned, else a tuple of `[M, K, S, h]`. In
  eight bits, each array is an Int8.
  """

  key: jax.Array | Int8 | tuple
  value: jax.Array | Int8 | tuple
  position_MS: jax.Array  # int32, -1 for empty slots


def empty_cache(config, rows: int, slots: int, dtype) -> KVCache:
  """A cache of `rows` x `slots` empty slots."""
  shape = (rows, config.num_key_value_heads, slots, config.head_dim)
  if config.scan_layers:
    key = value = store(jnp.zeros((config.num_hidden_layers, *shape)), dtype)
  else:
    key = value = tuple(store(jnp.zeros(shape), dtype) for _ in range(config.num_hidden_layers))
  return KVCache(key, value, jnp.full((rows, slots), -1, jnp.int32))


def store(x, dtype):
  """Converts keys or values to the storage of a cache of this dtype: Int8 for int8."""
  if dtype != jnp.int8:
    return x.astype(dtype)
  scale = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1, keepdims=True) / 127
  number = jnp.round(x / jnp.where(scale == 0, 1.0, scale))
  return Int8(number.astype(jnp.int8), scale)


def store_cache(cache: KVCache, dtype) -> KVCache:
  """Converts a cache of computed keys and values to another dtype."""
  key, value = (jax.tree.map(lambda x: store(x, dtype), x) for x in (cache.key, cache.value))
  return cache.replace(key=key, value=value)


def put_slots(old, new, slot, axis):
  """Writes `new` into `old` from index `slot` of `axis` on, in the storage of `old`."""
  if isinstance(old, Int8) and not isinstance(new, Int8):
    new = store(new, jnp.int8)
  put = jax.lax.dynamic_update_slice_in_dim
  return jax.tree.map(lambda old, new: put(old, new.astype(old.dtype), slot, axis), old, new)


def write_cache(cache: KVCache, new: KVCache, slot) -> KVCache:
  return KVCache(
    key=put_slots(cache.key, new.key, slot, -2),
    value=put_slots(cache.value, new.value, slot, -2),
    position_MS=put_slots(cache.position_MS, new.position_MS, slot, -1),
  )


def grow_cache(cache: KVCache, slots: int) -> KVCache:
  """Grows a cache to `slots` slots; the new ones are empty."""
  more = slots - cache.position_MS.shape[1]

  def pad(x):
    return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, more), (0, 0)))

  position_MS = jnp.pad(cache.position_MS, ((0, 0), (0, more)), constant_values=-1)
  return KVCache(jax.tree.map(pad, cache.key), jax.tree.map(pad, cache.value), position_MS)


def visible(position_NT, position_MS, window: int | None, example_NT=None):
  """Which slots each query sees: bool `[M, N / M, T, S]`. example_NT (see decoder.forward): slots are the queries."""
  rows = position_MS.shape[0]
  query = position_NT.reshape(rows, -1, position_NT.shape[1], 1)
  slot = position_MS[:, None, None, :]
  seen = (slot >= 0) & (slot <= query)
  if example_NT is not None:
    seen &= (example_NT[:, :, None] == example_NT[:, None])[:, None]
  return seen if window is None else seen & (query - slot < window)


def _scores(query_MKqh, key_MKSh, target: str | None):
  """Products of queries and keys, float32 `[M, K, q, S]`."""
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  if target == "cpu" and query_MKqh.shape[2] == 2:
    # XLA:CPU transposes the keys before a matrix product, but reads them in place for a single query.
    return jnp.stack([product("mkh,mksh->mks", query_MKqh[:, :, i], key_MKSh) for i in range(2)], 2)
  return product("mkqh,mksh->mkqs", query_MKqh, key_MKSh)


def attend(query_NTHh, segments, target: str | None = None, multiplier: float | None = None, softcap=None):
  """Softmax attention over several key/value segments at once, `[N, T, H, h]`.

  Each segment is (key_MKSh, value_MKSh, seen_MrTS). A segment with fewer rows than the queries is read once for the
  N / M rows that share it. Query head i uses key/value head i // (H / K), as in Hugging Face's models. Keys and values
  may be Int8: their scales multiply the scores and the weights, which avoids a widened copy. target: the platform (see
  architecture.ModelConfig). multiplier: of the scores; None: h**-0.5. softcap: see ModelConfig.
  """
  N, T, H, h = query_NTHh.shape
  multiplier = h**-0.5 if multiplier is None else multiplier
  K = jax.tree.leaves(segments[0][0])[0].shape[1]
  group = H // K

  # All queries of a key/value head form one axis, q = (r, T, group): with more free axes XLA transposes the keys or
  # multiplies in slow loops.
  def to_rows(x_MKq):  # [M, K, q, ...] -> [N, T, K, group, ...]
    M, tail = x_MKq.shape[0], x_MKq.shape[3:]
    return x_MKq.reshape(M, K, N // M * T, group, *tail).swapaxes(1, 2).reshape(N, T, K, group, *tail)

  def from_rows(x_NTKg, M):
    tail = x_NTKg.shape[4:]
    return x_NTKg.reshape(M, N // M * T, K, group, *tail).swapaxes(1, 2).reshape(M, K, -1, *tail)

  def split(x_MKSh):  # the factor, and the scale of each slot
    if isinstance(x_MKSh, Int8):
      return x_MKSh.number.astype(query_NTHh.dtype), x_MKSh.scale.swapaxes(2, 3)
    return x_MKSh, 1.0

  query, logits = query_NTHh.reshape(N, T, K, group, h), []
  for key_MKSh, _, seen in segments:
    M, r, _, S = seen.shape
    key, scale = split(key_MKSh)
    score = _scores(from_rows(query, M), key, target) * (scale * multiplier)
    score = score if softcap is None else softcap * jnp.tanh(score / softcap)
    seen = jnp.broadcast_to(seen[:, None, :, :, None], (M, 1, r, T, group, S)).reshape(M, 1, -1, S)
    logits.append(jnp.where(seen, score, MASKED))
  top = functools.reduce(jnp.maximum, [to_rows(score.max(-1)) for score in logits])
  top = jax.lax.stop_gradient(top)
  total = out = 0.0
  for (_, value_MKSh, _), score in zip(segments, logits):
    weight = jnp.exp(score - from_rows(top, score.shape[0])[..., None])
    total += to_rows(weight.sum(-1))
    value, scale = split(value_MKSh)
    out += to_rows(jnp.einsum("mkqs,mksh->mkqh", (weight * scale).astype(value.dtype), value))
  return (out / total[..., None]).astype(query_NTHh.dtype).reshape(N, T, H, h)
