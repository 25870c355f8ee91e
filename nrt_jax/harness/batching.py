"""Requests as batches of few shapes: rows are sorted by length, and widths are rounded up to a short list of them."""

import dataclasses
from collections.abc import Iterator

import numpy as np

LEAST = 16  # columns of the narrowest program


def width(length: int, most: int, least: int = LEAST) -> int:
  """`length` rounded up to least times a power of two, or one and a half times that; at most `most`.

  So a third of a row is padding at worst, and rows of up to 8192 tokens need no more than 19 programs.
  """
  size = least
  while size < length:
    size = max(size + 1, size * 3 // 2) if size & (size - 1) == 0 else size // 3 * 4
  return min(size, most)


@dataclasses.dataclass
class Row:
  """What is run once to score all continuations that differ in nothing but their last token."""

  input_ids: tuple  # context and continuation without its last token
  scored: int = 0  # tokens of the longest continuation
  final_ids: list = dataclasses.field(default_factory=list)  # the different last tokens
  members: list = dataclasses.field(default_factory=list)  # (request, its continuation's ids)


def gather(pairs, max_length: int) -> list[Row]:
  """The rows of (context ids, continuation ids) pairs; contexts lose their oldest tokens where they are too long.

  Each has a token of context or more, and a continuation of 1 to max_length tokens.
  """
  rows = {}
  for number, (context, continuation) in enumerate(pairs):
    ids = tuple([*context, *continuation][-(max_length + 1) :])
    row = rows.setdefault(ids[:-1], Row(ids[:-1]))
    row.scored = max(row.scored, len(continuation))
    if ids[-1] not in row.final_ids:
      row.final_ids.append(ids[-1])
    row.members.append((number, tuple(continuation)))
  return list(rows.values())


def batches(items: list, length, size: int, most: int) -> Iterator[tuple[int, list]]:
  """(width, up to `size` items of that width), longest first: what does not fit in memory fails at once."""
  order = sorted(items, key=length, reverse=True)
  by_width = {}
  for item in order:
    by_width.setdefault(width(length(item), most), []).append(item)
  for columns, some in by_width.items():
    for start in range(0, len(some), size):
      yield columns, some[start : start + size]


def pack_rows(rows: list[Row], columns: int, size: int, pad_id: int):
  """(token_NL, length_N, final_NK, scored columns) of up to `size` rows; the last is repeated up to `size`."""
  filled = rows + [rows[-1]] * (size - len(rows))
  choices = width(max(len(row.final_ids) for row in rows), 2**30, 1)
  token_NL = np.full((size, columns), pad_id, np.int32)
  final_NK = np.zeros((size, choices), np.int32)
  for token, final, row in zip(token_NL, final_NK, filled):
    token[columns - len(row.input_ids) :] = row.input_ids
    final[: len(row.final_ids)] = row.final_ids
  length_N = np.array([len(row.input_ids) for row in filled], np.int32)
  return token_NL, length_N, final_NK, width(max(row.scored for row in rows), columns, 1)
