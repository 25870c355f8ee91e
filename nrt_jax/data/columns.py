"""Columns of a source's row as checked text, and conversations split into question and answer."""

import math

from nrt_jax import errors
from nrt_jax.data import prompts

# What a role may be called: as in OpenAI's messages, or as in ShareGPT's.
ROLES = {**{role: role for role in prompts.ROLES}, "developer": "system", "human": "user", "gpt": "assistant"}


def column(row, name, where: str):
  """The row's column; "reward_model.ground_truth" reaches into one that holds an object. UserError without it."""
  if name in row:
    return row[name]
  outer, dot, inner = name.partition(".")
  if dot and isinstance(row.get(outer), dict):
    return column(row[outer], inner, f"{where}: column {outer!r}")
  raise errors.UserError(f"{where}: no column {name!r}; columns found: {', '.join(map(str, row))}")


def missing(row, name) -> bool:
  """Whether the row has no such column, or nothing in it."""
  if name in row:
    return row[name] in (None, "")
  outer, dot, inner = name.partition(".")
  return not (dot and isinstance(row.get(outer), dict)) or missing(row[outer], inner)


def text(row, name, where: str) -> str:
  """A column that must hold text, or a number; not empty, and valid Unicode. UserError otherwise."""
  value = column(row, name, where)
  if isinstance(value, float) and not math.isfinite(value):  # JSON's NaN and 1e400, a table's missing numbers
    raise errors.UserError(f"{where}: column {name!r} holds {value}, allowed: text or a finite number")
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    value = str(value)
  if not isinstance(value, str):
    raise errors.UserError(f"{where}: column {name!r} holds {type(value).__name__}, allowed: text or a number")
  if not value.strip():
    raise errors.UserError(f"{where}: column {name!r} is empty")
  try:
    value.encode()
  except UnicodeEncodeError as error:  # JSON can write these, tokenizers fail on them
    raise errors.UserError(f"{where}: column {name!r} holds half a character (a lone surrogate)") from error
  return value


def behind(answer: str, mark: str, where: str) -> str:
  """What follows the last `mark` of an answer, without the blanks around it. UserError where nothing does."""
  _, found, rest = answer.rpartition(mark)
  if not found or not rest.strip():
    end = answer if len(answer) <= 40 else "..." + answer[-37:]
    raise errors.UserError(f"{where}: data.answer_after: found no text behind {mark!r} in the answer {end!r}")
  return rest.strip()


def question(row, name, where: str):
  """A question as text, or as the turns of a conversation that ends with the user's: a tuple of role and content."""
  messages = column(row, name, where)
  if not isinstance(messages, list):
    return text(row, name, where)
  turns = _turns(messages, where)
  roles = [turn["role"] for turn in turns]
  if roles[-1:] != ["user"] or "system" in roles[1:]:
    found = ", ".join(roles) or "none"
    raise errors.UserError(f"{where}: column {name!r}: found the turns {found}; allowed: [system,] user, ..., user")
  return tuple(turns)


def _turns(messages, where: str) -> list:
  """Messages as dicts of role and content; a system turn without text is none. UserError for roles we do not know."""
  if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
    raise errors.UserError(f"{where}: messages must be a list of objects with role and content")
  turns = []
  for message in messages:
    message = {"role": message.get("from"), "content": message.get("value"), **message}
    errors.require_choice(f"{where}: role", message["role"], tuple(ROLES))
    role, content = ROLES[message["role"]], _content(message["content"], where)
    if role != "system" or str(content or "").strip():
      turns.append({"role": role, "content": text({"content": content}, "content", where)})
  return turns


def _content(content, where: str):
  """The text of a turn that is given in parts; anything else as it is."""
  if not isinstance(content, list):
    return content
  for part in content:
    if not isinstance(part, (str, dict)):
      found = f"found {type(part).__name__} as a part of content"
      raise errors.UserError(f"{where}: {found}, allowed: a text, or an object with text")
    kind = part.get("type", "text") if isinstance(part, dict) else "text"
    errors.require_choice(f"{where}: type of content", kind, ("text",))
  return "".join(text({"text": part} if isinstance(part, str) else part, "text", where) for part in content)


def split_messages(messages, where: str):
  """The turns before the last assistant turn, and that turn's text. Turns after it are left out."""
  turns = _turns(messages, where)
  roles = [turn["role"] for turn in turns]
  if "assistant" not in roles:
    raise errors.UserError(f"{where}: no assistant turn, so there is no answer")
  last = len(roles) - 1 - roles[::-1].index("assistant")
  if last == 0 or roles[last - 1] != "user" or "system" in roles[1:last]:
    found = ", ".join(roles)
    raise errors.UserError(f"{where}: found the turns {found}; allowed: [system,] user, ..., user, assistant")
  return tuple(turns[:last]), turns[last]["content"]


def weight(row, name, where: str) -> float:
  """A column that must hold a number of 0 or more, as text in CSV files. UserError otherwise."""
  value = column(row, name, where)
  try:
    number = -1.0 if isinstance(value, bool) else float(value)
  except (TypeError, ValueError):
    number = -1.0
  if not 0 <= number < float("inf"):
    raise errors.UserError(f"{where}: column {name!r}: found {value!r}, allowed: a number, 0 or more")
  return number
