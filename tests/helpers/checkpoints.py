"""Checkpoints written synchronously, and the bits of an array."""

import jax
import numpy as np

from nrt_jax.records.checkpoint import CheckpointConfig

SYNC = CheckpointConfig(async_save=False, keep_last=2)


def raw(leaf):
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf).tobytes()
