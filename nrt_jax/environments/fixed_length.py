"""A number of tokens to think, then the answer's place: nobody has to find the format by chance.

With it, a policy that starts from nothing explores traces and answers alone: of V words, a random one finds a right
answer of L tokens with probability V^-L, however rarely it would have written the marker. A policy that writes the
marker or an end token sooner ends its thought there.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from nrt_jax.arrays import Prompts
from nrt_jax.environments.interface import Environment, Turn
from nrt_jax.errors import UserError


@dataclass(frozen=True)
class FixedLengthConfig:
  """`fixed_length`: the marker comes by itself."""

  tokens: int = 4  # behind which the marker comes, if the policy has not ended its thought before

  def __post_init__(self):
    if self.tokens < 1:
      raise UserError(f"environment.tokens: found {self.tokens}, allowed: 1 or more")


@dataclass(frozen=True)
class FixedLength(Environment):
  """Writes the marker behind `tokens` tokens of the policy, if it has not ended before."""

  tokens: int
  marker_ids: tuple

  @classmethod
  def open(cls, config: FixedLengthConfig, tokenizer, form) -> "FixedLength":
    return cls(config.tokens, tuple(form.marker_ids))

  @property
  def forced(self) -> int:
    return len(self.marker_ids)

  def init(self, row: Prompts):
    return jnp.int32(0)  # tokens that the policy has written

  def step(self, state, token) -> Turn:
    due = state + 1 == self.tokens
    turn = self.silent(state + 1)
    return turn.replace(forced_F=jnp.asarray(self.marker_ids, jnp.int32), count=jnp.where(due, self.forced, 0))
