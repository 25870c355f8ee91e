"""Packed rows: several whole examples in one, so that short ones leave fewer empty columns.

Which examples share a row is decided once, when the data is read; a row then is the entry that (epoch, index) counts,
and resuming stays exact. Examples of a row don't see each other, and their positions start at 0 each: a token gets what
it would get in a row of its own. What changes is how many examples a step has, and that the head, which starts behind
the prompts' columns in rows of one example, runs over the prompts too.
"""

import dataclasses

import numpy as np

from nrt_jax import arrays
from nrt_jax.data import batches
from nrt_jax.errors import UserError

KINDS = ("prompt", "trace", "marker", "answer")


@dataclasses.dataclass(frozen=True)
class PackedDataset:
  """A data set whose entry i is the row of the examples `groups[i]`."""

  dataset: batches.TokenDataset
  groups: list  # of lists of indices into `dataset`
  width: int  # L, columns of a row
  marker_ids: tuple

  def __len__(self):
    return len(self.groups)

  @property
  def examples(self) -> list:
    return self.dataset.examples

  @property
  def counts(self) -> dict:
    return self.dataset.counts

  @property
  def padded_share(self) -> float:
    """The share of columns that hold nothing."""
    return 1 - lengths(self.dataset, self.marker_ids).sum() / (len(self) * self.width)

  def gather(self, index, example_B) -> arrays.PackedPrompts:
    """The rows `index`, as arrays."""
    columns = np.full((4, len(index), self.width), -1, np.int32)  # token, position, example, kind
    columns[0] = self.dataset.pad_id
    for b, i in enumerate(index):
      row = np.concatenate([self._columns(number, example) for number, example in enumerate(self.groups[i])], axis=1)
      columns[:, b, : row.shape[1]] = row
    token_BL, position_BL, example_BL, kind_BL = columns
    shown = self.dataset.gather([self.groups[i][0] for i in index], example_B)
    return arrays.PackedPrompts(token_BL, position_BL, example_BL, kind_BL.astype(np.int8), shown)

  def _columns(self, number: int, i: int):
    """Example i as columns of (token, position, number, kind): int32 `[4, tokens]`."""
    source = self.dataset
    parts = (source.prompts[i], source.traces[i], self.marker_ids, source.answers[i])
    token = np.concatenate(parts).astype(np.int32)
    kind = np.repeat(np.arange(len(KINDS)), [len(part) for part in parts])
    return np.stack([token, np.arange(len(token)), np.full(len(token), number), kind])


def pack_dataset(dataset: batches.TokenDataset, width: int, marker_ids) -> PackedDataset:
  """Packs all examples into rows of `width` columns. UserError where one is longer than a row."""
  length = lengths(dataset, marker_ids)
  longest = int(np.argmax(length))
  if length[longest] > width:
    where = dataset.examples[longest].where
    raise UserError(f"data.packing: found {width}, allowed: {length[longest]} or more, the tokens of {where}")
  return PackedDataset(dataset, best_fit(length, width), width, tuple(marker_ids))


def lengths(dataset: batches.TokenDataset, marker_ids):
  """Tokens of each example, marker included: int `[examples]`."""
  columns = (dataset.prompts, dataset.traces, dataset.answers)
  return sum(np.array([len(ids) for ids in column]) for column in columns) + len(marker_ids)


def best_fit(length, width: int) -> list[list[int]]:
  """Groups of indices whose lengths sum to `width` at most: the longest first, each into the row with the least room.

  Best fit decreasing (Johnson et al., 1974) needs 11/9 of the fewest rows possible, and 4 more, at most.
  """
  rows, with_room = [], [[] for _ in range(width + 1)]  # with_room[r]: the rows that have room for r more tokens
  rooms = 0  # bit r: with_room[r] is not empty
  for i in sorted(range(len(length)), key=lambda i: (-length[i], i)):
    need = int(length[i])
    enough = rooms >> need
    if enough:
      room = need + (enough & -enough).bit_length() - 1
      row = with_room[room].pop()
      if not with_room[room]:
        rooms ^= 1 << room
    else:
      room, row = width, len(rows)
      rows.append([])
    rows[row].append(i)
    with_room[room - need].append(row)
    rooms |= 1 << (room - need)
  return rows
