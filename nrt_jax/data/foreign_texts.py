"""Text that a foreign harness has put together, as token ids: exactly those that its Hugging Face backend would have.

Such texts are whole prompts: a chat template's control tokens stand in them as text and are parsed, whoever wrote them.
So this is not how training and evaluation read a data set's questions; control_tokens.py says how those are read.
"""

from nrt_jax.data.chat_templates import DATE
from nrt_jax.errors import UserError


def encode(tokenizer, text: str, special: bool | None = None, prefix: str = "") -> list:
  """Token ids of a text. special: whether the tokenizer puts its own tokens around it, such as bos.

  None: as it does by itself, unless the text begins with `prefix`, as one from a chat template may.
  """
  if special is None:
    special = not (prefix and text.startswith(prefix))
  return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


def decode(tokenizer, ids) -> str:
  """The text of token ids without special tokens."""
  return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def render_history(tokenizer, options: dict, history: list, generation: bool = True) -> str:
  """The text of a conversation by the tokenizer's chat template; without `generation` its last turn goes on.

  A template that refuses a system text is asked again without. Raises UserError where it refuses these turns, too, and
  where there is none. A template that writes today's date gets the one of training's prompts.
  """
  if not tokenizer.chat_template:
    raise UserError("chat: the tokenizer has no chat template (chat_template.jinja), allowed: none, which asks plainly")
  if "date_string" in str(tokenizer.chat_template):
    options = {"date_string": DATE, **options}
  how = {"tokenize": False, "add_generation_prompt": generation, "continue_final_message": not generation, **options}
  bare = [turn for turn in history if turn["role"] != "system"]
  for turns, last in ((history, len(bare) == len(history)), (bare, True)):
    try:
      return tokenizer.apply_chat_template(turns, **how)
    except Exception as error:  # a template is a program: it raises whatever it likes
      if last:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        roles = ", ".join(turn["role"] for turn in history)
        raise UserError(f"chat: the chat template refuses the turns {roles}: {reason}") from error


def texts_behind(tokenizer) -> list:
  """What each token adds to the text that `decode` makes of the tokens before it; None where that depends on them.

  It does for parts of a character.
  """
  before = encode(tokenizer, "a", special=False)[-1:]
  stem, count = decode(tokenizer, before), max(tokenizer.get_vocab().values()) + 1
  texts = tokenizer.batch_decode([[*before, i] for i in range(count)], skip_special_tokens=True)
  return [text[len(stem) :] if text.startswith(stem) and "\ufffd" not in text else None for text in texts]
