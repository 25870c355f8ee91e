"""The replay buffer against a simulation in which pairs come one by one, on one device, over a mesh and under pmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy

from nrt_jax import errors, sharding
from nrt_jax.algorithms import replay
from nrt_jax.algorithms.critic import Pairs
from nrt_jax.data.critic_prompts import CriticConfig
from nrt_jax.step import tools as step_tools

FORM = toy.critic_form(CriticConfig())
SETUP = toy.setup("raro")
TOOLS = step_tools.make_tools(SETUP)
X = 16  # pairs of a step


def pairs_of(numbers, valid) -> Pairs:
  """Pairs that tell their number in each of their arrays."""
  number_X = jnp.asarray(numbers, jnp.int32)
  filled = lambda width, offset: number_X[:, None] * 10 + offset + jnp.zeros((1, width), jnp.int32)
  arrays = {"head_XQ": (FORM.head_width, 1), "expert_XA": (FORM.answer_width, 2), "answer_XA": (FORM.answer_width, 3)}
  lengths = {"head_length_X": 4, "expert_length_X": 5, "answer_length_X": 6}
  columns = {name: filled(*how) for name, how in arrays.items()}
  return Pairs(**columns, **{name: number_X * 10 + o for name, o in lengths.items()}, valid_X=jnp.asarray(valid, bool))


def numbers_in(held) -> list:
  """The number of each pair that a buffer holds, None in empty places; all arrays of a place must agree."""
  fields = ("head_XQ", "expert_XA", "answer_XA", "head_length_X", "expert_length_X", "answer_length_X")
  numbers = []
  for place in range(len(held["head_XQ"])):
    found = set()
    for offset, name in enumerate(fields, 1):
      values = np.asarray(held[name])[place]
      found |= set(((values - offset) / 10 if values.any() else np.array([-1])).reshape(-1).tolist())
    assert len(found) == 1, (place, found)
    numbers.append(None if found == {-1} else round(found.pop()))
  return numbers


def offers(steps, seed, shares=(0.7,)):
  """Per step: the pairs' numbers, unique and above 0, and which are valid."""
  rng = np.random.default_rng(seed)
  for step in range(steps):
    yield step * X + np.arange(1, X + 1), rng.random(X) < shares[step % len(shares)]


@functools.cache
def added(kind):
  """One step of a buffer of any size, compiled."""
  return jax.jit(functools.partial(replay.add, TOOLS, kind=kind))


def place_of(key, numbers_X):
  """The place that the library draws for each pair of a step, from 0 to its number: the twin is given these."""
  drawn = jax.random.randint(key, (len(numbers_X),), 0, jnp.maximum(jnp.asarray(numbers_X) + 1, 1))
  return np.asarray(drawn).tolist()


@pytest.mark.parametrize("size", [1, 5, X, 40])
@pytest.mark.parametrize("kind", replay.KINDS)
def test_the_buffer_against_a_simulation(kind, size):
  """After every step, with many, few, no and all pairs valid; more come at once than it has places."""
  memory, offered, places = replay.empty(FORM, size), [], []
  for step, (numbers, valid) in enumerate(offers(7, seed=size, shares=(0.7, 0.2, 0.0, 1.0))):
    key = jax.random.key(100 + step)
    of_all = len(offered) + np.cumsum(valid) - 1
    places += [place for place, counts in zip(place_of(key, of_all), valid) if counts]
    offered += numbers[valid].tolist()
    memory = added(kind)(memory, pairs_of(numbers, valid), key=key)
    assert numbers_in(memory) == reference.replay_buffer(kind, size, offered, places)
    assert int(memory["seen"]) == len(offered) and int(replay.filled(memory)) == min(size, len(offered))
    assert memory["seen"].dtype == memory["head_XQ"].dtype == jnp.int32


def test_fifo_holds_the_newest_and_reservoir_holds_old_ones_too():
  held = {}
  for kind in replay.KINDS:
    memory = replay.empty(FORM, 20)
    for step, (numbers, valid) in enumerate(offers(12, seed=1, shares=(1.0,))):
      memory = added(kind)(memory, pairs_of(numbers, valid), key=jax.random.key(step))
    held[kind] = sorted(numbers_in(memory))
  assert held["fifo"] == [*range(12 * X - 19, 12 * X + 1)]
  assert min(held["reservoir"]) < 6 * X < max(held["reservoir"])


