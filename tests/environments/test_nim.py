"""An opponent at Nim against the task's plain Python: moves, endings, verdicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.environments import nim as environments
from nrt_jax.environments.nim import NimConfig
from nrt_jax.errors import UserError
from nrt_jax.tasks import nim
from nrt_jax.tasks.nim import Nim

TASK = Nim(most=4)


@pytest.fixture(scope="module")
def opened():
  """The environment, its compiled functions, and word -> token."""
  tokenizer = word_tokenizer(TASK.words)
  environment = environments.Nim.open(NimConfig(most=4), tokenizer, None)
  return environment, jax.jit(environment.init), jax.jit(environment.step), tokenizer.convert_tokens_to_ids


def begun(opened, heaps, opponent, example=0):
  _, init, _, ids = opened
  prompts = jax.tree.map(lambda a: jnp.asarray(a[0]), toy.prompts(1))
  world = jnp.asarray([toy.PAD, *ids([*map(str, heaps), opponent])], jnp.int32)
  return init(prompts.replace(hint_BQ=world, hint_length_B=jnp.int32(4), example_B=jnp.int32(example)))


@pytest.mark.parametrize("opponent", nim.OPPONENTS)
def test_games_are_those_of_plain_python(opened, opponent):
  """Random players, who now and then write what is no move here: the heaps, who wins, when a game is over."""
  environment, _, step, ids = opened
  rng, endings = np.random.default_rng(0), []
  numbers = ids([str(n) for n in range(5)])
  for game in range(40):
    heaps = rng.integers(1, 5, 3).tolist()
    state, over = begun(opened, heaps, opponent, game), False
    while not over:
      i, n = nim.random_move(heaps, rng)
      word = rng.choice(["over", "2", "a4", "c3"]) if rng.random() < 0.05 else f"{nim.NAMES[i]}{n}"
      turn, move = step(state, jnp.int32(ids(word))), (nim.NAMES.find(word[0]), word[1:])
      legal = word[0] in "abc" and (move[0], int(move[1])) in nim.moves_of(heaps, 4)
      state, over = turn.state, bool(turn.done)
      written = [numbers.index(i) for i in np.asarray(turn.forced_F)[: int(turn.count)]]
      verdict = float(environment.verdict(state))
      if not legal:
        assert over and not written and verdict == 0
        endings.append("illegal")
        break
      after = nim.take(heaps, (move[0], int(move[1])))
      if not any(after):
        assert over and not written and verdict == 1
        endings.append("won")
        break
      answers = [nim.take(after, other) for other in nim.moves_of(after, 4)]
      if opponent == "solver" or (opponent == "greedy" and np.count_nonzero(after) == 1):
        answers = [nim.take(after, nim.reply(after, opponent, rng))]
      heaps = written if written else [0, 0, 0]
      assert heaps in answers and verdict == 0 and over == (not any(heaps))
      endings += ["lost"] * over
  assert {"illegal", "lost"} <= set(endings) and ("won" in endings or opponent == "solver")


def test_a_random_opponent_makes_every_move(opened):
  _, _, step, ids = opened
  first = jnp.int32(ids("c1"))
  drawn = [tuple(step(begun(opened, [2, 2, 1], "random", i), first).state.heap_H.tolist()) for i in range(80)]
  counts = {left: drawn.count(left) for left in set(drawn)}
  assert set(counts) == {(1, 2, 0), (0, 2, 0), (2, 1, 0), (2, 0, 0)} and min(counts.values()) > 8
  again = step(begun(opened, [2, 2, 1], "random", 7), first).state.heap_H
  assert tuple(again.tolist()) == drawn[7]  # the example decides


def test_worlds_and_keys(opened):
  environment, _, _, ids = opened
  assert environment.check_world(ids(["1", "4", "2", "random"])) is None
  for world in (["1", "4", "random"], ["1", "4", "2", "1"], ["a1", "4", "2", "random"]):
    assert "found another world of" in environment.check_world(ids(world))
  for key, value in (("heaps", 1), ("most", 0), ("max_world_length", 3)):
    with pytest.raises(UserError, match=f"^environment.{key}: found {value}, allowed: "):
      NimConfig(**{key: value})
