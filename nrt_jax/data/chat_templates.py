"""Prompts as text: the tokenizer's own chat template, or a text of ours; and which of its characters data brought in.

Chat templates are Jinja, which transformers runs in a sandbox. They are programs: they strip the text of a turn, split
it at </think>, or refuse a role. So what data brought in is found by rendering twice, the second time in disguise.
"""

import re

from nrt_jax import errors
from nrt_jax.data.control_tokens import QUESTION, SYSTEM, TEMPLATE, control_pattern

# Llama's templates write today's date. This is the one that they fall back to: prompts must not change from day to day.
DATE = "26 Jul 2024"
RESERVED = ("messages", "conversation", "tools", "documents", "add_generation_prompt", "continue_final_message")


def render(tokenizer, template: str, options: dict, messages) -> str:
  """The text of a prompt. template: "chat", "plain" or a text with {question}; messages: dicts of role and content.

  options: variables of the chat template. Raises UserError where that template refuses these turns.
  """
  if template == "chat":
    return _apply(tokenizer, options, messages)
  return "".join(text for text, _ in _parts(template, messages))


def render_origins(tokenizer, template: str, options: dict, messages) -> tuple[str, str]:
  """(text, origin of each of its characters), see control_tokens.py; the text is that of `render`, but for this:

  control tokens that a turn writes do not steer the template, unless it takes all of them away, as it does where it
  cuts off the reasoning of earlier turns.
  """
  if template != "chat":
    parts = _parts(template, messages)
    return "".join(text for text, _ in parts), "".join(origin * len(text) for text, origin in parts)
  pattern, disguise = control_pattern(tokenizer), _Disguise()

  def apply(texts) -> str:
    return _apply(tokenizer, options, [{**m, "content": text} for m, text in zip(messages, texts)])

  texts = [m["content"] for m in messages]
  origins = [SYSTEM if m["role"] == "system" else QUESTION for m in messages]
  hidden = list(map(disguise.hide, texts, origins))
  shown = apply(hidden)
  for i, origin in enumerate(origins):
    bare = [*hidden[:i], disguise.hide(texts[i], origin, pattern), *hidden[i + 1 :]]
    if bare != hidden and pattern.findall(apply(bare)) == pattern.findall(shown):
      hidden, shown = bare, apply(bare)
  text, origin = disguise.reveal(shown)
  plain = None if any(map(pattern.search, texts)) else apply(texts)
  if plain not in (None, text):
    return plain, TEMPLATE * len(plain)  # the template changes words: what is whose can't be told
  return text, origin


def _parts(template, messages) -> list:
  """(text, origin) of each piece of a prompt without a chat template: turns stand below each other."""
  system, turns = ("", messages) if messages[0]["role"] != "system" else (messages[0]["content"], messages[1:])
  question = ("\n\n".join(m["content"] for m in turns), QUESTION)
  around = ["", ""] if template == "plain" else template.split("{question}")
  asked = [part for text in around for part in ((text, TEMPLATE), question)][:-1]
  return [(system, SYSTEM), ("\n\n", TEMPLATE), *asked] if system else asked


def _apply(tokenizer, options, messages, generation=True) -> str:
  source = str(tokenizer.chat_template)
  if "date_string" in source:
    options = {"date_string": DATE, **options}
  try:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation, **options)
  except Exception as error:  # a template is a program: it raises whatever it likes
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    roles = ", ".join(m["role"] for m in messages)
    raise errors.UserError(f"prompt.template: the chat template refuses the turns {roles}: {reason}") from error


def check(tokenizer, options: dict, system: str) -> None:
  """Raises UserError where the tokenizer has no chat template, or it takes no question, or not these options."""
  if not tokenizer.chat_template:
    raise errors.UserError(
      "prompt.template: found 'chat', but the tokenizer has no chat template (chat_template.jinja); allowed: plain, a "
      "text with {question}, or a file of Jinja as prompt.chat_template"
    )
  for name in options:
    if name in RESERVED or not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
      raise errors.UserError(f"prompt.template_options: found {name!r}, allowed: variables of the chat template")
  turns = [{"role": "system", "content": system}] if system else []
  _apply(tokenizer, options, [*turns, {"role": "user", "content": "?"}])


def end_of_turn(tokenizer, options: dict) -> str | None:
  """The control token that the chat template writes behind an assistant's turn, if it does."""
  disguise = _Disguise()
  turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": disguise.hide("!", QUESTION)}]
  try:
    text, origin = disguise.reveal(_apply(tokenizer, options, turns, generation=False))
  except errors.UserError:  # it knows no assistant
    return None
  found = control_pattern(tokenizer).match(text[origin.rfind(QUESTION) + 1 :].lstrip())
  return found.group() if found and QUESTION in origin else None


class _Disguise:
  """Writes characters of data as private ones, so that a rendering tells whose each is. Blanks stay as they are."""

  def __init__(self):
    self._private = {}  # (character, origin) -> private character

  def hide(self, text: str, origin: str, bare=None) -> str:
    """The text in disguise, but for what the pattern `bare` finds."""
    kept = set() if bare is None else {i for found in bare.finditer(text) for i in range(*found.span())}
    return "".join(c if i in kept or c.isspace() else self._hide_one(c, origin) for i, c in enumerate(text))

  def _hide_one(self, char: str, origin: str) -> str:
    return self._private.setdefault((char, origin), chr(0xF0000 + len(self._private)))

  def reveal(self, text: str) -> tuple[str, str]:
    """(the text without disguise, the origin of each character); blanks inside of a text of data are its own."""
    known = {private: own for own, private in self._private.items()}
    own = [known.get(char, (char, TEMPLATE)) for char in text]
    origin, before = [whose for _, whose in own], None
    for i, (char, whose) in enumerate(own):
      if char.isspace():
        continue
      if before is not None and whose == own[before][1] != TEMPLATE:
        origin[before + 1 : i] = whose * (i - before - 1)
      before = i
    return "".join(char for char, _ in own), "".join(origin)
