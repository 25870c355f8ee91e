"""Stop strings inside the sampling loop: a table says, for each state of the search and each token, the state after it.

The search reads a row's text character by character, and ends a row with the token that completes a stop string. The
host has the last word: what the search misses (in a character that is spread over tokens) is cut off there, and a row
that it ends too soon (some decoders drop the first blank of a text) is sampled again without it.
"""

import jax.numpy as jnp
import numpy as np

from nrt_jax.environments.interface import Environment, Turn

FOUND, START = 0, 1  # rows of the table
ROWS = 32  # their number is a multiple of this, so that tasks share programs
OTHER, BLANK = 0, 1  # classes of characters that are in no stop string


def build_table(texts: list, columns: int, stops: list, marker_ids: tuple = ()) -> np.ndarray:
  """int16 `[states, columns]`: the state after a token, in each state.

  texts: what each token adds to a text, None where that is a part of a character; tokens beyond them add nothing.
  marker_ids: stop strings count behind the first of these sequences alone, and behind the blanks that follow it.
  """
  after, classes = _characters(stops)
  steps = np.tile(np.arange(len(after))[:, None], (1, columns))  # without characters the state remains
  lengths = np.array([0 if text is None else len(text) for text in texts])
  codes = np.zeros((len(texts), max(lengths, default=0)), np.int16)
  for row, text in zip(codes, texts):
    row[: len(text or "")] = [classes.get(c, BLANK if c.isspace() else OTHER) for c in text or ""]
  for place in range(codes.shape[1]):
    longer = np.flatnonzero(lengths > place)
    steps[:, longer] = after[steps[:, longer], codes[longer, place]]
  broken = [i for i, text in enumerate(texts) if text is None]
  steps[1:, broken] = 1  # nothing of a stop string has been read
  if not marker_ids:
    table = np.delete(steps, 2, 0)  # the state of leading blanks, which no text state leads to
    table[table > 2] -= 1
  else:
    # The states of the marker come between FOUND and those of the text, which move by their number.
    moved = np.where(steps == FOUND, FOUND, steps + len(marker_ids))
    table = np.concatenate([moved[:1], _marker(marker_ids, columns, blanks=2 + len(marker_ids)), moved[1:]])
  padding = np.zeros((-len(table) % ROWS, columns), table.dtype)
  return np.concatenate([table, padding]).astype(np.int16)


def _characters(stops: list):
  """(the state after a character of each class, in each state; the class of each character of a stop string).

  State 0 is FOUND, 1 has read nothing of a stop string, 2 has read nothing but blanks, the others have read its
  beginning.
  """
  prefixes = sorted({stop[:size] for stop in stops for size in range(1, len(stop))})
  number = {"": 1, **{prefix: i for i, prefix in enumerate(prefixes, 3)}}
  classes = {c: i for i, c in enumerate(sorted(set("".join(stops))), 2)}
  after = np.ones((3 + len(prefixes), 2 + len(classes)), np.int16)
  after[FOUND] = FOUND
  for read, state in number.items():
    for c, kind in classes.items():
      text = read + c
      ends = any(text.endswith(stop) for stop in stops)
      longest = next(text[i:] for i in range(len(text) + 1) if text[i:] in number)
      after[state, kind] = FOUND if ends else number[longest]
  after[2] = after[1]
  after[2, [BLANK, *(kind for c, kind in classes.items() if c.isspace())]] = 2
  return after, classes


def _marker(marker_ids: tuple, columns: int, blanks: int) -> np.ndarray:
  """The rows of the table in which some tokens of the marker are read; behind the last comes the state `blanks`."""
  rows = np.full((len(marker_ids), columns), START)
  for read in range(len(marker_ids)):
    for token in set(marker_ids):
      text = (*marker_ids[:read], token)
      longest = next(size for size in range(len(text), -1, -1) if text[len(text) - size :] == marker_ids[:size])
      rows[read, token] = blanks if longest == len(marker_ids) else START + longest
  return rows


class StopStrings(Environment):
  """A world that only watches: a row is done when the table says so."""

  def __init__(self, table_SV):
    self._table_SV = table_SV

  @classmethod
  def open(cls, config, tokenizer, form):
    raise NotImplementedError("it is made of a table, not of a run's config")

  def init(self, row):
    return jnp.int32(START)

  def step(self, state, token) -> Turn:
    after = self._table_SV[state, token].astype(jnp.int32)
    return self.silent(after, done=after == FOUND)
