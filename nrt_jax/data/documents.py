"""Plain texts as examples: each is cut at a random token, and what follows is to be predicted from what precedes.

RLP (arXiv 2510.01265) trains on such places, one for each document. The cut is one of token ids, so that context and
continuation are the text's own tokens; no end token is added, since the text goes on.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from nrt_jax import errors
from nrt_jax.data import prompts
from nrt_jax.data.control_tokens import encode, encode_data


class Cuts(NamedTuple):
  """Documents that have been cut."""

  examples: list  # with the text before the cut as question, and what follows as answer
  contexts: list  # token ids of each, 1 or more
  answers: list  # token ids of each, 1 to data.horizon
  around: tuple  # token ids that every prompt begins with, and those it ends with

  @property
  def prompts(self) -> list:
    """Token ids of each prompt, uncut."""
    return [self.shortened(i, None) for i in range(len(self.contexts))]

  def shortened(self, i: int, limit: int | None) -> list | None:
    """A prompt with the end of its context, so that `limit` tokens are left (None: all); None without room for one."""
    begin, end = self.around
    room = len(self.contexts[i]) if limit is None else limit - len(begin) - len(end)
    return [*begin, *self.contexts[i][-room:], *end] if room > 0 else None


def cut(tokenizer, form: prompts.PromptFormat, data, prompt: prompts.PromptConfig, examples) -> Cuts:
  """Cuts the documents, which are the questions of `examples`, at places that data.shuffle_seed and their index fix.

  Raises UserError where a template would be written around them, or a document has one token.
  """
  if form.template != "plain":
    found = f"found {data.document_column!r} with prompt.template {form.template!r}"
    raise errors.UserError(f"data.document_column: {found}, allowed: prompt.template plain")
  made, contexts, answers = [], [], []
  for i, (example, ids) in enumerate(zip(examples, encode_data(tokenizer, [e.question for e in examples]))):
    if len(ids) < 2:
      raise errors.UserError(f"{example.where}: the document has {len(ids)} token, allowed: 2 or more")
    place = place_of(len(ids), data.horizon, data.shuffle_seed or 0, data.offset + i)
    contexts.append(ids[:place])
    answers.append(ids[place : place + data.horizon])
    texts = {"question": prompts.decode(tokenizer, contexts[-1]), "answer": prompts.decode(tokenizer, answers[-1])}
    made.append(dataclasses.replace(example, **texts, where=f"{example.where}, token {place}"))
  return Cuts(made, contexts, answers, (form.prefix_ids, tuple(encode(tokenizer, [prompt.trace_open])[0])))


def place_of(length: int, horizon: int, seed: int, index: int) -> int:
  """How many tokens precede the cut: 1 or more, with `horizon` behind it where the document has so many."""
  return int(np.random.default_rng((seed, index)).integers(1, max(1, length - horizon) + 1))
