"""What an environment is: one row's world, as pure functions of arrays that the loop calls on all rows at once.

    state = init(prompts)                                  once, from the row's prompt
    turn  = step(state, token)                             after each token that the policy sampled
    value = verdict(state)                                 once, when the row has ended

A turn may force tokens: they stand in the row, and in its cache, as if the policy had written them, but nobody samples
them and nobody is trained on them.
"""

import abc

import jax
import jax.numpy as jnp
from flax import struct

from nrt_jax.arrays import Prompts


@struct.dataclass
class Turn:
  """What follows a sampled token."""

  state: object  # a tree of the arrays that `init` made, of the same shapes and dtypes
  forced_F: jax.Array  # int32, the tokens that stand next in the row; only the first `count` are read
  count: jax.Array  # int32 []
  done: jax.Array  # bool []: the row ends with the token that was sampled, as at an end token; nothing is forced
  reward: jax.Array  # float32 []: added to what the row earns


class Environment(abc.ABC):
  """The base of all environments. Subclasses are immutable; everything that changes is in the state.

  Arrays have no axis of rows: the loop maps `init`, `step` and `verdict` over them. They must be traceable, and take
  as long whatever their values are: in a batch, every row waits for the slowest.
  """

  forced: int = 0  # F, the most tokens that one turn may force
  judges: bool = False  # whether `verdict` says how right a row is
  reads_world: bool = False  # whether `init` reads the example's world: see `world_tokens`

  @classmethod
  @abc.abstractmethod
  def open(cls, config, tokenizer, form) -> "Environment":
    """The environment of a run: config has the keys under `environment`. UserError where a word is not one token."""

  def check_world(self, ids) -> str | None:
    """What is wrong with a world, as the token ids of its text, if anything: "found ..., allowed: ..."."""
    return None

  @abc.abstractmethod
  def init(self, row: Prompts):
    """The state before the first token: any tree of arrays of up to three axes. row: Prompts without the axis B."""

  @abc.abstractmethod
  def step(self, state, token) -> Turn:
    """What follows `token` (int32 []), sampled by the policy; stop tokens come, too, forced ones do not."""

  def verdict(self, state):
    """How right a row is that has ended: float32 [] in [0, 1]. A row that was cut at the length limit gets 0 unseen."""
    return jnp.float32(0)

  def silent(self, state, reward=0.0, done=False) -> Turn:
    """A turn that forces nothing."""
    return Turn(state, jnp.zeros(self.forced, jnp.int32), jnp.int32(0), jnp.bool_(done), jnp.float32(reward))


def world_tokens(row: Prompts):
  """The world of an example, from the left: (token `[Q]`, its length `[]`); behind it stand pads."""
  return jnp.roll(row.hint_BQ, row.hint_length_B - row.hint_BQ.shape[0]), row.hint_length_B
