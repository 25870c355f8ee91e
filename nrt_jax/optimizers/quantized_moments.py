"""Optimizer moments in eight bits: block-wise codes with uniform relative precision and no bias over time.

Blocks and their scales are those of block-wise 8-bit optimizers (Dettmers et al. 2021, arXiv 2110.02861, section 2.1):
a block is divided by its largest magnitude. The code differs. Adam divides one moment by the root of the other, so
every entry needs relative precision, however small it is compared with its block's largest: levels form a geometric
series from 1 down to 2^-octaves. A moment moves by less per update than the spacing of levels, so rounding to nearest
would pin it. Instead, an entry between two levels takes the upper one in a share of the updates equal to its relative
distance from the lower one.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SMALLEST, BLOCK = 32, 128  # entries of a block
SHARDS = 16  # blocks per axis are a multiple of this if they can be that small, so that shards hold whole blocks
KEPT = 4096  # leaves with fewer entries stay in float32


class Code(NamedTuple):
  """An eight-bit code of a moment: 0, and `levels` magnitudes 2^(octaves (k - levels) / (levels - 1))."""

  dtype: str
  levels: int
  octaves: float
  never_zero: bool  # positive values stay positive, since they are divisors
  stride: int  # of the dither over updates, modulo 2^32: an irrational fraction, so that it fills [0, 1) evenly


# Levels are 9 % apart in both moments. 16 octaves of gradients are 32 octaves of their squares.
FIRST = Code("int8", 127, 16.0, False, 2654435769)  # fractional part of the golden ratio, times 2^32
SECOND = Code("uint8", 255, 32.0, True, 1779033703)  # fractional part of the square root of 2, times 2^32
AXIS_STRIDES = (3242174889, 2447445413, 1598127363, 3625703077)  # of the dither over entries


class Coded(NamedTuple):
  """A tree of moments: codes with the shapes of the leaves, and a float32 scale for each block.

  A leaf kept in float32 is its own code, with scale 1 [].
  """

  code: dict
  scale: dict


def blocks_of(shape: tuple) -> tuple[int, int] | None:
  """(axis, entries of a block) for a leaf of this shape; None if it is kept in float32.

  Depends on the shape alone, so that a checkpoint fits any mesh. Splits the axis whose size has the largest
  power of two as a factor; on a tie the shortest, since blocks along a vocabulary would mix tokens.
  """
  if math.prod(shape) < KEPT:
    return None
  twos = [size & -size for size in shape]
  axis = max(range(len(shape)), key=lambda i: (twos[i], -shape[i], i))
  block = min(BLOCK, max(SMALLEST, twos[axis] // SHARDS))
  return (axis, block) if twos[axis] >= SMALLEST else None


def encode_tree(code: Code, tree, wanted, update) -> Coded:
  """Encodes a tree of float32 moments after update number `update` (int32 []); `wanted`: which leaves to encode."""
  leaves, structure = jax.tree.flatten(tree)
  pairs = [encode(code, x, update) if yes else _kept(x) for x, yes in zip(leaves, jax.tree.leaves(wanted))]
  return Coded(*(structure.unflatten([pair[i] for pair in pairs]) for i in (0, 1)))


def decode_tree(code: Code, coded: Coded):
  """Decodes the moments to float32."""
  return jax.tree.map(lambda entry, scale: decode(code, entry, scale), coded.code, coded.scale)


def encode(code: Code, x, update):
  """(codes like x, scales: x's shape with one entry per block along its block axis)."""
  where = blocks_of(x.shape)
  if where is None:
    return _kept(x)
  cut = _cut(x, *where)
  scale = jnp.max(jnp.abs(cut), axis=where[0] + 1, keepdims=True)
  ratio = _join(jnp.abs(cut) / jnp.where(scale > 0, scale, 1), *where)
  index = round_to_level(code, ratio, dither(code, x.shape, update))
  return (jnp.sign(x) * index).astype(code.dtype), jnp.squeeze(scale, where[0] + 1)


def decode(code: Code, entry, scale):
  """Undoes `encode`, up to rounding."""
  if entry.dtype != code.dtype:
    return entry
  where = blocks_of(entry.shape)
  index = entry.astype(jnp.float32)
  magnitude = jnp.where(index == 0, 0, jnp.sign(index) * level(code, jnp.abs(index)))
  return _join(_cut(magnitude, *where) * jnp.expand_dims(scale, where[0] + 1), *where)


def level(code: Code, index):
  """The magnitude of a level; 1 for the last."""
  return jnp.exp2(code.octaves / (code.levels - 1) * (index - code.levels))


def round_to_level(code: Code, ratio, dither):
  """The level of magnitudes in [0, 1]: of the two nearest, the upper one if the dither is below its share.

  Below the first level there is only zero. With `never_zero`, such values take the first level: Adam's step is then
  too small, never too large.
  """
  y = code.levels + (code.levels - 1) / code.octaves * jnp.log2(jnp.where(ratio > 0, ratio, 1))
  lower = jnp.clip(jnp.floor(y), 1, code.levels - 1)
  low, high = level(code, lower), level(code, lower + 1)
  index = lower + (dither * (high - low) < ratio - low)
  first = level(code, 1.0)
  below = 1.0 if code.never_zero else (dither * first < ratio).astype(jnp.float32)
  return jnp.where(ratio > 0, jnp.where(ratio < first, below, index), 0)


def dither(code: Code, shape: tuple, update):
  """Numbers in [0, 1), spread evenly over the updates of each entry and over entries (Weyl sequences): float32.

  They depend on update and index alone, so a resumed run and every replica round identically.
  """
  total = jnp.full(shape, jnp.asarray(update, jnp.uint32) * np.uint32(code.stride))
  for axis in range(len(shape)):
    stride = np.uint32(AXIS_STRIDES[axis % len(AXIS_STRIDES)])
    total += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
  return (total >> 8).astype(jnp.float32) * np.float32(2**-24)


def _kept(x):
  """The code and scale of a leaf that is not encoded. Each scale is its own array, since states are donated."""
  return x, jnp.ones((), jnp.float32)


def _cut(x, axis: int, block: int):
  """Splits the axis into (blocks, block)."""
  return x.reshape(*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :])


def _join(x, axis: int, block: int):
  """Undoes `_cut`."""
  return x.reshape(*x.shape[:axis], x.shape[axis] * block, *x.shape[axis + 2 :])
