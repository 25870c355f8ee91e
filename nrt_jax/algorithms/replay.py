"""A replay buffer of a critic's pairs, as arrays of fixed size in `states.memory`.

Every device holds all of it: new pairs are gathered before they are written, in the order of the batch, so that the
buffer does not depend on how many devices there are.
"""

import jax
import jax.numpy as jnp

from nrt_jax.algorithms.critic import Pairs
from nrt_jax.algorithms.interface import Tools
from nrt_jax.data.critic_prompts import CriticForm
from nrt_jax.errors import require_choice

KINDS = ("fifo", "reservoir")


def empty(form: CriticForm, size: int) -> dict:
  """A buffer for `size` pairs that holds none: name -> array `[S, ...]`, and how many pairs were ever offered."""
  widths = {"head_XQ": form.head_width, "expert_XA": form.answer_width, "answer_XA": form.answer_width}
  arrays = {name: jnp.zeros((size, width), jnp.int32) for name, width in widths.items()}
  lengths = {name: jnp.zeros(size, jnp.int32) for name in ("head_length_X", "expert_length_X", "answer_length_X")}
  return {**arrays, **lengths, "seen": jnp.int32(0)}


def filled(memory: dict):
  """How many pairs it holds: int32 []."""
  return jnp.minimum(memory["seen"], len(memory["head_length_X"]))


def draw(memory: dict, key_B, count: int) -> Pairs:
  """`count` pairs for each prompt, `[B * count]`, uniformly and with replacement; none is valid while it is empty."""
  held = filled(memory)
  index_BC = jax.vmap(lambda key: jax.random.randint(key, (count,), 0, jnp.maximum(held, 1)))(key_B)
  taken = {name: array[index_BC.reshape(-1)] for name, array in memory.items() if name != "seen"}
  return Pairs(**taken, valid_X=jnp.broadcast_to(held > 0, index_BC.size))


def add(tools: Tools, memory: dict, pairs: Pairs, kind: str, key) -> dict:
  """The buffer after the valid pairs were offered, in order: fifo writes each over the oldest; reservoir (Vitter 1985,

  algorithm R) keeps each pair ever offered with the same probability. Of several for one place, the last one stays.
  """
  require_choice("algorithm.replay", kind, KINDS)
  pairs = tools.all_rows(pairs)
  size, valid_X = len(memory["head_length_X"]), pairs.valid_X
  number_X = memory["seen"] + jnp.cumsum(valid_X) - 1  # of all pairs ever offered, from 0
  if kind == "fifo":
    place_X = number_X % size
  else:
    at_random_X = jax.random.randint(key, number_X.shape, 0, jnp.maximum(number_X + 1, 1))
    place_X = jnp.where(number_X < size, number_X, at_random_X)
  place_X = jnp.where(valid_X & (place_X < size), place_X, size)
  # Scattering two rows into one place has no defined winner, so the last one is found first.
  last_S = jax.ops.segment_max(jnp.arange(len(place_X)), place_X, num_segments=size + 1)[:size]
  written_S = last_S >= 0

  def write(old, new):
    taken = new[jnp.maximum(last_S, 0)]
    return jnp.where(written_S.reshape(-1, *(1,) * (old.ndim - 1)), taken, old)

  written = {name: write(old, getattr(pairs, name)) for name, old in memory.items() if name != "seen"}
  return {**written, "seen": memory["seen"] + jnp.sum(valid_X)}
