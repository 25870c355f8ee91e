"""Sums, means, deviations and log-sum-exps over the True entries of a boolean mask.

Each takes a mask of the shape of `x` and reduces `axis` (None: everything). Entries off the mask, NaN included, have no
influence on values or gradients, and an empty mask gives a number whose gradient is 0 rather than NaN.
"""

import jax
import jax.numpy as jnp


def masked_sum(x, mask, axis=None, keepdims=False):
  """Sum of `x` where `mask`; 0 where the mask is empty."""
  return jnp.sum(x, axis=axis, keepdims=keepdims, where=mask)


def masked_mean(x, mask, axis=None, keepdims=False):
  """Mean of `x` where `mask`; 0 where the mask is empty."""
  count = jnp.sum(mask, axis=axis, keepdims=keepdims)
  return masked_sum(x, mask, axis, keepdims) / jnp.maximum(count, 1)


def masked_std(x, mask, axis=None, unbiased=True, keepdims=False):
  """Standard deviation of `x` where `mask`, with n - 1 (`unbiased`) or n in the denominator.

  0 where there are too few entries (under 2, or under 1). Its gradient is 0, not NaN, where the deviation is 0.
  """
  deviation = jnp.where(mask, x - masked_mean(x, mask, axis, keepdims=True), 0)
  total = masked_sum(deviation**2, mask, axis, keepdims)
  count = jnp.sum(mask, axis=axis, keepdims=keepdims)
  variance = total / jnp.maximum(count - int(unbiased), 1)
  positive = variance > 0
  # Both branches of a `where` are differentiated: the root must not see the 0 at which its slope is infinite.
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)


def masked_logsumexp(x, mask, axis=None, keepdims=False):
  """log Σ exp(x) where `mask`, without overflow; -inf where the mask is empty."""
  return jax.nn.logsumexp(x, axis=axis, keepdims=keepdims, where=mask)
