"""Question-answer pairs as token arrays, in an order that (epoch, index) fixes.

The data set is map-style and held in memory as token ids. Nothing is streamed and no iterator has state of its own:
`batch(dataset, position, ...)` is a pure function, so a run resumes at any position by naming it.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from nrt_jax import arrays, errors
from nrt_jax.data import documents, order, overlong, prompts, shots
from nrt_jax.data.hints import AnswerHints
from nrt_jax.data.sources import DataConfig, load_examples

STREAM_MODULUS = 2**31 - 1  # example_B is int32


# ---- Token ids -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TokenDataset:
  """Examples as token ids, all within the widths. Entry i of each list belongs to `examples[i]`."""

  examples: list
  prompts: list  # int32 arrays, 1 to P tokens each
  answers: list  # int32 arrays, 1 to A tokens, the end token included unless the answer was cut, or of a document
  traces: list  # int32 arrays, 0 to R tokens, without marker
  widths: tuple[int, int, int]  # P, A, R: the same for every batch, so that nothing is compiled twice
  pad_id: int
  counts: dict  # {prompts,answers,traces}_{dropped,cut} -> examples that the overlong policies touched
  weights: np.ndarray | None = None  # float64, how often each is drawn, where they differ
  hints: list | None = None  # int32 arrays, 1 to Q tokens: the second prompts, where they are asked for
  hint_width: int = 0  # Q

  def __len__(self):
    return len(self.examples)

  def gather(self, index, example_B) -> arrays.Prompts:
    """The entries `index`, as arrays."""
    ids = ([column[i] for i in index] for column in (self.prompts, self.answers, self.traces))
    rows = pack(*ids, example_B, self.widths, self.pad_id)
    if self.hints is None:
      return rows
    hint_BQ, hint_length_B = _pad([self.hints[i] for i in index], self.hint_width, self.pad_id, left=True)
    return rows.replace(hint_BQ=hint_BQ, hint_length_B=hint_length_B)


def tokenize(examples, data: DataConfig, prompt: prompts.PromptConfig, tokenizer, form, hints=False) -> TokenDataset:
  """Tokenises `examples` once and applies the overlong policies, counting what they drop and cut.

  hints: True for the prompts that show the answer, too, or another second text, as critic_prompts.CriticHeads or
  worlds.Worlds. Raises UserError where a policy says so, a prompt has no tokens, or no example is left.
  """
  hints = AnswerHints(tokenizer, form, prompt) if hints is True else hints
  cuts = documents.cut(tokenizer, form, data, prompt, examples) if data.document_column else None
  examples = cuts.examples if cuts else examples
  limits = {
    "prompt": (prompt.max_prompt_length, prompt.overlong_prompt),
    "answer": (prompt.max_answer_length, prompt.overlong_answer),
    "trace": (data.max_trace_length, data.overlong_trace),
  }
  traces = [example.trace or "" if data.max_trace_length else "" for example in examples]
  questions = [example.question for example in examples]
  ids = {"prompt": cuts.prompts if cuts else shots.encode_prompts(tokenizer, form, prompt, examples)}
  if hints:
    limits[hints.kind], ids[hints.kind] = (hints.width, prompt.overlong_prompt), hints.encode(examples)
  answers = [example.answer for example in examples]
  ids["answer"] = cuts.answers if cuts else prompts.encode_answers(tokenizer, form, answers)
  ids["trace"] = prompts.encode_traces(tokenizer, form, traces)

  def shorten(kind, i):
    limit = limits[kind][0]
    if hints and kind == hints.kind:
      return hints.cut(examples[i])
    if kind == "prompt" and cuts:
      return cuts.shortened(i, limit)
    if kind == "prompt" and examples[i].shots:
      return None  # half a worked example shows nothing
    if kind == "prompt":  # its end asks for the answer, so it loses its start
      return prompts.cut_prompt(tokenizer, form, prompt, questions[i], limit)
    return ids[kind][i][:limit]

  kept, rows, counts = [], [], {f"{kind}s_{how}": 0 for kind in limits for how in ("dropped", "cut")}
  for i, example in enumerate(examples):
    found = {kind: ids[kind][i] for kind in limits}
    row = overlong.fit(example, found, limits, lambda kind, i=i: shorten(kind, i), counts)
    if row is not None:
      kept.append(example)
      rows.append(row)
  if not kept:
    why = overlong.reasons(counts)
    raise errors.UserError(f"data.source: none of the {len(examples)} examples of {data.source} is left: {why}")
  ids = {kind: [np.asarray(row[kind], np.int32) for row in rows] for kind in ids}
  widths = tuple(limits[kind][0] for kind in ("prompt", "answer", "trace"))
  hinted = (ids[hints.kind], limits[hints.kind][0]) if hints else (None, 0)
  weights = np.array([example.weight for example in kept]) if data.weight_column else None
  if weights is not None and not weights.any():
    raise errors.UserError(f"data.weight_column: all {len(kept)} examples of {data.source} that are left weigh 0")
  return TokenDataset(kept, ids["prompt"], ids["answer"], ids["trace"], widths, form.pad_id, counts, weights, *hinted)


def load_dataset(data: DataConfig, prompt: prompts.PromptConfig, tokenizer, form, hints=False) -> TokenDataset:
  """`load_examples`, then `tokenize`."""
  return tokenize(load_examples(data), data, prompt, tokenizer, form, hints)


# ---- Batches -------------------------------------------------------------------------------------------------------


class Position(NamedTuple):
  """Where the next batch starts: entry `index` of epoch `epoch`'s order. The whole state of the iterator."""

  epoch: int = 0
  index: int = 0


