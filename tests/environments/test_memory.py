"""The memory's actions against a dictionary, token by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.environments.memory import Memory, MemoryConfig
from nrt_jax.errors import UserError

READ, WRITE, NOTHING = 14, 15, 16
STEPS = 60


class Simulation:
  """The store as an ordered dictionary: what was added first comes first."""

  def __init__(self, config, world):
    self.config, self.store, self.does, self.word = config, {}, None, []
    size = config.key_tokens + config.value_tokens
    self.slots = [None] * config.slots  # which key is in which slot: the oldest gives way
    self.added = 0
    for i in range(0, len(world), size):
      self._put(tuple(world[i : i + config.key_tokens]), list(world[i + config.key_tokens : i + size]))

  def _put(self, key, value):
    if key not in self.store:
      slot = self.added % self.config.slots
      self.store.pop(self.slots[slot], None)
      self.slots[slot], self.added = key, self.added + 1
    self.store[key] = value

  def step(self, token):
    """(forced tokens, reward)"""
    if self.does is None:
      self.does, self.word = {READ: "read", WRITE: "write"}.get(token), []
      return [], 0.0
    self.word.append(token)
    K, V = self.config.key_tokens, self.config.value_tokens
    if self.does == "read" and len(self.word) == K:
      self.does = None
      return self.store.get(tuple(self.word), [NOTHING]), -self.config.read_cost
    if self.does == "write" and len(self.word) == K + V:
      self.does = None
      self._put(tuple(self.word[:K]), self.word[K:])
      return [], -self.config.write_cost
    return [], 0.0


def row(world):
  """A row of Prompts whose world these tokens are, padded on the left to 12."""
  prompts = jax.tree.map(lambda a: jnp.asarray(a[0]), toy.prompts(1))
  padded = jnp.asarray([toy.PAD] * (12 - len(world)) + list(world), jnp.int32)
  return prompts.replace(hint_BQ=padded, hint_length_B=jnp.int32(len(world)))


@pytest.mark.parametrize("keys,values,slots", [(1, 1, 4), (2, 1, 3), (1, 3, 2), (2, 2, 8)])
def test_actions_are_those_of_a_dictionary(keys, values, slots):
  config = MemoryConfig(slots=slots, key_tokens=keys, value_tokens=values, read_cost=0.25, write_cost=0.5)
  memory, rng = Memory(config, READ, WRITE, NOTHING), np.random.default_rng(keys + 10 * values)
  world_keys = [tuple(rng.integers(0, 2, keys).tolist()) for _ in range(min(slots, 12 // (keys + values)))]
  world = [t for key in dict.fromkeys(world_keys) for t in (*key, *rng.integers(0, 9, values).tolist())]
  # Few letters, so that keys are met again; actions often, and also in the middle of others.
  tokens = rng.choice([0, 1, 2, READ, WRITE], size=(160, STEPS), p=[0.3, 0.3, 0.1, 0.2, 0.1])

  def play(token_T):
    def one(state, token):
      turn = memory.step(state, token)
      return turn.state, (turn.forced_F, turn.count, turn.reward, turn.done)

    return jax.lax.scan(one, memory.init(row(world)), token_T)[1]

  forced, count, reward, done = jax.device_get(jax.jit(jax.vmap(play))(tokens.astype(np.int32)))
  assert not done.any() and forced.shape[2] == memory.forced == values
  found = 0
  for n, token_T in enumerate(tokens.tolist()):
    simulation = Simulation(config, world)
    for t, token in enumerate(token_T):
      expected, earned = simulation.step(token)
      assert forced[n, t, : count[n, t]].tolist() == expected, (n, t)
      assert reward[n, t] == earned
      found += bool(expected) and expected[0] != NOTHING
  assert found > 100


def test_a_row_begins_with_its_world_and_rows_do_not_share_what_they_write():
  memory = Memory(MemoryConfig(slots=2), READ, WRITE, NOTHING)
  states = [memory.init(row([3, 4])), memory.init(row([3, 5]))]
  for token in (WRITE, 1, 2):
    states[0] = memory.step(states[0], token).state

  def read(state, key):
    return memory.step(memory.step(state, READ).state, key).forced_F.tolist()

  assert [read(s, 3) for s in states] == [[4], [5]] and [read(s, 1) for s in states] == [[2], [NOTHING]]


def test_words_must_be_tokens_and_worlds_whole():
  tokenizer = word_tokenizer(("read", "write", "none", "a"))
  memory = Memory.open(MemoryConfig(key_tokens=2, slots=2), tokenizer, toy.form())
  assert (memory.read_id, memory.write_id, memory.nothing_id) == (0, 1, 2)
  assert memory.check_world([1] * 6) is None
  assert "found a world of 5 tokens, allowed: a multiple of 3" in memory.check_world([1] * 5)
  assert "found a world of 3 keys, allowed: environment.slots, 2" in memory.check_world([1] * 9)
  with pytest.raises(UserError, match="environment.read: found 'look up', which is 2 tokens"):
    Memory.open(MemoryConfig(read="look up"), tokenizer, toy.form())


@pytest.mark.parametrize("key", ["slots", "key_tokens", "value_tokens", "max_world_length", "read_cost", "write_cost"])
def test_bad_keys_are_one_line(key):
  bad = -1 if key.endswith("cost") else 0
  with pytest.raises(UserError, match=f"^environment.{key}: found {bad}"):
    dataclasses.replace(MemoryConfig(), **{key: bad})
  with pytest.raises(UserError, match="^environment.write: found 'read'"):
    MemoryConfig(write="read")
