"""Training rows: prompt, trace, marker and answer spliced on the device, and splitting rows into pieces.

Sampled text is never tokenized again: the update trains on exactly the tokens that were sampled.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Rows:
  """Rows `[pad | prompt | trace | marker | answer | pad]`; the valid tokens of a row are contiguous.

  With P=2, R=4, M=1, A=3, a prompt of 2, a trace of 1 and an answer of 2 tokens:

      column     0  1  2  3  4  5  6  7  8  9
      token      .  .  .  p  p  z  m  y  y  .
      position  -1 -1 -1  0  1  2  3  4  5 -1
  """

  token_NL: jax.Array  # int32
  position_NL: jax.Array  # int32, -1 on pads
  trace_mask_NL: jax.Array  # bool
  marker_mask_NL: jax.Array  # bool
  answer_mask_NL: jax.Array  # bool
  first: int = struct.field(pytree_node=False)  # P, the first column that can follow a prompt


def _shift_right(x_NC, shift_N, fill):
  """Shifts each row of x to the right and fills in from the left, as one gather."""
  source = jnp.arange(x_NC.shape[1])[None] - shift_N[:, None]
  moved = jnp.take_along_axis(x_NC, jnp.maximum(source, 0), axis=1)
  return jnp.where(source >= 0, moved, fill)


def splice(prompt_NP, prompt_length_N, trace_NR, trace_length_N, marker_ids, answer_NA, answer_length_N, pad_id):
  """Splices prompts, traces, marker and answers into Rows: right-aligns prompt + trace before marker + answer.

  A gap inside a row would put a pad before the marker, and the marker would be learned from the pad's query.
  """
  N, P = prompt_NP.shape
  R, M, A = trace_NR.shape[1], len(marker_ids), answer_NA.shape[1]
  gap_N = R - trace_length_N
  head = _shift_right(jnp.concatenate([prompt_NP, trace_NR], 1), gap_N, pad_id)
  marker = jnp.broadcast_to(jnp.asarray(marker_ids, jnp.int32).reshape(1, M), (N, M))
  column = jnp.arange(P + R + M + A)[None]
  start_N = P - prompt_length_N + gap_N
  end_N = P + R + M + answer_length_N
  valid = (column >= start_N[:, None]) & (column < end_N[:, None])
  token = jnp.where(valid, jnp.concatenate([head, marker, answer_NA], 1), pad_id)
  return Rows(
    token_NL=token.astype(jnp.int32),
    position_NL=jnp.where(valid, column - start_N[:, None], -1),
    trace_mask_NL=(column >= P + gap_N[:, None]) & (column < P + R),
    marker_mask_NL=jnp.broadcast_to((column >= P + R) & (column < P + R + M), token.shape),
    answer_mask_NL=(column >= P + R + M) & valid,
    first=P,
  )


def concatenate(pieces, width: int, pad_id: int):
  """Joins the valid tokens of several pieces back to back, ending at column `width`, as one gather for each piece.

  pieces: (token `[N, W]`, its length `[N]`, whether it is padded on the left). Returns token `[N, width]`, length
  `[N]`. Together they must fit.
  """
  total_N = sum(length_N for _, length_N, _ in pieces)
  place = jnp.arange(width)[None] - (width - total_N)[:, None]  # from 0 on where the row's first token stands
  start_N, joined = jnp.zeros_like(total_N), jnp.full((len(total_N), width), pad_id, jnp.int32)
  for token, length_N, left in pieces:
    if token.shape[1]:
      source = place - start_N[:, None]
      inside = (source >= 0) & (source < length_N[:, None])
      source = jnp.clip(source + (token.shape[1] - length_N[:, None] if left else 0), 0, token.shape[1] - 1)
      joined = jnp.where(inside, jnp.take_along_axis(token, source, axis=1), joined)
    start_N = start_N + length_N
  return joined, total_N


def align_trace(x_NR, trace_length_N, rows: Rows, marker_width: int, answer_width: int):
  """Moves per-trace-token values `[N, R]` to their columns in the spliced rows; 0 elsewhere."""
  moved = _shift_right(x_NR, x_NR.shape[1] - trace_length_N, 0)
  moved = jnp.pad(moved, ((0, 0), (rows.first, marker_width + answer_width)))
  return jnp.where(rows.trace_mask_NL, moved, 0)


def align_suffix(marker_NM, answer_NA, rows: Rows):
  """Moves per-marker and per-answer values to their columns in the spliced rows; 0 elsewhere."""
  suffix = jnp.concatenate([marker_NM, answer_NA], 1)
  moved = jnp.pad(suffix, ((0, 0), (rows.token_NL.shape[1] - suffix.shape[1], 0)))
  return jnp.where(rows.marker_mask_NL | rows.answer_mask_NL, moved, 0)


def first_equal(trace_NR, trace_length_N, samples_per_prompt: int):
  """For each row, the first row of its group with the same trace (possibly itself): int32 `[N]`.

  Tokens beyond the trace's length are ignored.
  """
  N, R = trace_NR.shape
  trace = jnp.where(jnp.arange(R)[None] < trace_length_N[:, None], trace_NR, -1)
  trace_BGR = trace.reshape(N // samples_per_prompt, samples_per_prompt, R)
  same_BGG = (trace_BGR[:, :, None] == trace_BGR[:, None]).all(-1)
  first_row_B1 = jnp.arange(0, N, samples_per_prompt)[:, None]
  return (jnp.argmax(same_BGG, axis=-1) + first_row_B1).reshape(N).astype(jnp.int32)


def find_marker(token_NR, length_N, marker_ids):
  """Column of the first complete marker in the first `length_N` tokens of each row, R if there is none: int32 `[N]`."""
  R, M = token_NR.shape[1], len(marker_ids)
  ahead = jnp.pad(token_NR, ((0, 0), (0, M - 1)), constant_values=-1)
  found_NR = jnp.arange(R)[None] + M <= length_N[:, None]
  for i, marker_id in enumerate(marker_ids):
    found_NR &= ahead[:, i : i + R] == marker_id
  return jnp.where(found_NR.any(axis=1), jnp.argmax(found_NR, axis=1), R).astype(jnp.int32)


def cut_rows(tree, pieces: int):
  """Splits `[N, ...]` into `[pieces, N / pieces, ...]`; piece i takes every pieces-th row.

  Strided, so that rows sharded over devices stay in place: each device holds a share of every piece.
  """
  return jax.tree.map(lambda a: a.reshape(a.shape[0] // pieces, pieces, *a.shape[1:]).swapaxes(0, 1), tree)


def join_rows(tree):
  """Undoes `cut_rows`."""
  return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(a.shape[0] * a.shape[1], *a.shape[2:]), tree)


def cut_groups(tree, pieces: int, samples_per_prompt: int):
  """Like `cut_rows`, but groups of G rows stay together: piece m holds the prompts b with b % pieces == m."""
  grouped = jax.tree.map(lambda a: a.reshape(-1, samples_per_prompt, *a.shape[1:]), tree)
  return jax.tree.map(lambda a: a.reshape(a.shape[0], -1, *a.shape[3:]), cut_rows(grouped, pieces))


def join_groups(tree, samples_per_prompt: int):
  """Undoes `cut_groups`."""
  grouped = jax.tree.map(lambda a: a.reshape(a.shape[0], -1, samples_per_prompt, *a.shape[2:]), tree)
  return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), join_rows(grouped))


def cut_by_length(tree, needed_N, pieces: int, rows_together: int, ways: int):
  """Like `cut_groups`, but sorted by length: piece 0 has the shortest groups of rows, the last piece the longest.

  needed_N: columns that a row needs; a group needs as many as its longest row. Rows are sorted within each of the
  `ways` equal parts that lie on different devices, so no row leaves its device.
  """
  order = jnp.argsort(needed_N.reshape(ways, -1, rows_together).max(axis=2), axis=1)

  def cut(a):
    groups = a.reshape(*order.shape, rows_together, *a.shape[1:])
    groups = jnp.take_along_axis(groups, order.reshape(*order.shape, *(1,) * a.ndim), axis=1)
    return groups.reshape(ways, pieces, -1, *a.shape[1:]).swapaxes(0, 1).reshape(pieces, -1, *a.shape[1:])

  return jax.tree.map(cut, tree)


def pack(valid_NT, together: int, columns: int):
  """Packs the valid slots of each `together` adjacent rows back to back into one row of `columns` slots.

  Returns: bring(x_NT, fill) -> `[N / together, columns]`; put_back(x_BC) -> `[N, T]`, 0 where not valid; and, for
  each packed slot, which of its rows it comes from, int32. `columns` must hold all valid slots of every group.
  """
  N, T = valid_NT.shape
  valid_BS = valid_NT.reshape(N // together, together * T)
  source_BC = jnp.argsort(~valid_BS, axis=1, stable=True)[:, :columns]
  filled_BC = jnp.arange(columns)[None] < valid_BS.sum(axis=1)[:, None]
  place_BS = jnp.maximum(jnp.cumsum(valid_BS, axis=1) - 1, 0)

  def bring(x_NT, fill):
    return jnp.where(filled_BC, jnp.take_along_axis(x_NT.reshape(valid_BS.shape), source_BC, axis=1), fill)

  def put_back(x_BC):
    return jnp.where(valid_NT, jnp.take_along_axis(x_BC, place_BS, axis=1).reshape(N, T), 0)

  return bring, put_back, (source_BC // T).astype(jnp.int32)


def last_columns(batch, width: int):
  """Drops the first columns: cuts each `[N, L]` array of a TrainBatch to its last `width` columns."""
  L = batch.token_NL.shape[1]
  cut = jax.tree.map(lambda a: a[:, L - width :] if a.ndim > 1 and a.shape[1] == L else a, batch)
  return cut.replace(first=max(1, batch.first - (L - width)))
