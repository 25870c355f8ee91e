"""How much each token of a trace moved the answer, against a re-scoring of every truncated row."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
import reference
import toy

from nrt_jax.model import decoder, kernels
from nrt_jax.rollout import movement, scoring

N, R, MARKER_IDS = 5, 7, (toy.MARKER, toy.SECOND_MARKER)
ROWS = toy.prompts(N, seed=3, trace_width=R)


@functools.partial(jax.jit, static_argnums=(0, 1))
def measured(model, every, params, rows):
  prompt, trace = (rows.prompt_BP, rows.prompt_length_B), (rows.trace_BR, rows.trace_length_B)
  answer = rows.answer_BA, rows.answer_length_B
  return movement.measure(params, model, MARKER_IDS, every, prompt, trace, answer)


@pytest.fixture(scope="module")
def rescored():
  """(row, tokens of its trace) -> log-probabilities of the answer's tokens, of rows that hold no more of the trace."""
  made = {}
  for n in range(N):
    prompt = ROWS.prompt_BP[n, len(ROWS.prompt_BP[n]) - ROWS.prompt_length_B[n] :].tolist()
    answer = ROWS.answer_BA[n, : ROWS.answer_length_B[n]].tolist()
    for cut in range(ROWS.trace_length_B[n] + 1):
      made[n, cut] = reference.spliced_row(prompt, ROWS.trace_BR[n, :cut].tolist(), list(MARKER_IDS), answer)
  width = max(len(tokens) for tokens, _ in made.values())
  token = np.array([tokens + [toy.PAD] * (width - len(tokens)) for tokens, _ in made.values()])
  position = np.array([[*range(len(tokens))] + [-1] * (width - len(tokens)) for tokens, _ in made.values()])
  logp, _ = jax.jit(lambda params, *rows: scoring.row_log_probs(params, toy.MODEL, *rows, 1))(
    toy.params(), token, position
  )
  logp = np.asarray(logp, np.float64)
  return {
    key: [logp[row, t] for t, kind in enumerate(kinds) if kind == "answer"]
    for row, (key, (_, kinds)) in enumerate(made.items())
  }


@pytest.mark.parametrize("every", [1, 3])
def test_a_trace_moves_the_answer_as_rows_scored_anew_say(rescored, every):
  found = measured(toy.MODEL, every, toy.params(), ROWS)
  assert {0, R} <= set(ROWS.trace_length_B.tolist()) and found.moved_NC.shape == (N, -(-R // every))
  for n, length in enumerate(ROWS.trace_length_B.tolist()):
    expected = reference.trace_movements(lambda cut, n=n: rescored[n, cut], length, every)
    got, more = np.split(np.asarray(found.moved_NC[n]), [len(expected)])
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert not more.any()
    for logp_NA, cut in ((found.answer_logp_NA, length), (found.empty_logp_NA, 0)):
      np.testing.assert_allclose(logp_NA[n, : ROWS.answer_length_B[n]], rescored[n, cut], atol=1e-4)
  assert np.abs(found.moved_NC).max() > 0.1


def test_movements_add_up_to_what_the_whole_trace_changed():
  found = measured(toy.MODEL, 1, toy.params(), ROWS)
  gained = found.answer_logp_NA.sum(1) - found.empty_logp_NA.sum(1)
  np.testing.assert_allclose(found.moved_NC.sum(1), gained, atol=1e-5)
  assert np.abs(gained).max() > 0.1


def test_kernels_may_move_the_columns_of_a_row(monkeypatch):
  """As cuDNN's does, which wants rows on the left: what lies behind a cut is known by its position in the cache."""

  def moved(params, config, token_NT, position_NT):
    turn, turn_back = kernels.align_left(position_NT)
    hidden_NTD, cache = decoder.forward(params, config, turn(token_NT), turn(position_NT))
    return turn_back(hidden_NTD), cache

  expected = measured(toy.MODEL, 1, toy.params(), ROWS)
  monkeypatch.setattr(movement, "forward", moved)
  found = jax.jit(functools.partial(measured.__wrapped__, toy.MODEL, 1))(toy.params(), ROWS)
  assert toy.largest_difference(found, expected) < 1e-5


def test_few_cuts_are_in_memory_at_once():
  """Logits of head_chunk tokens, of one cut where that is less; the movements are the same."""
  vocab, found, largest = 40, {}, {}  # no other axis of the program has this size
  for chunk in (8, 10**6):
    model = dataclasses.replace(toy.MODEL, vocab_size=vocab, head_chunk=chunk)
    compiled = measured.lower(model, 1, toy.params(model), ROWS).compile()
    shapes = [[int(d) for d in shape.split(",")] for shape in re.findall(r"f32\[([\d,]+)\]", compiled.as_text())]
    largest[chunk] = max(int(np.prod(shape)) for shape in shapes if vocab in shape)
    found[chunk] = compiled(toy.params(model), ROWS)
  assert toy.largest_difference(found[8], found[10**6]) < 1e-5
  columns = len(MARKER_IDS) + ROWS.answer_BA.shape[1]
  assert largest[8] <= toy.MODEL.hidden_size * vocab  # a weight of the head, or a column of each row
  assert (R + 1) * N * columns * vocab <= largest[10**6]
