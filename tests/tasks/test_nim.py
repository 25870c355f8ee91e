"""Nim: winning moves against a search of the whole game, and games of experts by its rules."""

import functools
import itertools

import numpy as np
import pytest
import reference

from nrt_jax.errors import UserError
from nrt_jax.tasks import nim
from nrt_jax.tasks.nim import Nim


def test_winning_moves_are_those_of_a_search():
  wins = functools.lru_cache(None)(reference.nim_wins)
  for heaps in itertools.product(range(5), repeat=3):
    left = {move: tuple(nim.take(heaps, move)) for move in nim.moves_of(heaps, 4)}
    winning = {move for move, after in left.items() if not wins(after, wins)}
    assert set(nim.winning_moves(heaps)) == winning and bool(winning) == wins(heaps, wins)
    if any(heaps):
      assert nim.solved(heaps) in (winning or left)


def moves(trace, heaps):
  """(the expert's move, the heaps before it) of each of its turns, and the heaps before the last move of the game."""
  words, found = trace.split(), []
  while words:
    move = nim.NAMES.index(words[0][0]), int(words[0][1:])
    assert move in nim.moves_of(heaps, 9)
    found.append((move, heaps))
    after, heaps = nim.take(heaps, move), [int(word) for word in words[1:4]]
    if heaps:
      assert heaps in [nim.take(after, other) for other in nim.moves_of(after, 9)]
    words = words[4:]
  return found, after


@pytest.mark.parametrize("expert", nim.EXPERTS)
def test_games_follow_the_rules(expert):
  task = Nim(trace_share=1.0, expert=expert)
  lost = 0
  for i in range(60):
    question, answer, trace = task.example(i)
    heaps = [int(word) for word in question.split()[1:]]
    assert answer == "over" and nim.winning_moves(heaps) and task.world(i).split()[:-1] == question.split()[1:]
    found, after = moves(trace, heaps)
    for move, before in found:
      assert expert != "blind" or move[0] or not any(before[1:])  # the first heap only where there is no other
    lost += any(after)  # then the opponent made the last move
  assert lost == 0 if expert == "solver" else 5 < lost < 58


def test_positions_and_opponents():
  only = Nim(positions="first_heap", most=7)
  for i in range(30):
    heaps = [int(word) for word in only.example(i)[0].split()[1:]]
    assert {heap for heap, _ in nim.winning_moves(heaps)} == {0}
  assert {Nim().world(i).split()[-1] for i in range(60)} == set(nim.OPPONENTS)
  assert {Nim(opponent="greedy").world(i).split()[-1] for i in range(9)} == {"greedy"}
  rng = np.random.default_rng(0)
  assert nim.reply([0, 3, 0], "greedy", rng) == (1, 3)
  assert {nim.reply([0, 3, 0], "random", rng) for _ in range(50)} == {(1, 1), (1, 2), (1, 3)}


@pytest.mark.parametrize("options", [{"heaps": 1}, {"heaps": 7}, {"most": 0}, {"trace_share": 2.0}])
def test_bad_options(options):
  (key,) = options
  with pytest.raises(UserError, match=f"^data.task_options.{key}: found {options[key]}, allowed: "):
    Nim(**options)


@pytest.mark.parametrize("key", ["opponent", "positions", "expert"])
def test_unknown_names(key):
  with pytest.raises(UserError, match=f"^data.task_options.{key}: found 'solvr'"):
    Nim(**{key: "solvr"})
