"""The order in which an epoch visits the examples: a pure function of (weights, seed, epoch)."""

import functools

import numpy as np


def order(size: int, seed: int, epoch: int, weights=None):
  """Indices of the examples that the epoch visits, `size` of them: int `[size]`.

  Without weights each is visited once. With weights `[size]` example i is visited size * w_i / Σ w times, rounded up or
  down at random (systematic sampling: the least variance that the right mean allows), so that equal weights make no
  difference, and one of weight 0 never comes.
  """
  if weights is None:
    return _permutation(size, seed, epoch)
  rng = np.random.default_rng((seed, epoch))
  shuffled = rng.permutation(size)  # or neighbours would hardly ever be rounded up together
  expected = np.cumsum(np.asarray(weights, np.float64)[shuffled])
  expected *= size / expected[-1]
  expected[-1] = size
  ends = np.floor(expected + rng.random()).astype(int)
  visits = np.diff(np.minimum(ends, size), prepend=0)
  return rng.permutation(np.repeat(shuffled, visits))


@functools.lru_cache(maxsize=4)
def _permutation(size, seed, epoch):
  return np.random.default_rng((seed, epoch)).permutation(size)