def test_a_reservoir_is_a_uniform_sample_of_all_that_came():
  """60 pairs in four steps of 15 valid ones, 10 places, 3000 buffers: each pair is in a sixth of them."""
  size, buffers, numbers = 10, 3000, np.arange(1, X + 1)
  valid = np.arange(X) != 7

  @jax.jit
  @jax.vmap
  def fill(key):
    memory = replay.empty(FORM, size)
    for step in range(4):
      pairs = pairs_of(numbers + step * X, valid)
      memory = replay.add(TOOLS, memory, pairs, "reservoir", jax.random.fold_in(key, step))
    return memory["answer_length_X"] // 10

  held = np.asarray(fill(jax.random.split(jax.random.key(7), buffers)))
  assert all(len(set(row.tolist())) == size for row in held)
  counts = np.array([(held == number).sum() for number in range(1, 4 * X + 1)]).reshape(4, X)
  assert not counts[:, 7].any()
  counts, p = counts[:, valid].reshape(-1), size / 60
  # A count's deviation is sqrt(n p (1 - p)); of the sum of squares, 59 is the mean and sqrt(2 * 59) the deviation.
  deviations = (counts - buffers * p) / np.sqrt(buffers * p * (1 - p))
  assert np.abs(deviations).max() < 4.5
  assert abs((deviations**2).sum() - 59) < 4 * np.sqrt(2 * 59)


def test_draws_are_uniform_and_independent_for_each_prompt():
  pairs = pairs_of(np.arange(1, X + 1), [1] * 9 + [0] * 7)
  memory = added("fifo")(replay.empty(FORM, 12), pairs, key=jax.random.key(0))
  keys = jax.random.split(jax.random.key(1), 400)
  drawn = jax.jit(replay.draw, static_argnums=2)(memory, keys, 9)
  held = {**vars(drawn)}
  valid = held.pop("valid_X")
  numbers = np.array(numbers_in(held))
  assert valid.all() and numbers.shape == (3600,)
  counts = np.array([(numbers == number).sum() for number in range(1, 10)])
  assert counts.sum() == 3600 and np.abs(counts - 400).max() < 4 * np.sqrt(3600 * 8 / 81)  # of 9, not of 12 places
  rows = numbers.reshape(400, 9)
  assert len({tuple(row) for row in rows.tolist()}) == 400
  again = replay.draw(memory, keys[5:6], 9)  # nothing else of the batch matters
  assert numbers_in({name: value for name, value in vars(again).items() if name != "valid_X"}) == rows[5].tolist()


def test_an_empty_buffer_gives_no_valid_pair():
  drawn = replay.draw(replay.empty(FORM, 12), jax.random.split(jax.random.key(1), 4), 3)
  assert drawn.valid_X.shape == (12,) and not drawn.valid_X.any()
  assert int(replay.filled(replay.empty(FORM, 12))) == 0
  # What was offered without being valid does not fill it, either.
  memory = added("reservoir")(replay.empty(FORM, 12), pairs_of(np.arange(1, X + 1), [0] * X), key=jax.random.key(0))
  assert not replay.draw(memory, jax.random.split(jax.random.key(1), 4), 3).valid_X.any()
  assert all(not np.asarray(value).any() for value in memory.values())


def some_steps(kind, tools, memory, pairs_of_steps, key_B):
  for step, pairs in enumerate(pairs_of_steps):
    memory = replay.add(tools, memory, pairs, kind, jax.random.key(step))
  return memory, replay.draw(memory, key_B, 3)


@pytest.mark.parametrize("kind", replay.KINDS)
def test_it_does_not_depend_on_the_devices(kind):
  """The same pairs, in the same places, on one device, over a mesh, and under pmap on each of eight devices."""
  steps = [pairs_of(numbers, valid) for numbers, valid in offers(2, seed=3)]
  memory, keys = replay.empty(FORM, 9), jax.random.split(jax.random.key(5), 8)
  one = jax.jit(functools.partial(some_steps, kind, TOOLS))(memory, steps, keys)
  mesh = sharding.make_mesh(sharding.ParallelConfig(fsdp=2, tensor=2))
  with jax.set_mesh(mesh):
    spread = [sharding.place_rows(mesh, pairs) for pairs in steps]
    over_mesh = jax.jit(functools.partial(some_steps, kind, TOOLS))(memory, spread, sharding.place_rows(mesh, keys))
  toy.assert_same(one, over_mesh, tolerance=1e-9)

  tools = step_tools.make_tools(toy.setup("raro", parallel__kind="pmap"))
  mapped = jax.pmap(functools.partial(some_steps, kind, tools), axis_name="devices", in_axes=(None, 0, 0))
  cut = jax.tree.map(lambda a: a.reshape(8, a.shape[0] // 8, *a.shape[1:]), (steps, keys))
  memories, drawn = mapped(memory, *cut)
  for device in range(8):
    toy.assert_same(one[0], jax.tree.map(lambda a, device=device: a[device], memories), tolerance=1e-9)
  joined = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), drawn)
  toy.assert_same(one[1], joined, tolerance=1e-9)


def test_an_unknown_kind_is_refused():
  with pytest.raises(errors.UserError, match="^algorithm.replay: found 'lifo', allowed: fifo, reservoir"):
    replay.add(TOOLS, replay.empty(FORM, 2), pairs_of([1], [1]), "lifo", jax.random.key(0))
