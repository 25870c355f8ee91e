"""Digests: 32 bits for each array of a checkpoint and for its record, by which a reader finds bits that have changed.

    digest(a) = Σ_i mix(word_i ^ (i · ODD))  mod 2^32        word_i: the bits of element i, in row-major order

`mix` is a bijection, so a change of one element always changes the digest; one of several elements goes unnoticed once
in 2^32. A sum has no order: the digest does not depend on how a mesh cuts the array. Each device sums over its own
shards, where they lie, and nothing is copied to the host but the result.
"""

import functools
import json
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

ODD = 0x9E3779B1  # 2^32 over the golden ratio: neighbouring indices differ in many bits
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)  # odd, or `mix` would not be a bijection
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # bytes of an element -> what its bits are read as
DIGESTS, SEAL = "digests", "seal"  # keys of a record


def of_arrays(leaves: dict) -> dict:
  """name -> digest, as eight hexadecimal digits, of arrays on any devices. Every host must call this."""
  # Each is awaited before the next is started: with several such programs in flight, XLA:CPU's devices take the threads
  # that others of the same sum are waiting for, and the process hangs.
  return {name: f"{int(_digest(leaf, _is_on_host(leaf))):08x}" for name, leaf in leaves.items()}


def seal(record: dict, arrays: dict) -> dict:
  """The record with the arrays' digests, and a checksum over all of it."""
  whole = {**record, DIGESTS: arrays}
  return {**whole, SEAL: _checksum(whole)}


def unseal(stored: dict) -> tuple[dict, dict]:
  """(record, the arrays' digests), of what `seal` made. ValueError if it has changed since.

  A record without a seal, from before there were any, has no digests.
  """
  if not {DIGESTS, SEAL} & stored.keys():
    return stored, {}
  record = dict(stored)
  found = record.pop(SEAL, None)
  if found != _checksum(record):
    raise ValueError("its record is not what was written")
  return record, record.pop(DIGESTS)


def changed(leaves: dict, expected: dict) -> str | None:
  """The first array whose digest is not the expected one; None if all are, or none is expected."""
  found = of_arrays({name: leaf for name, leaf in leaves.items() if name in expected})
  return next((name for name in found if found[name] != expected[name]), None)


def _checksum(record: dict) -> str:
  return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _is_on_host(leaf) -> bool:
  return isinstance(leaf, jax.Array) and leaf.sharding.memory_kind == "pinned_host"


@functools.partial(jax.jit, static_argnums=1)
def _digest(leaf, fetches: bool):
  """uint32 []. fetches: the array waits in the host's memory, where nothing can be computed."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if fetches:
    leaf = jax.device_put(leaf, jax.memory.Space.Device)
  words = _words(leaf)
  index = jnp.zeros(words.shape, jnp.uint32)
  for axis in range(words.ndim):
    stride = np.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
    index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
  mixed = _mix(words ^ (index * np.uint32(ODD)))
  if words.ndim > 1:  # over the outer axis first: XLA:CPU makes vectors of the inner ones, in half the time
    mixed = jax.lax.optimization_barrier(jnp.sum(mixed, axis=0, dtype=jnp.uint32))
  return jnp.sum(mixed, dtype=jnp.uint32)


def _words(array):
  if array.dtype == bool:
    return array.astype(jnp.uint32)
  return jax.lax.bitcast_convert_type(array, WORDS[array.dtype.itemsize]).astype(jnp.uint32)


def _mix(word):
  """A word whose every bit depends on all bits of the given one: shifts and products in turn, all invertible."""
  first, second = map(np.uint32, MULTIPLIERS)
  word = (word ^ (word >> 16)) * first
  word = (word ^ (word >> 15)) * second
  return word ^ (word >> 16)
