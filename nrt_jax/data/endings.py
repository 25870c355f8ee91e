"""What ends a trace, a turn and an answer: the marker and the end tokens; and one line that says which are in use."""

import re

from nrt_jax import errors
from nrt_jax.data import chat_templates
from nrt_jax.data.control_tokens import control_tokens, encode

SHOWN = 40  # characters of a template that `describe` shows


def marker_ids(tokenizer, marker: str) -> tuple[tuple, tuple]:
  """The ids of the marker, and those of them that had to be added: a leading <tag> or word is one token by force.

  A trace ends where the first of them is sampled. UserError where that is an ordinary word which more should follow.
  """
  first = re.match(r"<[^<>\s]+>|\S+", marker).group()
  added = ()
  if first not in tokenizer.get_vocab():
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(first, special=True, normalized=False)], special_tokens=True)
    added = (tokenizer.convert_tokens_to_ids(first),)
  elif first.isalpha() and marker[len(first) :].strip() and first not in control_tokens(tokenizer):
    raise errors.UserError(
      f"prompt.marker: found {marker!r}, whose first token is the word {first!r}: every trace would end at the first "
      f"{first!r}; allowed: a marker that begins with a token of its own, such as {'<|response_start|>' + marker!r}"
    )
  rest = encode(tokenizer, [marker[len(first) :]])[0]
  return (tokenizer.convert_tokens_to_ids(first), *rest), added


def end_ids(tokenizer, config, ids) -> tuple:
  """The end tokens; the first of them closes an answer.

  Where the chat template is in use, that is what it writes behind an assistant's turn, as the model has learnt it:
  other than the tokenizer's end token in Gemma, Phi-3 and many base models. Then come the tokenizer's, and `ids`.
  """
  turn = chat_templates.end_of_turn(tokenizer, dict(config.template_options)) if config.template == "chat" else None
  closing = [] if turn is None else [control_tokens(tokenizer)[turn]]
  return tuple(dict.fromkeys([*closing, tokenizer.eos_token_id, *ids]))


def describe(tokenizer, form) -> str:
  """Which template, marker and end tokens a PromptFormat has, in one line."""
  template = f"{form.template} template"
  if form.template not in ("chat", "plain"):
    text = form.template if len(form.template) <= SHOWN else form.template[: SHOWN - 3] + "..."
    template = f"template {text!r}"
  marker = tokenizer.decode(list(form.marker_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
  added = " (added)" if form.added_ids else ""
  ends = ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in form.end_ids)
  return f"prompts: {template}; marker {marker!r}{added}; end tokens {ends}"
