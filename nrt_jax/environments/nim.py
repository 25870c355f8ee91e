"""An opponent at Nim: it answers each move of the policy inside of the compiled loop.

    a2   the policy takes two objects of the first heap; the opponent takes some, too; what is left of the heaps is
         written

The example's world are the heaps and the opponent, "3 1 2 solver" (tasks/nim.py). Whoever takes the last object wins:
the verdict is 1 where the policy does. A token that is no move that can be made loses at once. A game ends the row.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from nrt_jax.arrays import Prompts
from nrt_jax.environments.interface import Environment, Turn, world_tokens
from nrt_jax.environments.words import token_of
from nrt_jax.errors import UserError
from nrt_jax.tasks.nim import NAMES, OPPONENTS

SOLVER, GREEDY, RANDOM = range(len(OPPONENTS))


@dataclass(frozen=True)
class NimConfig:
  """`nim`: an opponent that answers moves."""

  heaps: int = 3  # of a game: as the task has it
  most: int = 5  # objects of a heap, at most
  max_world_length: int = 4  # tokens of an example's world: the heaps and the opponent

  def __post_init__(self):
    if not 2 <= self.heaps <= len(NAMES):
      raise UserError(f"environment.heaps: found {self.heaps}, allowed: 2 to {len(NAMES)}")
    for key, least in (("most", 1), ("max_world_length", self.heaps + 1)):
      if getattr(self, key) < least:
        raise UserError(f"environment.{key}: found {getattr(self, key)}, allowed: {least} or more")


@struct.dataclass
class Game:
  heap_H: jax.Array  # int32
  opponent: jax.Array  # int32 [], an index of OPPONENTS
  key: jax.Array  # uint32 [2], of random moves: the example's, so that all samples of a prompt meet the same luck
  turns: jax.Array  # int32 []
  won: jax.Array  # bool []


class Nim(Environment):
  """Games of one size."""

  judges = True
  reads_world = True

  def __init__(self, config: NimConfig, number_ids, move_ids, opponent_ids):
    """Token ids of the numbers 0 to `most`, of the moves (all of the first heap, then of the second), and opponents."""
    self.config, self.number_ids = config, tuple(number_ids)
    self.move_ids, self.opponent_ids = tuple(move_ids), tuple(opponent_ids)

  @classmethod
  def open(cls, config: NimConfig, tokenizer, form) -> "Nim":
    numbers = [token_of(tokenizer, "most", str(n)) for n in range(config.most + 1)]
    names = [f"{name}{n}" for name in NAMES[: config.heaps] for n in range(1, config.most + 1)]
    moves = [token_of(tokenizer, "heaps", name) for name in names]
    return cls(config, numbers, moves, [token_of(tokenizer, "name", word) for word in OPPONENTS])

  @property
  def forced(self) -> int:
    return self.config.heaps

  def check_world(self, ids) -> str | None:
    *heaps, opponent = ids
    if len(heaps) == self.config.heaps and {*heaps} <= {*self.number_ids} and opponent in self.opponent_ids:
      return None
    allowed = f"environment.heaps, {self.config.heaps}, numbers up to {self.config.most}, then {' | '.join(OPPONENTS)}"
    return f"found another world of {len(ids)} tokens, allowed: {allowed}"

  def init(self, row: Prompts) -> Game:
    token_Q, _ = world_tokens(row)
    H = self.config.heaps
    return Game(
      heap_H=_index(token_Q[:H], self.number_ids),
      opponent=_index(token_Q[H], self.opponent_ids),
      key=jax.random.key_data(jax.random.fold_in(jax.random.key(0), row.example_B)),
      turns=jnp.int32(0),
      won=jnp.bool_(False),
    )

  def step(self, state: Game, token) -> Turn:
    H, most = self.config.heaps, self.config.most
    known, move = jnp.isin(token, jnp.asarray(self.move_ids)), _index(token, self.move_ids)
    heap, objects = move // most, move % most + 1
    legal = known & (state.heap_H[heap] >= objects)
    after_H = state.heap_H.at[heap].add(-objects)
    won = legal & (after_H.sum() == 0)
    own = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.turns)
    left_H = jnp.where(legal & ~won, self._answered(after_H, state.opponent, own), after_H)
    done = ~legal | (left_H.sum() == 0)
    return Turn(
      state=state.replace(heap_H=left_H, turns=state.turns + 1, won=won),
      forced_F=jnp.asarray(self.number_ids, jnp.int32)[jnp.clip(left_H, 0, most)],
      count=jnp.where(done, 0, H),
      done=done,
      reward=jnp.float32(0),
    )

  def _answered(self, heap_H, opponent, key):
    """The heaps after the opponent's move; there is an object left."""
    total = jax.lax.reduce(heap_H, np.int32(0), jax.lax.bitwise_xor, (0,))
    better_H = (heap_H ^ total) < heap_H
    largest = jnp.argmax(heap_H)
    solved = jnp.where(better_H.any(), jnp.argmax(better_H), largest)
    solved_takes = jnp.where(better_H.any(), heap_H[solved] - (heap_H[solved] ^ total), 1)
    possible_HM = jnp.arange(self.config.most)[None] < heap_H[:, None]
    drawn = jax.random.categorical(key, jnp.where(possible_HM, 0.0, -jnp.inf).reshape(-1))
    last = (opponent == GREEDY) & ((heap_H > 0).sum() == 1)
    heap = jnp.where(opponent == SOLVER, solved, jnp.where(last, largest, drawn // self.config.most))
    other_takes = jnp.where(last, heap_H[largest], drawn % self.config.most + 1)
    return heap_H.at[heap].add(-jnp.where(opponent == SOLVER, solved_takes, other_takes))

  def verdict(self, state: Game):
    return state.won.astype(jnp.float32)


def _index(token, ids):
  """The place of tokens in `ids`; 0 for others."""
  token = jnp.asarray(token)
  wanted = jnp.asarray(ids, jnp.int32).reshape((1,) * token.ndim + (-1,))
  return jnp.argmax(token[..., None] == wanted, axis=-1).astype(jnp.int32)