def batch(dataset, position, batch_size: int, seed: int, host_index=0, host_count=1, draws=1):
  """The batch at `position`: (Prompts of NumPy arrays with this host's batch_size / host_count rows, next Position).

  With several draws, the stream's first part is every draws-th row, and so on: see draws.part.

  The stream is one seeded order of the data set after another (order.py); a batch wraps into the next one, so that
  without weights no example is lost or repeated. Host h holds the h-th part of the rows. Raises UserError for sizes
  that don't fit.
  """
  require_inside(dataset, position)
  rows = _host_rows(batch_size, host_index, host_count)
  stream = _first(dataset, position) + rows % draws * (batch_size // draws) + rows // draws
  entries = _visited(dataset, stream, seed)
  return dataset.gather(entries, stream % STREAM_MODULUS), advance(dataset, position, batch_size)


def _first(dataset, position) -> int:
  """The place of `position` in the stream."""
  return position[0] * len(dataset) + position[1]


def _visited(dataset, stream, seed: int):
  """The entries of the data set at these places of the stream: int `[places]`."""
  size, weights = len(dataset), getattr(dataset, "weights", None)
  orders = {epoch: order.order(size, seed, epoch, weights) for epoch in set((stream // size).tolist())}
  return np.array([orders[epoch][i] for epoch, i in zip((stream // size).tolist(), stream % size)])


def name_examples(dataset, position, count: int, seed: int, shown: int = 4) -> str:
  """Where the first of the `count` entries from `position` on come from, for messages."""
  stream = _first(dataset, position) + np.arange(min(count, shown))
  groups = getattr(dataset, "groups", None)  # of packed rows, which hold several examples
  entries = _visited(dataset, stream, seed).tolist()
  names = [dataset.examples[i].where for entry in entries for i in (groups[entry] if groups else [entry])]
  more = f" and {count - shown} more" if count > shown else ""
  return ", ".join(names) + more


def require_inside(dataset, position) -> None:
  """Raises UserError where the data set has no such position: it has become smaller since a checkpoint, say."""
  if not 0 <= position[1] < len(dataset) or position[0] < 0:
    raise errors.UserError(f"data: position {tuple(position)} lies outside of a data set of {len(dataset)} examples")


def advance(dataset, position, count: int) -> Position:
  """The position `count` examples on."""
  return Position(*divmod(_first(dataset, position) + count, len(dataset)))


def _host_rows(batch_size, host_index, host_count):
  if batch_size < 1 or batch_size % host_count:
    raise errors.UserError(f"data: a batch of {batch_size} prompts can't be divided among {host_count} hosts")
  rows = batch_size // host_count
  return np.arange(host_index * rows, (host_index + 1) * rows)


def eval_batches(dataset, batch_size: int, host_index=0, host_count=1):
  """Yields (Prompts, valid_B) over the data set in its own order; example_B holds the index of each example.

  The last batch is filled up with the last example, and valid_B (bool) is False there.
  """
  rows = _host_rows(batch_size, host_index, host_count)
  for start in range(0, len(dataset), batch_size):
    index = np.minimum(start + rows, len(dataset) - 1)
    yield dataset.gather(index, index), start + rows < len(dataset)


def pack(prompt_ids, answer_ids, trace_ids, example_B, widths, pad_id: int) -> arrays.Prompts:
  """Lists of id sequences as arrays of the widths (P, A, R): prompts padded on the left, the others on the right."""
  prompt_BP, prompt_length_B = _pad(prompt_ids, widths[0], pad_id, left=True)
  answer_BA, answer_length_B = _pad(answer_ids, widths[1], pad_id)
  trace_BR, trace_length_B = _pad(trace_ids, widths[2], pad_id)
  return arrays.Prompts(
    prompt_BP=prompt_BP,
    prompt_length_B=prompt_length_B,
    answer_BA=answer_BA,
    answer_length_B=answer_length_B,
    trace_BR=trace_BR,
    trace_length_B=trace_length_B,
    example_B=np.asarray(example_B, np.int32),
  )


def _pad(rows, width, pad_id, left=False):
  padded = np.full((len(rows), width), pad_id, np.int32)
  for row, ids in zip(padded, rows):
    row[width - len(ids) if left else 0 : width if left else len(ids)] = ids
  return padded, np.array([len(ids) for ids in rows], np.int32)
