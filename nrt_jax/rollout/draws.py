"""Groups that teach nothing are drawn again, with other prompts (dynamic sampling: DAPO, arXiv 2503.14476, section 3).

A step is given K times the prompts that it trains on. It draws one such part after another, until enough groups vary or
all is used up, and keeps B groups: those that vary in the order in which they were drawn, then others, if they are too
few. What is kept lies spread over the devices as one draw does, and does not depend on how many there are.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from nrt_jax import rows
from nrt_jax.arrays import Prompts
from nrt_jax.sharding import constrain

VARIES, FLAT, EMPTY = 0, 1, 2  # the order of preference


@struct.dataclass
class Kept:
  """The groups that are kept so far, and what was drawn in all."""

  rank_B: jax.Array  # int32: VARIES, FLAT, or EMPTY where nothing was drawn yet
  prompts: Prompts  # [B]
  sampled: object  # tree of [B, G, ...]
  sums: dict  # metrics over everything drawn, see interface.Attempt
  draws: jax.Array  # int32 []
  varied: jax.Array  # int32 [], groups drawn that vary, over all devices


def draw(count: int, samples_per_prompt: int, axis: str | None, prompts: Prompts, attempt):
  """Draws `count` times at most: (prompts [B], sampled [N, ...], metric sums).

  attempt: prompts [B] -> interface.Attempt; axis: of pmap, over which the devices choose together.
  """
  if count == 1:
    made = attempt(prompts)
    return prompts, made.sampled, made.sums

  def once(kept: Kept) -> Kept:
    some = part(prompts, count, kept.draws)
    return add(kept, some, attempt(some), samples_per_prompt, axis)

  first = part(prompts, count, 0)
  kept = nothing(first, jax.eval_shape(attempt, first), samples_per_prompt)
  kept = jax.lax.while_loop(lambda kept: (kept.draws < count) & ~full(kept, axis), once, kept)
  return kept.prompts, flat(kept), metrics(kept, axis)


def part(prompts: Prompts, count: int, number) -> Prompts:
  """The prompts of draw `number`: every count-th, so that each device has as many of them."""
  cut = rows.cut_rows(prompts, count)
  return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, number, keepdims=False), cut)


def nothing(prompts: Prompts, shapes, samples_per_prompt: int) -> Kept:
  """Before the first draw, of which `prompts` and `shapes` (an Attempt) say the shapes."""
  sampled = by_group(shapes.sampled, samples_per_prompt)
  rank_B = jnp.full(prompts.prompt_length_B.shape, EMPTY, jnp.int32)
  zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (prompts, sampled, shapes.sums))
  return Kept(rank_B, *zeros, jnp.int32(0), jnp.int32(0))


def add(kept: Kept, prompts: Prompts, made, samples_per_prompt: int, axis: str | None = None) -> Kept:
  """After one more draw: the B best of the groups kept before and the new ones, equals in the order of drawing."""
  varies_B = made.varies_N.reshape(-1, samples_per_prompt)[:, 0]
  old = (kept.rank_B, kept.prompts, kept.sampled)
  new = (jnp.where(varies_B, VARIES, FLAT), prompts, by_group(made.sampled, samples_per_prompt))
  old, new = all_rows((old, new), axis)
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), old, new)
  order = own_rows(jnp.argsort(both[0], stable=True), kept.rank_B.size, axis)
  rank_B, prompts, sampled = jax.tree.map(lambda a: constrain(a[order], "batch", *(None,) * (a.ndim - 1)), both)
  sums = {
    name: jnp.maximum(old, made.sums[name]) if name.endswith("_max") else jax.tree.map(jnp.add, old, made.sums[name])
    for name, old in kept.sums.items()
  }
  return Kept(rank_B, prompts, sampled, sums, kept.draws + 1, kept.varied + jnp.sum(new[0] == VARIES))


def flat(kept: Kept):
  """What was sampled for the groups kept, `[N, ...]`."""
  return jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), kept.sampled)


def full(kept: Kept, axis: str | None = None):
  """Whether all groups vary: bool []."""
  return (all_rows(kept.rank_B, axis) == VARIES).all()


def metrics(kept: Kept, axis: str | None = None) -> dict:
  """Metric sums over everything drawn, and how much that was."""
  rank = all_rows(kept.rank_B, axis)
  one = jnp.float32(1)
  return {
    **kept.sums,
    "draws/count": (kept.draws.astype(jnp.float32), one),
    "draws/kept_groups": (jnp.sum(rank == VARIES).astype(jnp.float32), one),
    "draws/varied_fraction": (kept.varied.astype(jnp.float32), (kept.draws * rank.size).astype(jnp.float32)),
  }


def made(metrics: dict, max_draws: int) -> int:
  """How many draws a step made, by its metrics: where the next prompts start. Waits for the step if it may vary."""
  if max_draws == 1:
    return 1
  return round(float(np.asarray(metrics["draws/count"].addressable_data(0)).reshape(())))


def by_group(tree, samples_per_prompt: int):
  """`[N, ...]` as `[B, G, ...]`; shapes too."""

  def one(a):
    shape = (a.shape[0] // samples_per_prompt, samples_per_prompt, *a.shape[1:])
    return jax.ShapeDtypeStruct(shape, a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else a.reshape(shape)

  return jax.tree.map(one, tree)


def all_rows(tree, axis: str | None):
  """The rows of all devices of a pmap, one after another; in one program over a mesh they are all there."""
  return jax.tree.map(lambda a: jax.lax.all_gather(a, axis, tiled=True), tree) if axis else tree


def own_rows(a, count: int, axis: str | None):
  """This device's `count` of all rows under pmap; the first `count` otherwise."""
  return jax.lax.dynamic_slice_in_dim(a, jax.lax.axis_index(axis) * count if axis else 0, count)
