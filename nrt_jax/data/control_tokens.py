"""Which text may become control tokens: that of templates and settings, never that of data.

A tokenizer parses its added tokens (<|im_end|>, </think>) wherever they are written, so a question that writes
"<|im_end|>" would end its own turn. Here every character of a prompt has an origin, and what comes from data is
tokenised as if there were no such tokens. Text that holds none gets the very ids that the tokenizer itself gives.
"""

import functools
import re

# Whose a character, or a token made of such characters only, is. What is cut of an overlong prompt is QUESTION.
TEMPLATE, SYSTEM, QUESTION = "t", "s", "q"

MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)
ESCAPE = "\ue000"  # from the private area: stands before a control token that is meant


def control_tokens(tokenizer) -> dict:
  """Control token -> id: the added tokens that are special, look like markup or are written in the chat template.

  Other added tokens are ordinary text, such as runs of blanks, or letters that the vocabulary lacks.
  """
  return dict(_control_tokens(tokenizer, len(tokenizer), str(tokenizer.chat_template)))


def always_used(tokenizer, form) -> set:
  """The ids that prompts and completions need whatever the data: special and added tokens, and those of `form`."""
  added = tokenizer.added_tokens_decoder  # id -> token
  return {*tokenizer.all_special_ids, *added, *form.prefix_ids, *form.marker_ids, *form.stop_ids, *form.end_ids,
          form.pad_id}  # fmt: skip


def control_pattern(tokenizer) -> re.Pattern:
  """Finds control tokens in a text, the longest first."""
  names = sorted(control_tokens(tokenizer), key=len, reverse=True)
  return re.compile("|".join(map(re.escape, names)) or "(?!)")  # (?!) finds nothing


@functools.lru_cache(maxsize=4)
def _control_tokens(tokenizer, size: int, source: str) -> tuple:
  """size: as added tokens come in, the answer is another one."""

  def controls(token) -> bool:
    text = token.content
    written = len(text) > 2 and text in source
    return not text.isspace() and (token.special or written or MARKUP.fullmatch(text) is not None)

  return tuple((token.content, i) for i, token in tokenizer.added_tokens_decoder.items() if controls(token))


def encode(tokenizer, texts) -> list:
  """One list of ids per text of ours: control tokens are parsed."""
  if not texts:
    return []
  # verbose=False: no warning about the model's context length, which prompt.max_*_length governs here.
  return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=False, verbose=False)["input_ids"]


def encode_data(tokenizer, texts) -> list:
  """One list of ids per text of data: control tokens that are written in it stay plain text."""
  control = set(control_tokens(tokenizer).values())
  rows = encode(tokenizer, texts)
  return [
    ids if control.isdisjoint(ids) else encode_origins(tokenizer, text, QUESTION * len(text))[0]
    for text, ids in zip(texts, rows)
  ]


def encode_origins(tokenizer, text: str, origin: str) -> tuple[list, list]:
  """(ids, the origin of each), with control tokens only where the text is TEMPLATE's. origin: a letter per character.

  Text that holds control tokens only there gets the ids of `encode`. A token of mixed origin counts as TEMPLATE's.
  """
  backend, ids_of = _escaped(tokenizer, len(tokenizer), str(tokenizer.chat_template))
  ours = "".join(char if whose == TEMPLATE else "\0" for char, whose in zip(text, origin, strict=True))
  text, starts = text.replace(ESCAPE, "\ufffd"), [found.start() for found in control_pattern(tokenizer).finditer(ours)]
  borders = list(zip([0, *starts], [*starts, len(text)]))
  text = ESCAPE.join(text[start:stop] for start, stop in borders)
  origin = TEMPLATE.join(origin[start:stop] for start, stop in borders)
  found = backend.encode(text, add_special_tokens=False)
  whose = [set(origin[start:stop]) for start, stop in found.offsets]
  return [ids_of.get(i, i) for i in found.ids], [one.pop() if len(one) == 1 else TEMPLATE for one in whose]


@functools.lru_cache(maxsize=2)
def _escaped(tokenizer, size: int, source: str):
  """(a copy of the tokenizer's backend that knows control tokens behind ESCAPE only, its added ids -> the real ones).

  The text is still encoded as a whole, so pieces merge, and blanks come in, as they do in the tokenizer's own way.
  """
  from tokenizers import AddedToken, Tokenizer

  ours, control = tokenizer.backend_tokenizer, control_tokens(tokenizer)
  backend, ids_of = Tokenizer(_escaped_model(ours.model, control, ours.get_vocab(with_added_tokens=False))), {}
  for part in ("normalizer", "pre_tokenizer"):
    if getattr(ours, part) is not None:
      setattr(backend, part, getattr(ours, part))
  for i, token in ours.get_added_tokens_decoder().items():
    name = ESCAPE + token.content if token.content in control else token.content
    kinds = {kind: getattr(token, kind) for kind in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    backend.add_tokens([AddedToken(name, **kinds)])
    ids_of[backend.token_to_id(name)] = i
  return backend, ids_of


def _escaped_model(model, control, vocabulary):
  """The model; if it knows whole words only, it would find the names of control tokens in plain text too."""
  from tokenizers import models

  if not isinstance(model, models.WordLevel):
    return model
  names = {word: ESCAPE + word if word in control else word for word in (*vocabulary, model.unk_token)}
  return models.WordLevel({names[word]: i for word, i in vocabulary.items()}, unk_token=names[model.unk_token])
