"""An external memory: a store of keys and values that the policy reads and writes while it reasons (arXiv 2502.19402).

    read  KEY...                the environment writes the value behind it, or `nothing` if there is no such key
    write KEY... VALUE...       stores the value, in place of the key's old one

Keys and values are of a fixed number of tokens. The store begins with the example's world, the keys and values of its
text one after another, of which the prompt need not show anything. A full store forgets what was written longest ago.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from nrt_jax.arrays import Prompts
from nrt_jax.environments.interface import Environment, Turn, world_tokens
from nrt_jax.environments.words import token_of
from nrt_jax.errors import UserError

IDLE, READS, WRITES = 0, 1, 2


@dataclass(frozen=True)
class MemoryConfig:
  """`memory`: a store that the policy reads and writes."""

  slots: int = 64  # keys that the store can hold
  key_tokens: int = 1  # tokens of a key
  value_tokens: int = 1  # tokens of a value
  read: str = "read"  # the word, one token, that begins to read
  write: str = "write"  # the word, one token, that begins to write
  nothing: str = "none"  # the word, one token, that is read where the key is not known
  read_cost: float = 0.0  # subtracted from the reward for each read
  write_cost: float = 0.0  # subtracted from the reward for each write
  max_world_length: int = 128  # tokens of an example's world

  def __post_init__(self):
    for key in ("slots", "key_tokens", "value_tokens", "max_world_length"):
      if getattr(self, key) < 1:
        raise UserError(f"environment.{key}: found {getattr(self, key)}, allowed: 1 or more")
    for key in ("read_cost", "write_cost"):
      if getattr(self, key) < 0:
        raise UserError(f"environment.{key}: found {getattr(self, key)}, allowed: 0 or more")
    if self.read == self.write:
      raise UserError(f"environment.write: found {self.write!r}, which begins to read, allowed: another word")


@struct.dataclass
class Store:
  key_SK: jax.Array  # int32, S slots of K tokens
  value_SV: jax.Array  # int32
  written: jax.Array  # int32 [], how many keys have ever been added: the next one goes to this slot, modulo S
  does: jax.Array  # int32 [], IDLE | READS | WRITES
  word_W: jax.Array  # int32, W = K + V: the tokens of the key, and of the value, that are known so far
  words: jax.Array  # int32 []


@dataclass(frozen=True)
class Memory(Environment):
  """The memory of one run."""

  config: MemoryConfig
  read_id: int
  write_id: int
  nothing_id: int

  reads_world = True

  @classmethod
  def open(cls, config: MemoryConfig, tokenizer, form) -> "Memory":
    return cls(config, *(token_of(tokenizer, key, getattr(config, key)) for key in ("read", "write", "nothing")))

  @property
  def forced(self) -> int:
    return self.config.value_tokens

  def check_world(self, ids) -> str | None:
    pair, most = self.config.key_tokens + self.config.value_tokens, self.config.slots
    if len(ids) % pair:
      return f"found a world of {len(ids)} tokens, allowed: a multiple of {pair}, those of a key and its value"
    return (
      f"found a world of {len(ids) // pair} keys, allowed: environment.slots, {most}"
      if len(ids) > most * pair
      else None
    )

  def init(self, row: Prompts) -> Store:
    c, W = self.config, self.config.key_tokens + self.config.value_tokens
    token_Q, length = world_tokens(row)
    token_Q = jnp.pad(token_Q, (0, max(0, c.slots * W - len(token_Q))))[: c.slots * W]
    pair_SW = token_Q.reshape(c.slots, W)
    nothing_W = jnp.zeros(W, jnp.int32)
    return Store(
      pair_SW[:, : c.key_tokens], pair_SW[:, c.key_tokens :], length // W, jnp.int32(IDLE), nothing_W, jnp.int32(0)
    )

  def step(self, state: Store, token) -> Turn:
    c, idle = self.config, state.does == IDLE
    begins = jnp.where(token == self.read_id, READS, jnp.where(token == self.write_id, WRITES, IDLE))
    word_W = jnp.where(jnp.arange(len(state.word_W)) == state.words, token, state.word_W)
    words = jnp.where(idle, 0, state.words + 1)
    reads = (state.does == READS) & (words == c.key_tokens)
    writes = (state.does == WRITES) & (words == len(word_W))
    state = state.replace(does=jnp.where(idle, begins, jnp.where(reads | writes, IDLE, state.does)), words=words)
    state = state.replace(word_W=jnp.where(idle, state.word_W, word_W))
    known_S = (state.key_SK == word_W[None, : c.key_tokens]).all(axis=1) & (jnp.arange(c.slots) < state.written)
    known, slot = known_S.any(), jnp.argmax(known_S)
    missing_V = jnp.zeros(c.value_tokens, jnp.int32).at[0].set(self.nothing_id)
    return Turn(
      state=self._write(state, writes, jnp.where(known, slot, state.written % c.slots), ~known),
      forced_F=jnp.where(known, state.value_SV[slot], missing_V),
      count=jnp.where(reads, jnp.where(known, c.value_tokens, 1), 0),
      done=jnp.bool_(False),
      reward=-jnp.where(reads, c.read_cost, 0.0) - jnp.where(writes, c.write_cost, 0.0),
    )

  def _write(self, state: Store, writes, slot, adds) -> Store:
    at_S1, K = (writes & (jnp.arange(self.config.slots) == slot))[:, None], self.config.key_tokens
    return state.replace(
      key_SK=jnp.where(at_S1, state.word_W[None, :K], state.key_SK),
      value_SV=jnp.where(at_S1, state.word_W[None, K:], state.value_SV),
      written=state.written + (writes & adds),
    )
