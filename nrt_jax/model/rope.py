"""Rotary positions (RoFormer, arXiv 2104.09864 section 3.2.2): frequencies, angles, and which layers turn by which.

`config` is an architecture.ModelConfig throughout. r is the part of a head that is rotated, its first `r` numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np


def rope_frequencies(config, local: bool = False) -> np.ndarray:
  """Inverse frequencies `[r / 2]`. local: those of layers with a sliding window, where these have a base of their own.

  Scaled as in transformers: llama3 as in Llama 3.1's code. No scaling applies to local frequencies.
  """
  width = int(config.head_dim * config.partial_rotary_factor)
  theta = config.local_rope_theta if local else config.rope_theta
  inverse = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
  scaling = None if local else config.rope_scaling
  if scaling is None or scaling.rope_type == "dynamic":  # which changes nothing up to max_position_embeddings
    return inverse
  if scaling.rope_type == "linear":
    return inverse / scaling.factor
  if scaling.rope_type == "longrope":
    return inverse / np.array(scaling.long_factor if config.long_rope else scaling.short_factor)
  if scaling.rope_type == "yarn":
    keep = yarn_share(scaling, theta, width)
    return inverse * keep + inverse / scaling.factor * (1 - keep)
  turns = scaling.original_max_position_embeddings * inverse / (2 * np.pi)
  # High frequencies are kept, low ones are divided by `factor`, those in between are interpolated.
  keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
  keep = np.clip(keep, 0.0, 1.0)
  return inverse * keep + inverse / scaling.factor * (1 - keep)


def yarn_share(scaling, theta: float, width: int) -> np.ndarray:
  """Share `[width / 2]` of each frequency that is kept: 1 for high ones, 0 for low ones (YaRN, arXiv 2309.00071)."""

  def dimension(turns):  # the one whose frequency makes so many turns over the original length
    length = scaling.original_max_position_embeddings
    return width * np.log(length / (turns * 2 * np.pi)) / (2 * np.log(theta))

  low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
  if scaling.truncate:
    low, high = np.floor(low), np.ceil(high)
  low, high = max(low, 0), min(high, width - 1)
  return 1 - np.clip((np.arange(width // 2) - low) / max(high - low, 1e-3), 0, 1)


def rotation(config, position_NT, local: bool = False):
  """cos and sin `[N, T, 1, r / 2]`, in float32: bfloat16 would round position 257 to 256."""
  frequencies = jnp.asarray(rope_frequencies(config, local), jnp.float32)
  angle = jnp.maximum(position_NT, 0)[..., None] * frequencies[None, None]
  scaled = config.rope_scaling is not None and not local
  factor = config.rope_scaling.attention_factor if scaled else 1.0
  angles = tuple(turn(angle)[:, :, None] * factor for turn in (jnp.cos, jnp.sin))
  if config.target == "cpu":
    # XLA:CPU would fuse the cosines, and everything the positions depend on, into every use in every layer; barriers
    # are removed before that. It fuses nothing into a matrix product.
    angles = tuple(part @ jnp.eye(part.shape[-1]) for part in angles)
  return angles


def rotations(config, position_NT):
  """A function from (whether a layer slides, whether it rotates), bool `[]`, to its cos and sin."""
  angles = rotation(config, position_NT)
  local = None if config.local_rope_theta is None else rotation(config, position_NT, local=True)

  def of(slides, turns):
    found = angles if local is None else jax.tree.map(lambda a, b: jnp.where(slides, a, b), local, angles)
    if config.rope_layers is None:
      return found
    return jnp.where(turns, found[0], 1), jnp.where(turns, found[1], 0)

  return of


def rotate(x_NTHh, angles):
  """The first r numbers of each head turned by `angles`, in pairs that lie r / 2 apart; the others as they are."""
  cos, sin = angles
  width = 2 * cos.shape[-1]
  first, second = jnp.split(x_NTHh[..., :width].astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x_NTHh.dtype)
  return turned if width == x_NTHh.shape[-1] else jnp.concatenate([turned, x_NTHh[..., width:]], -1)
